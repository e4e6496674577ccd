"""The training loop, the same for the warm-up and the GAN phase: only the step differs."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bebygan.errors import DataError, Preempted
from bebygan.imaging.shards import Patches
from bebygan.settings import Optimisation
from bebygan.training import checkpoint
from bebygan.training.sampling import batch
from bebygan.training.schedules import learning_rate
from bebygan.training.state import TrainState, decay_at, update_average

Step = Callable[[TrainState, Tensor, Tensor], Mapping[str, Tensor]]
"""One iteration on (state, LR, HR): updates the networks and returns named scalars, still on the device."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM came since; outside the main thread it never did."""
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
    for optimiser in (state.generator_optimiser, state.discriminator_optimiser):
        for group in optimiser.param_groups if optimiser else ():
            group["lr"] = rate
    return rate


def _logged(values: Mapping[str, Tensor], iteration: int) -> dict[str, float]:
    """Bring logged scalars to the host, which waits for the device; a value that is not finite ends the run."""
    names = list(values)
    numbers = torch.stack([values[name].float() for name in names]).tolist()
    logged = dict(zip(names, numbers, strict=True))
    wrong = [name for name, number in logged.items() if not torch.isfinite(torch.tensor(number))]
    if wrong:
        raise DataError(
            f"training diverged at iteration {iteration}: {', '.join(wrong)} not finite; lower the learning rate"
        )
    return logged


def fit(
    state: TrainState,
    patches: Patches,
    optimisation: Optimisation,
    step: Step,
    *,
    checkpoints: Path,
    job: checkpoint.Job,
    watch: Callable[[int, Mapping[str, float] | None], None],
    saved: checkpoint.Saved | None = None,
) -> None:
    """Train until `optimisation.iterations`, resuming from the newest checkpoint of the same job.

    Args:
        state: as `new_state` made it; changed in place.
        patches: of the training split.
        optimisation: how long and how fast.
        step: one iteration.
        checkpoints: folder of this job's checkpoints.
        job: what the run is made of; a checkpoint of another job is refused.
        watch: called after each iteration with its number and, every `log_every`, the logged values.
        saved: told of each checkpoint once it is written.

    Raises:
        Preempted: SIGTERM came; the state is saved.
        StorageError: nothing can be written to the folder at the start, or SIGTERM came and the state could not be
            saved. In between training goes on without, and says so.
        ConfigError: the checkpoints belong to another job.
        DataError: no patches, damaged checkpoints, or a loss that is not finite.
    """
    device = next(state.generator.parameters()).device
    with (
        stop_requests() as stop_requested,
        checkpoint.Checkpoints(checkpoints, job, optimisation.keep, saved) as saver,
    ):
        if (earlier := saver.load()) is not None:
            state.load_state_dict(earlier)
        while state.iteration < optimisation.iterations:
            first = state.iteration * optimisation.batch
            lr, hr = batch(patches, optimisation.seed, first, optimisation.batch, crop=optimisation.crop, device=device)
            rate = _set_rate(state, optimisation)
            values = step(state, lr, hr)
            decay = decay_at(state.iteration, optimisation.ema_decay)
            update_average(state.average, state.generator, decay)
            state.iteration += 1
            last = state.iteration == optimisation.iterations
            log_now = last or state.iteration % optimisation.log_every == 0
            if log_now:
                logged = _logged(values, state.iteration)
                state.history.append({"iteration": state.iteration, **logged, "learning_rate": rate})
            watch(state.iteration, state.history[-1] if log_now else None)
            stop = stop_requested()
            if last or stop or state.iteration % optimisation.checkpoint_every == 0:
                saver.save(state.iteration, state.state_dict())
            if stop and not last:
                saver.wait()
                raise Preempted(f"stopped on request after iteration {state.iteration}; run again to go on from there")
