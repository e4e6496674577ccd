import copy
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bebygan.errors import DataError, Preempted
from bebygan.imaging.shards import Patches, read_patches
from bebygan.losses.locally_discriminative import locally_discriminative_loss
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.settings import GanSettings, GeneratorShape, LossWeights
from bebygan.training.loop import TrainStep, fit
from bebygan.training.state import FIRST_SCALE, TrainState, new_state
from bebygan.training.step import gan_step, warmup_step
from bebygan.training.update import buffers_of
from tests.bebygan.training.test_loop import JOB, SETTINGS, assert_equal, ignore, make_patches

CPU = torch.device("cpu")
RATE = 1e-3


def new(settings: GanSettings = SETTINGS, dtype: torch.dtype = torch.float32) -> TrainState:
    torch.manual_seed(settings.seed)
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2)).to(dtype)
    discriminator = Discriminator(settings.crop, settings.discriminator_width).to(dtype)
    made = new_state(generator, discriminator, settings, CPU)
    for optimiser in (made.generator_optimiser, made.discriminator_optimiser):
        assert optimiser is not None
        optimiser.param_groups[0]["lr"] = RATE
    return made


def pair(count: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return torch.rand(count, 3, 12, 12, dtype=dtype), torch.rand(count, 3, 48, 48, dtype=dtype)


def everything(state: TrainState) -> dict[str, Any]:
    """Return all that a skipped step must not change."""
    return {name: value for name, value in copy.deepcopy(state.state_dict()).items() if name != "guard"}


def gradients(state: TrainState) -> list[Tensor]:
    assert state.discriminator is not None
    parameters = [*state.generator.parameters(), *state.discriminator.parameters()]
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


def test_the_locally_discriminative_loss_compares_with_the_averaged_generator() -> None:
    settings = replace(SETTINGS, losses=replace(SETTINGS.losses, locally_discriminative=1.0))
    state, (lr, hr) = new(settings), pair()
    with torch.no_grad():
        for parameter in state.average.parameters():
            parameter.mul_(0.5)
        sr, averaged = state.generator(lr), state.average(lr)
    wanted = locally_discriminative_loss(sr, hr, averaged)
    assert wanted > 0
    found = gan_step(settings, None)(state, lr, hr)["locally_discriminative"]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("at_fault", ["lr", "hr"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_count(channels_last: bool, at_fault: str) -> None:
    settings = replace(SETTINGS, channels_last=channels_last)
    state, step, (lr, hr) = new(settings), gan_step(settings, None), pair()
    step(state, lr, hr)
    before = everything(state)

    (lr if at_fault == "lr" else hr)[0, 0, 3, 3] = float("inf")
    values = step(state, lr, hr)

    assert not values["total"].isfinite()
    assert_equal(everything(state), before)
    assert (state.guard.skipped, state.guard.in_a_row) == (1, 1)

    step(state, *pair())
    assert state.guard.skipped == 1
    assert state.guard.in_a_row == 0
    after = everything(state)
    for name in ("generator", "average", "discriminator"):
        assert all(after[name][key].isfinite().all() for key in after[name])
        first = next(iter(after[name]))
        assert not torch.equal(after[name][first], before[name][first])


class _NoReading(TorchDispatchMode):
    """Refuses what brings a value from the device to the host, for which the host must wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        assert "_local_scalar_dense" not in str(function), "the host waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_never_waits_for_the_device(precision: Any) -> None:
    settings = replace(SETTINGS, precision=precision, clip_norm=1.0)
    state, step = new(settings), gan_step(settings, None)
    with _NoReading():
        step(state, *pair())
    with pytest.raises(AssertionError, match="the host waits"), _NoReading():
        state.guard.skipped.item()


def test_steps_that_are_not_finite_are_counted_and_training_goes_on(patches: Patches, tmp_path: Path) -> None:
    state = new()
    fit(state, patches, SETTINGS, poisoned(gan_step(SETTINGS, None), {2, 3}), checkpoints=tmp_path, identity=JOB,
        watch=ignore)  # fmt: skip

    assert [entry["skipped_steps"] for entry in state.history] == [0, 0, 1, 2, 2, 2]
    assert "total" not in state.history[2]
    assert state.history[4]["total"] > 0


def test_too_many_of_them_in_a_row_stop_the_run_and_keep_what_was_at_fault(patches: Patches, tmp_path: Path) -> None:
    state = new()
    with pytest.raises(DataError, match=r"3 steps in a row up to iteration 5 were not finite \(now best_buddy, "):
        fit(state, patches, SETTINGS, poisoned(gan_step(SETTINGS, None), {2, 3, 4, 5}), checkpoints=tmp_path,
            identity=JOB, watch=ignore)  # fmt: skip

    kept = load_file(tmp_path / "not-finite-00000005-process-0.safetensors")
    assert kept["lr"].shape == (2, 3, 12, 12)
    assert not kept["value.best_buddy"].isfinite()
    assert not kept["gradient.generator.conv_first.weight"].isfinite().all()
    assert kept["hr"].isfinite().all()


def test_that_what_was_at_fault_cannot_be_kept_does_not_hide_the_fault(patches: Patches, small_disk: Path) -> None:
    def fill(*_: object) -> None:
        with suppress(OSError), (small_disk / "ballast").open("ab") as file:
            file.write(bytes(128 * 1024))

    step = poisoned(gan_step(SETTINGS, None), {0, 1, 2})
    with pytest.raises(DataError, match=r"training diverged: .* could not be kept \(cannot write .*: the disk is full"):
        fit(new(), patches, SETTINGS, step, checkpoints=small_disk / "job", identity=JOB, watch=fill)


def test_a_run_with_all_of_it_resumes_exactly(patches: Patches, tmp_path: Path) -> None:
    """fp16's scale, skipped steps, parts, clipping, the discriminator's head start: stopped amid it and gone on."""
    settings = replace(SETTINGS, precision="fp16", accumulate=2, clip_norm=0.5, discriminator_first=1, skip_limit=5)

    def trained(name: str, stopped_after: int | None = None) -> TrainState:
        def stop(iteration: int, _: Mapping[str, float] | None) -> None:
            if iteration == stopped_after:
                os.kill(os.getpid(), signal.SIGTERM)

        state = new(settings)
        step = poisoned(gan_step(settings, None), {1})
        fit(state, patches, settings, step, checkpoints=tmp_path / name, identity=JOB, watch=stop)
        return state

    whole = trained("whole")
    with pytest.raises(Preempted):
        trained("stopped", 3)
    resumed = trained("stopped")
    assert whole.guard.skipped >= 1
    assert whole.guard.scale < FIRST_SCALE
    assert_equal(resumed.state_dict(), whole.state_dict())


def poisoned(step: TrainStep, iterations: set[int]) -> TrainStep:
    def poison(state: TrainState, lr: Tensor, hr: Tensor) -> Mapping[str, Tensor]:
        return step(state, lr / 0 if state.iteration in iterations else lr, hr)

    return poison


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Patches:
    return read_patches(make_patches(tmp_path_factory.mktemp("patches")), "train")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_an_update_is_torchs_own_clipping_and_adam(channels_last: bool, clip_norm: float) -> None:
    settings = replace(SETTINGS, channels_last=channels_last, clip_norm=clip_norm, betas=(0.8, 0.99))
    state, step = new(settings, torch.float64), gan_step(settings, None)
    assert state.discriminator is not None
    networks = [copy.deepcopy(state.generator), copy.deepcopy(state.discriminator)]
    plain = [torch.optim.Adam(network.parameters(), RATE, settings.betas, foreach=False) for network in networks]
    for _ in range(3):
        values = step(state, *pair(dtype=torch.float64))
        for network, optimiser, trained, kind in zip(
            networks, plain, (state.generator, state.discriminator), ("generator", "discriminator"), strict=True
        ):
            norm = values[f"gradient_norm.{kind}"]
            assert norm > 0.01
            for parameter, theirs in zip(network.parameters(), trained.parameters(), strict=True):
                assert theirs.grad is not None
                # Adam left its gradients clipped: undone here, so that torch may clip them itself.
                parameter.grad = theirs.grad * (norm + 1e-6) / clip_norm if clip_norm else theirs.grad.clone()
            found = torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm or float("inf"))
            torch.testing.assert_close(found, norm, rtol=1e-6, atol=0)
            optimiser.step()
            for parameter, theirs in zip(network.parameters(), trained.parameters(), strict=True):
                torch.testing.assert_close(theirs.data, parameter.data, rtol=0, atol=1e-9)


def test_the_norm_that_is_logged_is_that_before_clipping() -> None:
    loose, tight = (new(), replace(SETTINGS, clip_norm=1e-4))
    norm = gan_step(SETTINGS, None)(loose, *pair())["gradient_norm.generator"]
    clipped = gan_step(tight, None)(new(), *pair())["gradient_norm.generator"]
    assert norm == clipped
    assert norm > 1e-4


@pytest.mark.parametrize("accumulate", [2, 4])
def test_gradients_of_parts_are_those_of_the_whole_batch(accumulate: int) -> None:
    losses = LossWeights(best_buddy=1, back_projection=1, perceptual=0, adversarial=0)
    settings = replace(SETTINGS, batch=4, losses=losses)
    whole, parts = new(settings, torch.float64), new(settings, torch.float64)
    batch = pair(4, torch.float64)

    expected = gan_step(settings, None)(whole, *batch)
    found = gan_step(replace(settings, accumulate=accumulate), None)(parts, *batch)

    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12, check_dtype=False)
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=0, atol=1e-14)
    assert_equal([*parts.generator_optimiser.state_dict()["state"]], [*whole.generator_optimiser.state_dict()["state"]])


def test_accumulating_works_with_the_discriminator_too() -> None:
    settings = replace(SETTINGS, batch=4, accumulate=2)
    state = new(settings)
    before = buffers_of(state.discriminator)
    values = gan_step(settings, None)(state, *pair(4))
    assert values["discriminator"].isfinite()
    assert not torch.equal(buffers_of(state.discriminator)[0], before[0])
    # Two parts of two passes each.
    assert state.discriminator is not None
    assert state.discriminator.get_buffer("bn0_1.num_batches_tracked") == 4


def test_the_discriminator_alone_learns_first() -> None:
    settings = replace(SETTINGS, discriminator_first=2)
    state, step = new(settings), gan_step(settings, None)
    before = everything(state)
    for iteration in range(3):
        state.iteration = iteration
        values = step(state, *pair())
        after = everything(state)
        weights = (("generator", "conv_last.weight"), ("discriminator", "linear1.weight"))
        learnt = [not torch.equal(after[kind][key], before[kind][key]) for kind, key in weights]
        assert learnt == [iteration == 2, True]
        assert ("best_buddy" in values, "discriminator" in values) == (iteration == 2, True)
        before = after


def test_fp16_halves_its_scale_at_an_overflow_and_leaves_the_step_out() -> None:
    settings = replace(SETTINGS, precision="fp16")
    state, step = new(settings), gan_step(settings, None)
    assert state.guard.scale == FIRST_SCALE
    state.guard.scale = torch.tensor(128.0)
    step(state, *pair())
    state.guard.scale = torch.tensor(2.0**40)
    before = everything(state)
    values = step(state, *pair())
    assert values["loss_scale"] == 2.0**40
    assert values["total"].isfinite()
    assert state.guard.scale == 2.0**39
    assert_equal(everything(state), before)


def test_fp16_doubles_its_scale_after_a_long_time_without_overflow() -> None:
    settings = replace(SETTINGS, precision="fp16")
    state, step = new(settings), gan_step(settings, None)
    state.guard.scale, state.guard.since_change = torch.tensor(1024.0), torch.tensor(1998.0)
    scales = [float(step(state, *pair())["loss_scale"]) for _ in range(3)]
    assert scales == [1024, 1024, 2048]


def test_the_scale_of_fp16_drops_out_of_the_gradients() -> None:
    settings = replace(SETTINGS, precision="fp16")
    low, full = new(settings), new()
    expected = gan_step(SETTINGS, None)(full, *pair())
    low.guard.scale = torch.tensor(256.0)
    found = gan_step(settings, None)(low, *pair())
    for name in ("generator", "discriminator"):
        torch.testing.assert_close(found[f"gradient_norm.{name}"], expected[f"gradient_norm.{name}"], rtol=0.02, atol=0)
    ours, theirs = (torch.cat([gradient.flatten() for gradient in gradients(state)]) for state in (low, full))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.98


def test_the_warm_up_skips_and_accumulates_alike() -> None:
    settings = replace(SETTINGS, accumulate=2)
    state, step = new(settings), warmup_step(settings)
    lr, hr = pair()
    step(state, lr, hr)
    before = everything(state)
    step(state, lr / 0, hr)
    # Of this one the loss alone is not finite: its gradient is a sign.
    step(state, lr, hr / 0)
    assert_equal(everything(state), before)
    assert state.guard.skipped == 2
    step(state, lr, hr)
    assert not torch.equal(state.generator.conv_last.weight, before["generator"]["conv_last.weight"])
