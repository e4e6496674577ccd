"""A run delivers the best average of its validations, also after a stop, and refuses what it cannot measure."""

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bebygan.errors import DataError, Preempted
from bebygan.imaging import Image
from bebygan.imaging.shards import Patches, read_patches
from bebygan.settings import Delivery, GanSettings, LearningRateSchedule, StopRule
from bebygan.training.delivery import choose_share, score, stop_reason, worsening
from bebygan.training.loop import fit
from bebygan.training.state import TrainState
from bebygan.training.step import gan_step
from tests.bebygan.training.test_loop import JOB, SETTINGS, assert_equal, ignore, make_patches, state

DELIVERED = replace(
    SETTINGS,
    iterations=8,
    validate_every=2,
    validate_patches=2,
    deliver=Delivery(by="validation.lpips", lr_psnr_floor=None),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_patches(tmp_path_factory.mktemp("patches"))


class Scripted:
    """A stand-in for LPIPS: a value for each of the validations, of two patches each."""

    def __init__(self, *values: float) -> None:
        self.values = [value for value in values for _ in range(2)]

    def __call__(self, _: Image, __: Image) -> float:
        return self.values.pop(0)


def trained(
    folder: Path, checkpoints: Path, lpips: Scripted, settings: GanSettings = DELIVERED, stop_after: int | None = None
) -> TrainState:
    result = state(settings)

    def watch(iteration: int, values: Mapping[str, float] | None) -> None:
        ignore(iteration, values)
        if iteration == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    train, validation = (read_patches(folder, split) for split in ("train", "validation"))
    fit(
        result, train, settings, gan_step(settings, None), checkpoints=checkpoints, identity=JOB, watch=watch,
        validation=validation, lpips=lpips,
    )  # fmt: skip
    return result


def weights(result: TrainState) -> dict[str, Tensor]:
    return result.delivered()[0].state_dict()


def test_the_best_average_is_delivered_and_not_the_last(folder: Path, tmp_path: Path) -> None:
    result = trained(folder, tmp_path, Scripted(0.1, 0.5, 0.3, 0.4, 0.6))
    assert result.delivered()[1] == 4
    assert not torch.equal(weights(result)["conv_last.weight"], result.average.state_dict()["conv_last.weight"])
    assert result.history[-1]["delivered"] == 4
    assert result.history[0].keys() >= {"iteration", "validation.lpips"}
    assert not any("delivered" in entry for entry in result.history[:-1])


def test_what_is_delivered_is_the_average_of_that_iteration(folder: Path, tmp_path: Path) -> None:
    constant = LearningRateSchedule(
        shape="steps", peak=1e-3, floor=0, cycle=0, warmup=0, warmup_from=1, milestones=(), decay=1
    )
    settings = replace(DELIVERED, schedule=constant)
    result = trained(folder, tmp_path / "long", Scripted(0.1, 0.5, 0.3, 0.4, 0.6), settings)
    at_4 = trained(folder, tmp_path / "short", Scripted(0.1, 0.5, 0.3), replace(settings, iterations=4))
    assert_equal(weights(result), at_4.average.state_dict())


def test_the_start_is_measured_but_never_delivered(folder: Path, tmp_path: Path) -> None:
    settings = replace(DELIVERED, discriminator_first=3)
    # Not measured at iteration 2: the generator is still that of the start.
    result = trained(folder, tmp_path, Scripted(0.0, 0.5, 0.3, 0.4), settings)
    assert [entry["iteration"] for entry in result.history if "validation.lpips" in entry] == [0, 4, 6, 8]
    assert result.delivered()[1] == 6


@pytest.mark.parametrize("stopped_after", range(1, 8))
def test_a_stopped_run_delivers_what_one_delivers_that_was_never_stopped(
    folder: Path, tmp_path: Path, stopped_after: int
) -> None:
    values = (0.1, 0.5, 0.3, 0.4, 0.6)
    done = 1 + stopped_after // 2
    with pytest.raises(Preempted):
        trained(folder, tmp_path / "stopped", Scripted(*values[:done]), stop_after=stopped_after)
    resumed = trained(folder, tmp_path / "stopped", Scripted(*values[done:]))
    whole = trained(folder, tmp_path / "whole", Scripted(*values))
    assert_equal(resumed.state_dict(), whole.state_dict())
    assert_equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("by", ["last", "validation.lpips"])
def test_a_share_of_the_start_is_mixed_into_what_is_delivered_after_a_stop_too(
    folder: Path, tmp_path: Path, by: Any
) -> None:
    mixed = replace(DELIVERED, deliver=Delivery(by=by), start_share=0.25)
    with pytest.raises(Preempted):
        trained(folder, tmp_path / "a", Scripted(0.1, 0.5), mixed, stop_after=3)
    result = trained(folder, tmp_path / "a", Scripted(0.4, 0.3, 0.2), mixed)
    pure = trained(folder, tmp_path / "b", Scripted(0.1, 0.5, 0.4, 0.3, 0.2), replace(mixed, start_share=0.0))
    assert_equal(result.average.state_dict(), pure.average.state_dict())
    for name, start in state().generator.state_dict().items():
        torch.testing.assert_close(weights(result)[name], 0.25 * start + 0.75 * weights(pure)[name])


def test_the_last_average_is_delivered_on_request(folder: Path, tmp_path: Path) -> None:
    last = replace(DELIVERED, deliver=Delivery(by="last"))
    result = trained(folder, tmp_path, Scripted(0.1, 0.5, 0.3, 0.4, 0.6), last)
    assert result.delivered() == (result.average, 8)


def test_a_floor_on_lr_psnr_comes_before_the_metric() -> None:
    deliver = Delivery(by="validation.lpips", lr_psnr_floor=38.0)
    values = {
        "above, good": {"validation.lpips": 0.1, "validation.lr_psnr": 39.0},
        "above, better LR-PSNR": {"validation.lpips": 0.2, "validation.lr_psnr": 45.0},
        "just below": {"validation.lpips": 0.05, "validation.lr_psnr": 37.9},
        "far below": {"validation.lpips": 0.01, "validation.lr_psnr": 30.0},
    }
    ranks = {name: score(measured, deliver) or (0.0, 0.0) for name, measured in values.items()}
    assert sorted(ranks, key=lambda name: ranks[name], reverse=True) == list(values)


def test_higher_or_lower_is_better_by_the_metric() -> None:
    for name, higher in (("psnr_y", True), ("lr_psnr", True), ("l1", False), ("lpips", False)):
        deliver = Delivery(by=f"validation.{name}")  # type: ignore[arg-type]
        low, high = (score({f"validation.{name}": value}, deliver) for value in (1.0, 2.0))
        assert low is not None
        assert high is not None
        assert (high > low) is higher
    assert score({"validation.psnr_y": float("nan")}, Delivery(by="validation.psnr_y")) is None
    assert score({"validation.psnr_y": 1.0}, Delivery(by="last")) is None


def test_an_empty_validation_split_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    train = read_patches(folder, "train")
    empty = Patches(train.hr, train.lr, train.windows[:0], train.size, train.made_from)
    for deliver in (DELIVERED.deliver, Delivery(by="last")):
        settings = replace(DELIVERED, deliver=deliver)
        with pytest.raises(DataError, match=r"no patches to validate on.*raise ingest\.validation_share") as error:
            fit(
                state(), train, settings, gan_step(settings, None), checkpoints=tmp_path, identity=JOB, watch=ignore,
                validation=empty, lpips=lambda *_: 0.0,
            )  # fmt: skip
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_lpips_must_be_given_where_the_average_is_chosen_by_it(folder: Path, tmp_path: Path) -> None:
    train, validation = (read_patches(folder, split) for split in ("train", "validation"))
    with pytest.raises(ValueError, match="pass a function that measures it"):
        fit(
            state(), train, DELIVERED, gan_step(DELIVERED, None), checkpoints=tmp_path, identity=JOB, watch=ignore,
            validation=validation,
        )  # fmt: skip


def test_a_training_without_validation_patches_delivers_the_last_average(folder: Path, tmp_path: Path) -> None:
    result = state(DELIVERED)
    train = read_patches(folder, "train")
    fit(result, train, DELIVERED, gan_step(DELIVERED, None), checkpoints=tmp_path, identity=JOB, watch=ignore)
    assert result.delivered() == (result.average, 8)


def test_an_average_of_equal_value_does_not_replace_the_first(folder: Path, tmp_path: Path) -> None:
    assert trained(folder, tmp_path, Scripted(0.1, 0.5, 0.3, 0.3, 0.3)).delivered()[1] == 4


def test_a_run_that_gets_worse_stops_itself_and_says_why(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(DELIVERED, iterations=20, stop_when_worse=StopRule(validations=2, psnr_y=None, lpips=0.05))
    values = (0.1, 0.5, 0.3, 0.4, 0.34, 0.36, 0.42)
    result = trained(folder, tmp_path / "whole", Scripted(*values), settings)
    assert (result.iteration, result.delivered()[1]) == (12, 4)
    assert result.history[-1]["stopped.lpips"] == pytest.approx(0.12)
    assert result.history[-1]["delivered"] == 4
    assert "total" in result.history[-1]
    [warning] = [record.getMessage() for record in caplog.records if "stopped itself" in record.getMessage()]
    assert warning == (
        "warning: training stopped itself after iteration 12: LPIPS on the validation photographs was 0.1200 above the "
        "lowest of the run (stop_when_worse); lower the learning rate to train for longer"
    )

    again = trained(folder, tmp_path / "whole", Scripted(), settings)
    assert_equal(again.state_dict(), result.state_dict())
    with pytest.raises(Preempted):
        trained(folder, tmp_path / "stopped", Scripted(*values[:6]), settings, stop_after=11)
    resumed = trained(folder, tmp_path / "stopped", Scripted(*values[6:]), settings)
    assert_equal(resumed.state_dict(), result.state_dict())


def measured(**values: list[float]) -> list[dict[str, float]]:
    """Return a history of validations, the first one of the start."""
    rows = zip(*values.values(), strict=True)
    return [
        {"iteration": 10.0 * number, **{f"validation.{name}": value for name, value in zip(values, row, strict=True)}}
        for number, row in enumerate(rows)
    ]


def test_psnr_is_compared_with_the_start_and_lpips_with_the_lowest_after_it() -> None:
    rule = StopRule(validations=2, psnr_y=1.5, lpips=0.03)
    falling = measured(psnr_y=[27.0, 25.6, 25.4, 25.0], lpips=[0.1, 0.2, 0.2, 0.2])
    assert worsening(falling[:3], rule) == {}
    assert worsening(falling, rule) == {"stopped.psnr_y": pytest.approx(2.0)}
    rising = measured(psnr_y=[27.0] * 5, lpips=[0.1, 0.2, 0.15, 0.19, 0.185])
    assert worsening(rising, rule) == {"stopped.lpips": pytest.approx(0.035)}
    assert worsening(rising[:4], rule) == {}
    assert worsening(rising, StopRule(validations=2, psnr_y=1.5, lpips=None)) == {}
    assert worsening(rising, StopRule(validations=9, psnr_y=1.5, lpips=0.03)) == {}
    # History of a checkpoint of an earlier version: the start was not measured.
    assert worsening(falling[1:], rule) == {}
    assert worsening([], rule) == {}


def test_a_run_that_did_not_stop_gives_no_reason() -> None:
    assert stop_reason({"iteration": 4, "total": 1.0}, 4) is None


def test_the_share_of_the_start_with_the_best_rank_is_delivered(folder: Path, tmp_path: Path) -> None:
    settings = replace(DELIVERED, start_share=0.25, start_shares=(0.5, 0.75))
    values = {0.25: 0.3, 0.5: 0.1, 0.75: 0.1}

    def chosen(result: TrainState, values: Mapping[float, float]) -> Mapping[float, Mapping[str, float]]:
        left = list(values.values())
        return choose_share(
            result, lambda _: {"validation.lpips": left.pop(0)}, settings.start_shares, settings.deliver
        )

    result = trained(folder, tmp_path, Scripted(0.1, 0.5, 0.3, 0.4, 0.6), settings)
    before, start = weights(result), result.start
    found = chosen(result, values)
    assert {share: measured["validation.lpips"] for share, measured in found.items()} == values
    assert (result.start_share, result.delivered()[1]) == (0.5, 4)
    mixed = before["conv_first.weight"].lerp(start["conv_first.weight"], 1 / 3)
    torch.testing.assert_close(weights(result)["conv_first.weight"], mixed)
    # The same share as before leaves the weights as they are.
    again = weights(result)
    chosen(result, {0.5: 0.1, 0.75: 0.2})
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(result).items())
    last = replace(DELIVERED, deliver=Delivery(by="last"), start_share=0.25, start_shares=(0.5,))
    result = trained(folder, tmp_path / "last", Scripted(0.1, 0.5, 0.3, 0.4, 0.6), last)
    assert chosen(result, {}) == {}
