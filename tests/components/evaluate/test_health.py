from pathlib import Path

import pytest

from bebygan.errors import ConfigError
from components.config import load_params
from components.evaluate.health import CHANCE, examine

LIMITS = load_params(Path(__file__).parents[3] / "params.yaml").evaluate.health
NAMES = ("discriminator", "logit_real", "logit_fake", "textured_share")
# fmt: off
TRAINED = [
    (0.706, -0.002, 0.019, 0.413), (0.677, 0.083, 0.045, 0.395), (0.702, 0.153, 0.166, 0.468),
    (0.695, 0.201, 0.196, 0.3), (0.701, 0.305, 0.264, 0.601), (0.686, 0.141, 0.124, 0.777),
    (0.677, 0.491, 0.437, 0.488), (0.714, 0.251, 0.249, 0.358), (0.617, 0.737, 0.53, 0.61),
    (0.481, 0.827, 0.315, 0.542), (0.353, 0.942, -0.031, 0.817), (0.75, 2.871, 2.871, 0.456),
    (0.072, 2.629, -0.587, 0.63), (0.226, 1.672, 0.189, 0.717), (0.212, 3.617, 1.993, 0.56),
    (0.474, 0.133, -0.766, 0.819), (0.429, 1.122, 0.468, 0.661), (0.129, 3.262, 1.127, 0.699),
    (0.139, 1.689, -0.275, 0.784), (0.381, 2.957, 2.025, 0.845), (0.005, 3.84, -1.747, 0.786),
    (0.323, 0.624, -0.455, 0.364), (0.539, 1.147, 0.616, 0.466),
]
"""Values of every tenth iteration of `make run`."""
FROZEN = [
    (0.709, 0.057, 0.084, 0.474), (0.714, 0.109, 0.144, 0.374), (0.688, 0.163, 0.15, 0.825),
    (0.714, 0.078, 0.113, 0.722), (0.665, 0.151, 0.092, 0.488), (0.724, 0.199, 0.258, 0.43),
    (0.654, 0.245, 0.162, 0.7), (0.689, 0.234, 0.223, 0.658), (0.706, 0.15, 0.173, 0.663),
    (0.677, 0.145, 0.111, 0.413), (0.683, 0.215, 0.194, 0.647), (0.679, 0.226, 0.192, 0.869),
    (0.67, 0.201, 0.151, 0.358), (0.689, 0.136, 0.127, 0.626), (0.722, 0.111, 0.159, 0.452),
    (0.689, 0.209, 0.194, 0.675), (0.694, 0.332, 0.33, 0.772), (0.698, 0.066, 0.071, 0.525),
    (0.7, 0.233, 0.247, 0.455), (0.664, 0.157, 0.095, 0.395), (0.697, 0.085, 0.091, 0.53),
    (0.685, 0.296, 0.278, 0.624),
]
"""Values of every iteration with the same networks and photographs and a discriminator with learning rate 0."""
# fmt: on
GOOD = {"discriminator": 0.45, "logit_real": 1.0, "logit_fake": -0.5, "textured_share": 0.6}


def training(**changed: float) -> list[dict[str, float]]:
    """Return forty logged entries: the first half good, the second half with the changed values."""
    return [{"iteration": n, **GOOD, **(changed if n >= 20 else {})} for n in range(40)]


def recorded(values: list[tuple[float, ...]]) -> list[dict[str, float]]:
    return [dict(zip(NAMES, entry, strict=True)) for entry in values]


def test_a_real_training_is_healthy_with_the_shipped_limits() -> None:
    assert all(finding.healthy for finding in examine(recorded(TRAINED), LIMITS))


@pytest.mark.parametrize("length", range(10, len(FROZEN) + 1))
def test_the_shipped_limits_detect_a_discriminator_that_never_learns(length: int) -> None:
    loss, logits, mask = examine(recorded(FROZEN[:length]), LIMITS)
    assert "it collapsed or never learnt" in loss.text
    assert (loss.healthy, logits.healthy, mask.healthy) == (False, True, True)


def test_a_training_within_all_limits_is_healthy() -> None:
    findings = examine(training(), LIMITS)
    assert [finding.healthy for finding in findings] == [True, True, True]
    assert findings[0].text == "discriminator: its loss was 0.450 (0.693 is chance), between 0.05 and 0.66"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"discriminator": 0.01}, "the generator learns little"),
        ({"discriminator": CHANCE}, "it collapsed or never learnt"),
        ({"logit_real": 9.0, "logit_fake": -4.0}, "differ by 13.00, above 10: the loss saturates"),
        ({"logit_real": -9.0, "logit_fake": 4.0}, "differ by 13.00, above 10: the loss saturates"),
        ({"textured_share": 0.01}, "1% of the pixels counted as textured, below 5%"),
        ({"textured_share": 1.0}, "the mask hides nothing"),
    ],
)
def test_each_problem_is_reported_alone(changed: dict[str, float], told: str) -> None:
    ill = [finding.text for finding in examine(training(**changed), LIMITS) if not finding.healthy]
    assert len(ill) == 1
    assert told in ill[0]


def test_only_the_end_of_the_training_counts() -> None:
    history = training(discriminator=0.01)
    assert all(finding.healthy for finding in examine(history[:20], LIMITS))
    assert all(finding.healthy for finding in examine(history[::-1], LIMITS))


def test_a_single_outlier_is_healthy() -> None:
    history = [*training(), {"iteration": 40, **GOOD, "discriminator": 50.0}]
    assert all(finding.healthy for finding in examine(history, LIMITS))


def test_a_training_without_a_discriminator_is_not_examined() -> None:
    assert examine([{"iteration": 1, "best_buddy": 0.5}], LIMITS) == []
    assert examine([], LIMITS) == []


def test_a_short_training_is_not_called_healthy() -> None:
    [finding] = examine(training()[:4], LIMITS)
    assert not finding.healthy
    assert finding.text == "too short to judge: 2 logged values, 5 are needed"


def test_limits_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.health\.discriminator_loss must be a lower and an upper bound"):
        load_params(overrides=["evaluate.health.discriminator_loss=[0.6, 0.1]"])


RUINED = [
    {"iteration": 0, "validation.psnr_y": 27.41, "validation.lpips": 0.338, "validation.lr_psnr": 43.5},
    *({"iteration": 10.0 * n, "back_projection": 0.004 + 0.0001 * n} for n in range(1, 90)),
    {
        "iteration": 900, "validation.psnr_y": 23.98, "validation.lpips": 0.332, "validation.lr_psnr": 31.1,
        "back_projection": 0.02, "delivered": 350,
    },
]  # fmt: skip
"""Like the training of 900 iterations that gave ringing and coloured noise."""


def test_what_ruined_a_long_training_is_told() -> None:
    found = {finding.text: finding.healthy for finding in examine(RUINED, LIMITS)}
    long = "the training was too long or its learning rate too high"
    assert found == {
        "delivered iteration 350 of 900": True,
        "validation: PSNR-Y was 27.41 dB at the start and 23.98 dB at the end, worse by more than 1.5 dB: "
        + long: False,
        "validation: LPIPS was 0.3380 at the start and 0.3320 at the end": True,
        "validation: LR-PSNR was 43.50 dB at the start and 31.10 dB at the end, worse by more than 6 dB: "
        + long: False,
        "back-projection: its loss was 0.0045 at the start and 0.0126 at the end": True,
    }


def test_a_back_projection_loss_that_multiplies_is_told() -> None:
    [finding] = examine([{"iteration": n, "back_projection": 0.005 if n < 9 else 0.02} for n in range(10)], LIMITS)
    assert finding.text == (
        "back-projection: its loss was 0.0050 at the start and 0.0200 at the end, more than 3 times as much: "
        "downscaled results no longer show what their LR shows"
    )
    assert not finding.healthy


def test_a_worse_lpips_is_told() -> None:
    history = [{"iteration": 0, "validation.lpips": 0.1}, {"iteration": 5, "validation.lpips": 0.13}]
    [finding] = examine(history, LIMITS)
    assert not finding.healthy
    assert "LPIPS was 0.1000 at the start and 0.1300 at the end, worse by more than 0.02: " in finding.text


def test_a_training_that_stopped_itself_says_why() -> None:
    history = [{"iteration": 40, "validation.psnr_y": 25.0, "stopped.psnr_y": 2.0, "delivered": 20}]
    delivered, stopped = examine(history, LIMITS)
    assert delivered.text == "delivered iteration 20 of 40"
    assert not stopped.healthy
    assert stopped.text.startswith(
        "training stopped itself after iteration 40: PSNR-Y on the validation photographs was 2.00 dB below that of the"
    )


def test_a_start_that_was_not_measured_is_not_compared() -> None:
    history = [{"iteration": 5, "validation.lpips": 0.1}, {"iteration": 9, "validation.lpips": 0.2}]
    assert examine(history, LIMITS) == []
