import math
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bebygan import SCALE
from bebygan.errors import ConfigError, DataError, Preempted, StorageError, WeightsError
from bebygan.imaging.shards import Patches, PhotographPair, read_patches, write_shards
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.settings import (
    BestBuddySettings,
    Delivery,
    GanSettings,
    GeneratorShape,
    LearningRateSchedule,
    LossWeights,
    PerceptualSettings,
    RegionSettings,
    Retention,
)
from bebygan.training.checkpoint import Checkpoints
from bebygan.training.loop import fit
from bebygan.training.state import TrainState, new_state
from bebygan.training.step import gan_step, warmup_step

CPU = torch.device("cpu")
JOB = {"step": "train", "params": "p"}
SETTINGS = GanSettings(
    iterations=6,
    batch=2,
    crop=48,
    schedule=LearningRateSchedule(
        shape="cosine", peak=1e-3, floor=1e-7, cycle=0, warmup=2, warmup_from=0.1, milestones=(), decay=0.5
    ),
    betas=(0.9, 0.999),
    ema_decay=0.9,
    precision="fp32",
    tf32=False,
    compile=False,
    channels_last=False,
    accumulate=1,
    clip_norm=0,
    skip_limit=2,
    seed=3,
    validate_every=0,
    picture_every=0,
    validate_patches=4,
    checkpoint_every=2,
    keep=Retention(newest=2, every=0, best=None),
    deliver=Delivery(by="last"),
    log_every=1,
    losses=LossWeights(best_buddy=1, back_projection=1, perceptual=0, adversarial=0.005),
    best_buddy=BestBuddySettings(alpha=1, beta=1, patch=3, stride=3, pyramid="matlab", chunk=512),
    region=RegionSettings(mask_from="hr", window=11, threshold=0.025),
    perceptual=PerceptualSettings(network="vgg16", taps=(("conv3_3", 1.0),)),
    discriminator_width=4,
    discriminator_first=0,
    relativistic_mean="global",
)


def make_patches(folder: Path) -> Path:
    random = np.random.default_rng(1)
    lr = random.integers(0, 256, (24, 24, 3), np.uint8)
    windows = np.array([(top, left) for top in (0, 24, 48) for left in (0, 24, 48)])
    hr = lr.repeat(SCALE, 0).repeat(SCALE, 1)
    photographs = [
        PhotographPair(hr, lr, "train", windows),
        PhotographPair(hr[:48, 4:], lr[:12, 1:], "validation", windows[:2]),
    ]
    write_shards(folder, photographs, 48, 10**9, {})
    return folder


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Patches:
    return read_patches(make_patches(tmp_path_factory.mktemp("patches")), "train")


def state(settings: GanSettings = SETTINGS) -> TrainState:
    torch.manual_seed(settings.seed)
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    return new_state(generator, Discriminator(settings.crop, settings.discriminator_width), settings, CPU)


def ignore(iteration: int, values: Mapping[str, float] | None) -> None:
    assert iteration or (values and "validation.psnr_y" in values)
    assert values is None or values


def run(patches: Patches, checkpoints: Path, settings: GanSettings = SETTINGS) -> TrainState:
    trained = state(settings)
    fit(trained, patches, settings, gan_step(settings, None), checkpoints=checkpoints, identity=JOB, watch=ignore)
    return trained


def assert_equal(one: object, other: object) -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_the_same_seed_gives_the_same_weights_bit_for_bit(patches: Patches, tmp_path: Path) -> None:
    assert_equal(run(patches, tmp_path / "a").state_dict(), run(patches, tmp_path / "b").state_dict())


@pytest.mark.parametrize("stopped_after", range(1, 6))
def test_a_stopped_run_ends_as_one_that_was_never_stopped(patches: Patches, tmp_path: Path, stopped_after: int) -> None:
    def stop(iteration: int, _: Mapping[str, float] | None) -> None:
        if iteration == stopped_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match=f"after iteration {stopped_after}"):
        fit(
            state(),
            patches,
            SETTINGS,
            gan_step(SETTINGS, None),
            checkpoints=tmp_path / "stopped",
            identity=JOB,
            watch=stop,
        )

    assert_equal(run(patches, tmp_path / "stopped").state_dict(), run(patches, tmp_path / "whole").state_dict())


def test_a_finished_run_is_not_trained_again(patches: Patches, tmp_path: Path) -> None:
    run(patches, tmp_path)

    def never(*_: object) -> Mapping[str, Tensor]:
        raise AssertionError

    again = state()
    fit(again, patches, SETTINGS, never, checkpoints=tmp_path, identity=JOB, watch=ignore)
    assert again.iteration == SETTINGS.iterations


def test_at_most_two_checkpoints_are_kept(patches: Patches, tmp_path: Path) -> None:
    run(patches, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iteration-00000004.checkpoint",
        "iteration-00000006.checkpoint",
    ]


def test_a_damaged_checkpoint_falls_back_to_the_one_before_loudly(
    patches: Patches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(patches, tmp_path)
    newest = tmp_path / "iteration-00000006.checkpoint"
    newest.write_bytes(newest.read_bytes()[:-100])

    resumed = run(patches, tmp_path)

    assert "iteration-00000006.checkpoint is damaged" in caplog.text
    assert_equal(resumed.state_dict(), whole.state_dict())


def test_only_damaged_checkpoints_stop_the_run(patches: Patches, tmp_path: Path) -> None:
    run(patches, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")

    with pytest.raises(DataError, match="is damaged"):
        run(patches, tmp_path)


def test_a_checkpoint_of_another_job_is_refused_with_what_differs(patches: Patches, tmp_path: Path) -> None:
    run(patches, tmp_path)

    with pytest.raises(ConfigError, match=r"belongs to another run: params p -> q; choose another folder"):
        fit(
            state(),
            patches,
            SETTINGS,
            gan_step(SETTINGS, None),
            checkpoints=tmp_path,
            identity=JOB | {"params": "q"},
            watch=ignore,
        )


def test_a_full_disk_leaves_no_half_checkpoint(
    patches: Patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        run(patches, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_history_holds_every_logged_value(patches: Patches, tmp_path: Path) -> None:
    history = run(patches, tmp_path).history

    assert [entry["iteration"] for entry in history] == [1, 2, 3, 4, 5, 6]
    losses = {"best_buddy", "back_projection", "adversarial", "discriminator", "total"}
    discriminator = {"logit_real", "logit_fake", "judged_real", "judged_fake", "textured_share"}
    buddies = {f"buddies.{level}" for level in ("own", "full", "half", "quarter")}
    norms = {"gradient_norm.generator", "gradient_norm.discriminator"}
    expected = losses | discriminator | buddies | norms | {"iteration", "learning_rate", "skipped_steps"}
    assert history[0].keys() == expected
    assert sum(history[0][name] for name in buddies) == pytest.approx(1)
    assert 0 < history[0]["judged_fake"] < 1


def test_the_average_follows_the_generator(patches: Patches, tmp_path: Path) -> None:
    trained = run(patches, tmp_path)
    first = state().generator.conv_last.weight

    moved = (trained.generator.conv_last.weight - first).abs().max()
    lag = (trained.average.conv_last.weight - trained.generator.conv_last.weight).abs().max()
    assert 0 < lag < moved


def test_the_average_forgets_the_random_start(patches: Patches, tmp_path: Path) -> None:
    settings = replace(SETTINGS, iterations=60, ema_decay=0.999, checkpoint_every=60)
    trained = state(settings)
    with torch.no_grad():
        trained.average.conv_last.bias.fill_(1e6)
    fit(trained, patches, settings, warmup_step(settings), checkpoints=tmp_path, identity=JOB, watch=ignore)

    # With the full decay from the start 94 % of it would be left.
    assert trained.average.conv_last.bias.max() < 1


def test_training_lowers_the_warmup_loss(patches: Patches, tmp_path: Path) -> None:
    settings = replace(SETTINGS, iterations=40, checkpoint_every=40)
    trained = state(settings)
    fit(trained, patches, settings, warmup_step(settings), checkpoints=tmp_path, identity=JOB, watch=ignore)

    losses = [entry["pixel"] for entry in trained.history]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_bf16_trains_about_as_fp32(patches: Patches, tmp_path: Path) -> None:
    settings = replace(SETTINGS, precision="bf16", channels_last=True)
    low = run(patches, tmp_path / "low", settings).history
    full = run(patches, tmp_path / "full").history

    for name in ("best_buddy", "back_projection", "discriminator"):
        np.testing.assert_allclose([e[name] for e in low], [e[name] for e in full], rtol=0.1)


def test_speed_is_told_but_not_kept(patches: Patches, tmp_path: Path) -> None:
    told: list[Mapping[str, float]] = []
    trained = state()
    fit(
        trained, patches, SETTINGS, gan_step(SETTINGS, None), checkpoints=tmp_path, identity=JOB,
        watch=lambda _, values: told.append(values or {}),
    )  # fmt: skip

    assert all(values["samples_per_second"] > 0 and 0 <= values["data_wait_share"] <= 1 for values in told)
    assert not {"samples_per_second", "data_wait_share"} & trained.history[0].keys()


def test_a_run_of_which_no_step_was_finite_fails_whatever_the_limit(patches: Patches, tmp_path: Path) -> None:
    settings = replace(SETTINGS, skip_limit=1000)
    broken = state(settings)
    with torch.no_grad():
        broken.generator.conv_last.bias.fill_(float("inf"))

    with pytest.raises(DataError, match=r"^training diverged: all 6 steps were not finite \(now .*best_buddy"):
        fit(broken, patches, settings, gan_step(settings, None), checkpoints=tmp_path, identity=JOB, watch=ignore)


def test_a_checkpoint_with_weights_that_are_not_finite_is_refused_with_their_key(
    patches: Patches, tmp_path: Path
) -> None:
    broken = state()
    with torch.no_grad():
        broken.average.conv_last.bias[1] = float("nan")
    with Checkpoints(tmp_path, JOB, SETTINGS.keep) as saver:
        saver.save(4, broken.state_dict())

    with pytest.raises(
        WeightsError, match=r"iteration-00000004\.checkpoint, .*: average\.conv_last\.bias contains NaN"
    ):
        run(patches, tmp_path)


def test_values_that_are_not_finite_are_neither_kept_nor_told(patches: Patches, tmp_path: Path) -> None:
    settings = replace(SETTINGS, validate_every=1)
    broken, told = state(settings), []
    with torch.no_grad():
        # The average of the first iterations is infinite in the end, although every step is finite.
        broken.average.conv_last.bias.fill_(3e38)
    fit(
        broken, patches, settings, warmup_step(settings), checkpoints=tmp_path, identity=JOB, validation=patches,
        watch=lambda _, values: told.append(values or {}),
    )  # fmt: skip
    assert all(math.isfinite(value) for values in (*told, *broken.history) for value in values.values())


def test_the_history_holds_means_since_the_last_logged_values(patches: Patches, tmp_path: Path) -> None:
    each = run(patches, tmp_path / "each").history
    means = run(patches, tmp_path / "means", replace(SETTINGS, log_every=4)).history

    assert [entry["iteration"] for entry in means] == [4, 6]
    for entry, alone in zip(means, (each[:4], each[4:]), strict=True):
        for name in ("total", "discriminator", "logit_real", "gradient_norm.generator"):
            assert entry[name] == pytest.approx(np.mean([other[name] for other in alone]), rel=1e-9)
        assert entry["learning_rate"] == alone[-1]["learning_rate"]


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_means_survive_a_stop_between_two_logged_values(patches: Patches, tmp_path: Path, stopped_after: int) -> None:
    settings = replace(SETTINGS, log_every=4, checkpoint_every=100)

    def stop(iteration: int, _: Mapping[str, float] | None) -> None:
        if iteration == stopped_after:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = tmp_path / "stopped"
    with pytest.raises(Preempted):
        fit(
            state(), patches, settings, gan_step(settings, None), checkpoints=stopped, identity=JOB, watch=stop
        )  # fmt: skip
    assert_equal(run(patches, stopped, settings).state_dict(), run(patches, tmp_path / "whole", settings).state_dict())


def test_a_step_that_is_not_finite_is_left_out_of_the_means(patches: Patches, tmp_path: Path) -> None:
    settings = replace(SETTINGS, log_every=3)
    step = gan_step(settings, None)

    def once_infinite(trained: TrainState, lr: Tensor, hr: Tensor) -> Mapping[str, Tensor]:
        values = step(trained, lr, hr)
        return {**values, "total": values["total"] / 0} if trained.iteration == 1 else values

    trained = state(settings)
    fit(trained, patches, settings, once_infinite, checkpoints=tmp_path, identity=JOB, watch=ignore)
    expected = run(patches, tmp_path / "each").history
    assert trained.history[0]["total"] == pytest.approx((expected[0]["total"] + expected[2]["total"]) / 2, rel=1e-9)


def test_the_discriminator_has_its_own_rate(patches: Patches, tmp_path: Path) -> None:
    trained = run(patches, tmp_path, replace(SETTINGS, discriminator_rate=4.0))
    assert trained.discriminator_optimiser is not None
    rates = [
        optimiser.param_groups[0]["lr"] for optimiser in (trained.generator_optimiser, trained.discriminator_optimiser)
    ]
    assert rates[1] == 4 * rates[0] > 0
