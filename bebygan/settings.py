"""What networks and training are told. Values stand in params.yaml; nothing here has a default, or needs torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bebygan import SCALE

Precision = Literal["auto", "fp32", "bf16", "fp16"]
VggName = Literal["vgg16", "vgg19"]
Pyramid = Literal["matlab", "official"]
MaskSource = Literal["hr", "lr"]
ValidationMetric = Literal["validation.psnr_y", "validation.l1"]


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def vgg_layers(network: VggName) -> dict[str, int]:
    """Return torchvision's index in `features` of each convolution by name: {"conv1_1": 0, "conv1_2": 2, ...}."""
    layers, index = {}, 0
    for block, count in enumerate((2, 2, 3, 3, 3) if network == "vgg16" else (2, 2, 4, 4, 4), start=1):
        for position in range(1, count + 1):
            layers[f"conv{block}_{position}"] = index
            index += 2
        index += 1
    return layers


def discriminator_stages(crop: int) -> int:
    """Return how often the discriminator halves a crop of so many pixels: until its map would be smaller than 3.

    Raises:
        ValueError: halving ends on an odd map larger than 7, whose linear layer would outweigh all the rest.
    """
    side, stages = crop, 0
    while side % 2 == 0 and side // 2 >= 3:
        side //= 2
        stages += 1
    require(
        stages > 0 and side <= 7,
        f"the discriminator takes crops of 3, 4, 5 or 7 times a power of two (96, 128, 160, 192, 224, 256, ...), "
        f"got {crop}",
    )
    return stages


class Settings:
    """Base of the settings below."""

    # Read by pydantic where settings come from a file: a name that is not known is refused, and so is .nan or .inf.
    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class GeneratorShape(Settings):
    """Size of a generator. The paper's is 23 blocks, 64 features, growth 32: 16,697,987 parameters."""

    blocks: int
    """Residual-in-residual dense blocks."""
    features: int
    """Channels between the blocks."""
    growth: int
    """Channels that each dense convolution adds."""

    def __post_init__(self) -> None:
        for name in ("blocks", "features", "growth"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Schedule(Settings):
    """Learning rate over the iterations: linear warm-up, then cosine with restarts or steps."""

    shape: Literal["cosine", "steps"]
    """Cosine from the peak to the floor in each cycle, or the peak lowered at each milestone."""
    peak: float
    """Learning rate after the warm-up."""
    floor: float
    """Cosine only: learning rate at the end of a cycle."""
    cycle: int
    """Cosine only: iterations before a restart at the peak; 0 is one cycle for the whole run."""
    warmup: int
    """Iterations of linear warm-up at the start; with the cosine, of each cycle."""
    warmup_from: float
    """Share of the peak that the warm-up starts from."""
    milestones: tuple[int, ...]
    """Steps only: iterations at which the rate is multiplied by `decay`."""
    decay: float
    """Steps only: the factor at each milestone."""

    def __post_init__(self) -> None:
        require(self.peak > 0, f"peak must be positive, got {self.peak}")
        require(0 <= self.floor <= self.peak, f"floor must lie in [0, peak], got {self.floor}")
        require(self.cycle >= 0, f"cycle must not be negative, got {self.cycle}")
        require(self.warmup >= 0, f"warmup must not be negative, got {self.warmup}")
        require(0 <= self.warmup_from <= 1, f"warmup_from must lie in [0, 1], got {self.warmup_from}")
        require(0 < self.decay <= 1, f"decay must lie in (0, 1], got {self.decay}")


@dataclass(frozen=True, kw_only=True)
class Retention(Settings):
    """Which checkpoints stay; each is kept that any of these asks for."""

    newest: int
    """So many of the newest, at least two: the last one may have been written while the disk failed."""
    every: int
    """Those of iterations that are a multiple of this; 0 keeps none for that."""
    best: ValidationMetric | None
    """The one with the best value of this; none keeps none for that."""

    def __post_init__(self) -> None:
        require(self.newest >= 2, f"newest must be at least 2, got {self.newest}")
        require(self.every >= 0, f"every must not be negative, got {self.every}")


@dataclass(frozen=True, kw_only=True)
class Optimisation(Settings):
    """How long, on what, and how fast; the same for the warm-up and the GAN phase."""

    iterations: int
    """Optimiser steps; 0 leaves the weights as they are."""
    batch: int
    """Patch pairs in one iteration, over all processes."""
    crop: int
    """Side of an HR training crop, pixels; a multiple of the scale."""
    schedule: Schedule
    betas: tuple[float, float]
    """Weight of the past in Adam's averages of the gradients and of their squares (official: 0.9, 0.999)."""
    ema_decay: float
    """Weight of the past in the moving average of the generator; less during the first iterations."""
    precision: Precision
    """Arithmetic of the networks. auto: bf16 where the processor computes it natively, else fp32. fp16 scales losses,
    so that small gradients do not vanish; the scale halves at each overflow, whose step is skipped."""
    tf32: bool
    """Whether fp32 convolutions and products of the networks may round their inputs to TF32 on GPUs that have it. The
    best-buddy search, the mask and bicubic never do."""
    compile: bool
    """Compile generator and discriminator: minutes at the start for a few percent; without a compiler they run as
    they are, and a warning says so."""
    channels_last: bool
    """Memory order of the networks; faster on most processors and GPUs, the same numbers within float noise."""
    accumulate: int
    """Parts that a process computes its share of the batch in, for less memory. Losses and gradients are those of the
    whole batch, but batch norm and the relativistic mean see one part (of all processes) at a time."""
    clip_norm: float
    """Norm that the gradient of each network is scaled down to where it is larger; 0 never does."""
    skip_limit: int
    """Steps in a row whose losses or gradients are not finite, and which are skipped, before the run stops."""
    seed: int
    validate_every: int
    """Iterations between two measurements of the averaged generator on patches of the validation split; 0 is never."""
    validate_patches: int
    """Patches of the validation split that are measured, spread evenly over it; fewer where it has fewer."""
    checkpoint_every: int
    """Iterations between checkpoints; one is also written at the end."""
    keep: Retention
    log_every: int
    """Iterations between two logged values."""
    picture_every: int
    """Iterations between two pictures of what the averaged generator makes of a few patches; 0 is never."""

    def __post_init__(self) -> None:
        require(self.iterations >= 0, f"iterations must not be negative, got {self.iterations}")
        for name in ("batch", "accumulate", "skip_limit", "validate_patches", "checkpoint_every", "log_every"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(
            self.batch % self.accumulate == 0,
            f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}",
        )
        require(self.clip_norm >= 0, f"clip_norm must not be negative, got {self.clip_norm}")
        for name in ("validate_every", "picture_every"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require(
            self.keep.best is None or self.validate_every > 0,
            f"keep.best is {self.keep.best}, which nobody measures: set validate_every above 0, or keep.best to null",
        )
        require(
            self.crop >= 12 * SCALE and self.crop % SCALE == 0,
            f"crop must be a multiple of {SCALE} and at least {12 * SCALE}, got {self.crop}",
        )
        require(
            all(0 <= beta < 1 for beta in self.betas), f"betas must lie in [0, 1), got {self.betas[0]}, {self.betas[1]}"
        )
        require(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        require(self.seed >= 0, f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class BestBuddySettings(Settings):
    """What the best-buddy loss depends on besides the images."""

    alpha: float
    """Weight of the distance from a candidate to the SR patch (paper: 1)."""
    beta: float
    """Weight of the distance from a candidate to the HR patch at the same place (paper: 1)."""
    patch: int
    """Side of the square patches, pixels (paper: 3)."""
    stride: int
    """Distance between neighbouring patches, pixels (paper: 3)."""
    pyramid: Pyramid
    """How the candidates' half and quarter are made. matlab: antialiased bicubic, as the paper writes. official:
    bicubic with a = -0.75 and no antialiasing, as the official code does."""
    chunk: int
    """Patches of SR searched at a time: speed and memory only, never the result."""

    def __post_init__(self) -> None:
        require(
            min(self.alpha, self.beta) >= 0 and self.alpha + self.beta > 0,
            f"alpha and beta must not be negative nor both 0, got {self.alpha} and {self.beta}",
        )
        for name in ("patch", "stride", "chunk"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RegionSettings(Settings):
    """Which regions the discriminator sees: those where luma deviates within a window."""

    mask_from: MaskSource
    """Image that the mask is computed on. hr: as the paper writes. lr: the enlarged LR, as the official code does."""
    window: int
    """Side of the window, odd, pixels (paper: 11)."""
    threshold: float
    """Standard deviation of luma in [0, 1] below which a pixel is flat (paper: 0.025); 0 hides nothing."""

    def __post_init__(self) -> None:
        require(self.window >= 3 and self.window % 2 == 1, f"window must be odd and at least 3, got {self.window}")
        require(0 <= self.threshold <= 1, f"threshold must lie in [0, 1], got {self.threshold}")


@dataclass(frozen=True, kw_only=True)
class LossWeights(Settings):
    """Weight of each of the generator's losses (paper: 1, 1, 1, 0.005). One of weight 0 is not computed."""

    best_buddy: float
    back_projection: float
    perceptual: float
    adversarial: float

    def __post_init__(self) -> None:
        values = [self.best_buddy, self.back_projection, self.perceptual, self.adversarial]
        require(min(values) >= 0 and max(values) > 0, f"loss weights must not be negative nor all 0, got {values}")


@dataclass(frozen=True, kw_only=True)
class PerceptualSettings(Settings):
    """Which features of which network SR and HR are compared by."""

    network: VggName
    taps: tuple[tuple[str, float], ...]
    """Convolutions, taken before their ReLU, and their weights (paper: VGG19 conv3_4 1/8, conv4_4 1/4, conv5_4 1/2)."""

    def __post_init__(self) -> None:
        require(bool(self.taps), "taps must name at least one convolution, such as conv5_4")
        for tap, _ in self.taps:
            require(
                tap in vgg_layers(self.network),
                f"{self.network} has no {tap}; it has {', '.join(vgg_layers(self.network))}",
            )
        require(min(weight for _, weight in self.taps) > 0, f"the weights of taps must be positive, got {self.taps}")


@dataclass(frozen=True, kw_only=True)
class GanSettings(Optimisation):
    """Beby-GAN training from a warm-up generator."""

    losses: LossWeights
    best_buddy: BestBuddySettings
    region: RegionSettings
    perceptual: PerceptualSettings
    discriminator_width: int
    """Channels of the discriminator's first stage (official: 32)."""
    discriminator_first: int
    """Iterations at the start in which the discriminator alone learns."""
    relativistic_mean: Literal["global", "local"]
    """Logits that each logit is judged against. global: of all processes, so that the loss does not depend on their
    number. local: of its own process, as the official code does."""

    def __post_init__(self) -> None:
        Optimisation.__post_init__(self)
        require(
            self.discriminator_first >= 0, f"discriminator_first must not be negative, got {self.discriminator_first}"
        )
        require(
            self.discriminator_first == 0 or self.losses.adversarial > 0,
            "discriminator_first needs an adversarial loss of weight above 0: without one there is no discriminator",
        )
        if self.losses.adversarial:
            discriminator_stages(self.crop)
        require(
            self.discriminator_width >= 1, f"discriminator_width must be at least 1, got {self.discriminator_width}"
        )
