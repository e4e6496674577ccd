"""Training: one iteration of each phase, and a loop around it with checkpoints, validation and divergence checks."""

from bebygan.training.checkpoint import Checkpoints, RunIdentity
from bebygan.training.loop import TrainStep, fit
from bebygan.training.sampling import batch
from bebygan.training.schedules import learning_rate
from bebygan.training.state import TrainState, new_state, update_average
from bebygan.training.step import gan_step, warmup_step

__all__ = [
    "Checkpoints",
    "RunIdentity",
    "TrainState",
    "TrainStep",
    "batch",
    "fit",
    "gan_step",
    "learning_rate",
    "new_state",
    "update_average",
    "warmup_step",
]
