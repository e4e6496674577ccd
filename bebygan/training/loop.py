"""The training loop, the same for the warm-up and the GAN phase: only the step differs."""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bebygan.distributed import (
    any_process,
    copy_from_first,
    rank,
    share_of,
    wait_for_all,
)
from bebygan.errors import DataError, Preempted, StorageError
from bebygan.files import whole_file
from bebygan.imaging.shards import Patches
from bebygan.networks.weights import safetensors_bytes
from bebygan.precision import tf32
from bebygan.settings import GanSettings, Optimisation
from bebygan.training import checkpoint
from bebygan.training.delivery import keep_best, stop_reason, worsening
from bebygan.training.sampling import Loader
from bebygan.training.schedules import learning_rate
from bebygan.training.state import TrainState
from bebygan.training.validation import Distance, check_validation, validate

TrainStep = Callable[[TrainState, Tensor, Tensor], Mapping[str, Tensor]]
"""One iteration on (state, LR, HR): updates networks and average; returns named scalars, still on the device."""
Watch = Callable[[int, Mapping[str, float] | None], None]
"""Called after each iteration with its number and, if there are new ones, the logged values."""
_log = logging.getLogger(__name__)
FAULTS = "not-finite-*.safetensors"
"""Names of the files beside the checkpoints with batch, losses and gradients of a training that diverged."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM was received; outside the main thread it is always False."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: requested.set())
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)


def _set_rate(state: TrainState, optimisation: Optimisation) -> float:
    rate = learning_rate(state.iteration, optimisation.schedule, optimisation.iterations)
    factor = optimisation.discriminator_rate if isinstance(optimisation, GanSettings) else 1.0
    for optimiser, own in ((state.generator_optimiser, rate), (state.discriminator_optimiser, factor * rate)):
        for group in optimiser.param_groups if optimiser else ():
            group["lr"] = own
    return rate


def _logged(state: TrainState) -> dict[str, float]:
    """Return the means of all processes and iterations since the last call. Waits for the device."""
    steps = {"skipped_steps": state.guard.skipped, "skipped_in_a_row": state.guard.in_a_row}
    means = [total / count for total, count in state.sums.values()]
    numbers = torch.stack([*means, *(value.double() for value in steps.values())]).tolist()
    names = (*state.sums, *steps)
    state.sums = {}
    return dict(zip(names, numbers, strict=True))


def _keep_faults(folder: Path, state: TrainState, lr: Tensor, hr: Tensor, values: Mapping[str, Tensor]) -> Path:
    """Write batch, values and the non-finite gradients into a file of this process and return its path."""
    networks = {"generator": state.generator, "discriminator": state.discriminator}
    gradients = {
        f"gradient.{kind}.{name}": parameter.grad
        for kind, network in networks.items()
        for name, parameter in (network.named_parameters() if network is not None else ())
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    }
    scalars = {f"value.{name}": value for name, value in values.items()}
    tensors = {"lr": lr, "hr": hr, **scalars, **gradients}
    path = folder / FAULTS.replace("*", f"{state.iteration:08d}-process-{rank()}")
    with whole_file(path) as temporary:
        temporary.write_bytes(
            safetensors_bytes({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {})
        )
    return path


class _Clock:
    """Measures training speed and the share of time spent waiting for data, between two logged values."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._iterations = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the body as waiting for the data of one iteration."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started
        self._iterations += 1

    def read(self, batch: int) -> dict[str, float]:
        """Return the values since the last call, and restart."""
        seconds = time.perf_counter() - self._started
        values = {
            "samples_per_second": self._iterations * batch / seconds,
            "data_wait_share": self._waited / seconds,
        }
        self._restart()
        return values


def _diverged(folder: Path, state: TrainState, lr: Tensor, hr: Tensor, values: Mapping[str, Tensor]) -> DataError:
    wrong = [name for name, value in values.items() if not value.isfinite()]
    try:
        faults = f"are in {_keep_faults(folder, state, lr, hr, values)}"
    except StorageError as error:
        faults = f"could not be kept ({error})"
    skipped, done = int(state.guard.in_a_row), state.iteration
    which = f"all {done} steps" if skipped == done else f"{skipped} steps in a row up to iteration {done}"
    return DataError(
        f"training diverged: {which} were not finite (now {', '.join(wrong) or 'on another process'}); "
        f"batch, losses and gradients {faults}: see the batch, lower the learning rate, or train in more precision"
    )


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out values that are not finite; a value may be although the step was finite."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _measured(
    state: TrainState, validation: Patches | None, optimisation: Optimisation, lpips: Distance | None
) -> dict[str, float]:
    """Validate the average if it is due, and keep it if it is the best; return the values."""
    at, every = state.iteration, optimisation.validate_every
    unchanged = 0 < at <= optimisation.first_change
    if not (validation and every) or unchanged or (at % every and at < optimisation.iterations):
        return {}
    result = state.result()
    measured = validate(result, validation, optimisation, lpips)
    if at:
        keep_best(state, result, measured, optimisation.deliver)
    return _finite({"iteration": at, **measured})


def _record(
    state: TrainState, entry: Mapping[str, float], watch: Watch, speed: Mapping[str, float] | None = None
) -> None:
    """Add the values of an iteration to the history, if there are any, and tell them."""
    if entry:
        state.history.append(_finite({"iteration": state.iteration, **entry}))
    if rank() == 0:
        watch(state.iteration, {**state.history[-1], **(speed or {})} if entry else None)


def fit(
    state: TrainState,
    patches: Patches,
    optimisation: Optimisation,
    step: TrainStep,
    *,
    checkpoints: Path,
    identity: checkpoint.RunIdentity,
    watch: Watch,
    saved: checkpoint.Saved | None = None,
    validation: Patches | None = None,
    lpips: Distance | None = None,
) -> None:
    """Train until `optimisation.iterations`, resuming from the newest checkpoint of the same run.

    The run stops before if validation gets worse by more than `optimisation.stop_when_worse`, with a warning.

    All processes within `bebygan.distributed.joined` call it with the same arguments; only the first logs and saves.

    Args:
        state: as `new_state` made it; changed in place.
        patches: of the training split.
        optimisation: how long and how fast.
        step: one iteration.
        checkpoints: folder of this run's checkpoints.
        identity: what the run is made of; checkpoints of a run with another identity are rejected.
        watch: gets the values of the history, and samples_per_second and data_wait_share, which differ from run to
            run; also called before the first iteration, with number 0, if the start is validated.
        saved: called with each checkpoint once it is written.
        validation: patches of the validation split, which the average is measured on at the start and every
            `optimisation.validate_every` iterations; None trains without, and delivers the last average.
        lpips: measures validation.lpips; needed if the best average or checkpoint is chosen by it.

    Raises:
        Preempted: SIGTERM came; the state is saved.
        StorageError: nothing can be written to the folder at the start, or SIGTERM came and the state could not be
            saved. In between, training continues without a checkpoint and warns.
        ConfigError: the checkpoints belong to another run, or the batch cannot be divided among the processes.
        DataError: no patches to train or validate on, damaged checkpoints, or losses or gradients that are not finite
            in all steps, or in more than `optimisation.skip_limit` in a row; the last of them is kept in a file.
        WeightsError: a checkpoint contains numbers that are not finite.
    """
    check_validation(optimisation, validation, lpips)
    device = next(state.generator.parameters()).device
    share = share_of(optimisation.batch, optimisation.accumulate)
    with (
        stop_requests() as stop_requested,
        checkpoint.Checkpoints(checkpoints, identity, optimisation.keep, saved) as saver,
        Loader(patches, optimisation, share, device) as loader,
        tf32(optimisation.tf32),
    ):
        if (earlier := saver.load()) is not None:
            state.load_state_dict(earlier)
        copy_from_first(state.tensors())
        if not state.iteration and (entry := _measured(state, validation, optimisation, lpips)):
            _record(state, entry, watch)
        clock = _Clock()
        while state.iteration < optimisation.iterations and not state.stopped:
            with clock.waiting():
                lr, hr = loader.load(state.iteration)
            rate = _set_rate(state, optimisation)
            values = step(state, lr, hr)
            state.add(values)
            state.iteration += 1
            last = state.iteration == optimisation.iterations
            speed: dict[str, float] = {}
            entry = _measured(state, validation, optimisation, lpips)
            worse = worsening([*state.history, entry], optimisation.stop_when_worse) if entry else {}
            last = last or bool(worse)
            if last or state.iteration % optimisation.log_every == 0:
                entry |= _logged(state)
                in_a_row = entry.pop("skipped_in_a_row")
                if in_a_row > optimisation.skip_limit or (last and in_a_row == state.iteration):
                    raise _diverged(checkpoints, state, lr, hr, values)
                entry["learning_rate"] = rate
                speed = clock.read(optimisation.batch)
            if last and state.best is not None:
                entry["delivered"] = state.best.iteration
            _record(state, entry | worse, watch, speed)
            if rank() == 0 and (reason := stop_reason(worse, state.iteration)):
                _log.warning("warning: %s", reason)
            stop = any_process(stop_requested())
            if last or stop or state.iteration % optimisation.checkpoint_every == 0:
                saver.save(state.iteration, state.state_dict(), stopped=state.stopped)
            if stop and not last:
                saver.wait()
                wait_for_all()
                raise Preempted(
                    f"stopped on request after iteration {state.iteration}; run again to continue from there"
                )
