"""One iteration of each phase."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from bebygan.training.loop import Step
from bebygan.training.precision import autocast
from bebygan.settings import Precision
from bebygan.training.state import TrainState


def warmup_step(precision: Precision) -> Step:
    """Return the PSNR-oriented iteration: mean absolute difference to the HR crop."""

    def step(state: TrainState, lr: Tensor, hr: Tensor) -> Mapping[str, Tensor]:
        with autocast(precision, lr.device):
            sr = state.generator(lr)
        loss = F.l1_loss(sr.float(), hr)
        state.generator_optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.generator_optimiser.step()
        return {"pixel": loss.detach()}

    return step
