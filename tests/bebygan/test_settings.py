import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bebygan.settings import (
    BestBuddySettings,
    Constraint,
    Delivery,
    GanSettings,
    GeneratorShape,
    LearningRateSchedule,
    LossWeights,
    PerceptualSettings,
    RegionSettings,
    Retention,
)
from components.config import load_params

ROOT = Path(__file__).parents[2]
VGG19 = PerceptualSettings(network="vgg19", taps=(("conv3_4", 0.125), ("conv5_4", 0.5)))


def gan(**changes: Any) -> GanSettings:
    values: dict[str, Any] = {
        "iterations": 10, "batch": 2, "crop": 128, "betas": (0.9, 0.999), "ema_decay": 0.9, "precision": "fp32",
        "tf32": False, "compile": False, "channels_last": False, "accumulate": 1, "clip_norm": 0.0, "skip_limit": 1,
        "seed": 0,
        "validate_every": 0, "validate_patches": 1, "checkpoint_every": 5, "log_every": 1, "picture_every": 0,
        "discriminator_width": 4, "discriminator_first": 0, "relativistic_mean": "global", "perceptual": VGG19,
        "schedule": LearningRateSchedule(
            shape="steps", peak=1e-4, floor=0, cycle=0, warmup=0, warmup_from=0.1, milestones=(), decay=0.5
        ),
        "losses": LossWeights(best_buddy=1, back_projection=1, perceptual=1, adversarial=0.005),
        "best_buddy": BestBuddySettings(alpha=1, beta=1, patch=3, stride=3, pyramid="matlab", chunk=512),
        "region": RegionSettings(mask_from="hr", window=11, threshold=0.025),
        "keep": Retention(newest=2, every=0, best=None),
        "deliver": Delivery(by="last"),
    }  # fmt: skip
    return GanSettings(**values | changes)


def test_a_crop_that_the_discriminator_cannot_take_is_refused() -> None:
    assert gan(crop=192).crop == 192
    with pytest.raises(ValueError, match=r"takes crops of 3, 4, 5 or 7 times a power of two .* got 144"):
        gan(crop=144)


def test_without_a_discriminator_any_crop_will_do() -> None:
    alone = LossWeights(**asdict(gan().losses) | {"adversarial": 0.0})
    assert replace(gan(), losses=alone, crop=144).crop == 144


def test_taps_must_be_layers_of_the_network() -> None:
    with pytest.raises(ValueError, match="vgg16 has no conv3_4; it has conv1_1, "):
        replace(VGG19, network="vgg16")
    with pytest.raises(ValueError, match="at least one convolution"):
        replace(VGG19, taps=())


def test_a_network_chooses_its_taps_unless_they_are_named() -> None:
    assert PerceptualSettings().weights == {"conv3_4": 0.125, "conv4_4": 0.25, "conv5_4": 0.5}
    assert PerceptualSettings(network="vgg16").weights == {"conv3_3": 0.125, "conv4_3": 0.25, "conv5_3": 0.5}
    assert VGG19.weights == {"conv3_4": 0.125, "conv5_4": 0.5}
    with pytest.raises(ValueError, match=r"the weight of conv5_4 must be above 0, got 0"):
        PerceptualSettings(taps=(("conv5_4", 0.0),))


def test_two_checkpoints_are_the_least_that_are_kept() -> None:
    with pytest.raises(ValueError, match="newest must be at least 2, got 1"):
        Retention(newest=1, every=0, best=None)


def test_a_batch_must_be_divisible_into_the_parts_it_is_computed_in() -> None:
    assert gan(batch=6, accumulate=3).accumulate == 3
    with pytest.raises(ValueError, match="batch must be a multiple of accumulate, got 6 and 4"):
        gan(batch=6, accumulate=4)


def test_the_discriminator_cannot_learn_first_where_there_is_none() -> None:
    alone = LossWeights(**asdict(gan().losses) | {"adversarial": 0.0})
    with pytest.raises(ValueError, match="discriminator_first needs an adversarial loss"):
        gan(losses=alone, discriminator_first=5)


def test_the_best_checkpoint_or_average_by_what_is_never_measured_is_refused() -> None:
    best = Retention(newest=2, every=0, best="validation.l1")
    assert gan(keep=best, validate_every=5).keep == best
    with pytest.raises(ValueError, match=r"keep\.best is validation\.l1, which is never measured"):
        gan(keep=best, validate_every=0)
    best = Delivery(by="validation.lpips", lr_psnr_floor=38.0)
    assert gan(deliver=best, validate_every=5).deliver == best
    with pytest.raises(ValueError, match=r"deliver\.by is validation\.lpips, .* or deliver\.by to last"):
        gan(deliver=best, validate_every=0)


def test_defaults_are_those_of_the_paper_profile() -> None:
    assert load_params(ROOT / "params" / "paper.yaml").train == GanSettings()


def test_none_and_every_element_of_a_tuple_are_checked() -> None:
    even = Constraint(multiple_of=2, above=0, below=9)

    assert even.allows(None)
    assert even.allows((2, 8))
    assert even.allows({"a": 2, "b": 8})
    assert not even.allows({"a": 2, "b": 9})
    assert [value for value in (0, 3, 10, (2, 3), float("nan")) if even.allows(value)] == []
    assert str(even) == "be a multiple of 2 and above 0 and below 9"


def test_a_pattern_must_match_the_whole_text() -> None:
    assert Constraint(pattern="[a-z]+").allows("model")
    assert not Constraint(pattern="[a-z]+").allows("model\n")


@pytest.mark.parametrize("kind", [GanSettings, GeneratorShape])
def test_help_explains_every_field(kind: type) -> None:
    described = set(re.findall(r"^        (\w+): ", "".join(base.__doc__ or "" for base in kind.__mro__[:-2]), re.M))
    assert described == set(kind.__dataclass_fields__)  # type: ignore[attr-defined]
