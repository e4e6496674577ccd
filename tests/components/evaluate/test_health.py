import pytest

from bebygan.errors import ConfigError
from components.common.config import HealthLimits, load_params
from components.evaluate.health import CHANCE, examine

LIMITS = HealthLimits(window=0.5, discriminator_loss=(0.05, 0.69), logit_margin=10, textured_share=(0.05, 0.98))
GOOD = {"discriminator": 0.45, "logit_real": 1.0, "logit_fake": -0.5, "textured_share": 0.6}


def training(**changed: float) -> list[dict[str, float]]:
    """Forty logged values: the first half good, the second with what changed."""
    return [{"iteration": n, **GOOD, **(changed if n >= 20 else {})} for n in range(40)]


def test_a_training_within_all_limits_is_healthy() -> None:
    findings = examine(training(), LIMITS)
    assert [finding.healthy for finding in findings] == [True, True, True]
    assert findings[0].text == "discriminator: its loss was 0.450 (0.693 is chance), between 0.05 and 0.69"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"discriminator": 0.01}, "the generator learns little"),
        ({"discriminator": CHANCE}, "it collapsed or never learnt"),
        ({"logit_real": 9.0, "logit_fake": -4.0}, "13.00 apart, more than 10: the loss saturates"),
        ({"logit_real": -9.0, "logit_fake": 4.0}, "13.00 apart, more than 10: the loss saturates"),
        ({"textured_share": 0.01}, "1% of the pixels counted as textured, less than 5%"),
        ({"textured_share": 1.0}, "the mask hides nothing"),
    ],
)
def test_each_illness_is_told_alone(changed: dict[str, float], told: str) -> None:
    ill = [finding.text for finding in examine(training(**changed), LIMITS) if not finding.healthy]
    assert len(ill) == 1
    assert told in ill[0]


def test_only_the_end_of_the_training_counts() -> None:
    history = training(discriminator=0.01)
    assert all(finding.healthy for finding in examine(history[:20], LIMITS))
    assert all(finding.healthy for finding in examine(history[::-1], LIMITS))


def test_one_bad_value_among_good_ones_is_no_illness() -> None:
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
    with pytest.raises(ConfigError, match=r"evaluate\.health\.discriminator_loss: must be a lower and an upper bound"):
        load_params(overrides=["evaluate.health.discriminator_loss=[0.6, 0.1]"])
