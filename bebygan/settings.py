"""Settings of networks, losses and training. Defaults are the paper's values (arXiv 2103.15295); needs no torch."""

import operator
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from bebygan import SCALE
from bebygan.networks.architecture import PAPER_TAPS, VggName, discriminator_stages, vgg_layers

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Pyramid = Literal["matlab", "official"]
Objective = Literal["psnr", "perceptual"]
"""What a generator was trained for: small differences of pixels, or pictures that look real."""
MaskSource = Literal["hr", "lr"]
ExportKind = Literal["onnx", "ncnn", "safetensors"]
ValidationMetric = Literal["validation.psnr_y", "validation.l1", "validation.lpips", "validation.lr_psnr"]
HIGHER_IS_BETTER: frozenset[ValidationMetric] = frozenset({"validation.psnr_y", "validation.lr_psnr"})
"""Of the other metrics of validation, lower values are better."""

_COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What a field of `Settings` must satisfy, as in `Annotated[int, Constraint(at_least=1)]`.

    A tuple's elements and a mapping's values must all satisfy it; None always does.
    """

    odd: bool = False
    multiple_of: int | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    pattern: str | None = None
    """Regular expression that the whole text must match."""

    def allows(self, value: Any) -> bool:
        """Return whether a value satisfies all conditions; NaN satisfies no comparison."""
        if isinstance(value, dict):
            value = tuple(value.values())
        if value is None or isinstance(value, tuple | list):
            return all(self.allows(element) for element in value or ())
        if self.pattern is not None:
            return re.fullmatch(self.pattern, value) is not None
        bounds = [(compare, getattr(self, name)) for name, compare in _COMPARISONS.items()]
        return (
            all(bound is None or compare(value, bound) for compare, bound in bounds)
            and (not self.odd or value % 2 == 1)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )

    def __str__(self) -> str:
        if self.pattern is not None:
            return f"match {self.pattern}"
        rules = ["odd"] * self.odd + [f"a multiple of {self.multiple_of}"] * (self.multiple_of is not None)
        rules += [
            f"{name.replace('_', ' ')} {getattr(self, name)}"
            for name in _COMPARISONS
            if getattr(self, name) is not None
        ]
        return f"be {' and '.join(rules)}"


Count = Annotated[int, Constraint(at_least=1)]
NotNegative = Annotated[int, Constraint(at_least=0)]
Weight = Annotated[float, Constraint(at_least=0)]
Share = Annotated[float, Constraint(at_least=0, at_most=1)]


def _constraints(kind: type) -> dict[str, Constraint]:
    """Return the constraints of a class's fields, those inside `... | None` included."""
    return {
        name: mark
        for name, hint in get_type_hints(kind, include_extras=True).items()
        for part in (hint, *get_args(hint))
        for mark in getattr(part, "__metadata__", ())
        if isinstance(mark, Constraint)
    }


class Settings:
    """Base of frozen, keyword-only dataclasses whose fields are checked against their `Constraint`.

    Raises:
        ValueError: a value does not satisfy the constraint of its field, or contradicts another one.
    """

    # pydantic reads this when settings come from a file: unknown names, NaN and infinity are rejected.
    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        for name, constraint in _constraints(type(self)).items():
            value = getattr(self, name)
            require(constraint.allows(value), f"{name} must {constraint}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class GeneratorShape(Settings):
    """Size of a generator; the default, the paper's, has 16,697,987 parameters.

    Attributes:
        blocks: residual-in-residual dense blocks.
        features: channels between the blocks.
        growth: channels that each dense convolution adds.
    """

    blocks: Count = 23
    features: Count = 64
    growth: Count = 32


@dataclass(frozen=True, kw_only=True)
class LearningRateSchedule(Settings):
    """Learning rate over the iterations: linear warm-up, then cosine with restarts, or steps.

    Attributes:
        shape: cosine from `peak` to `floor` in each cycle, or `peak` lowered at each milestone.
        peak: learning rate after the warm-up.
        floor: cosine only: learning rate at the end of a cycle, at most `peak`.
        cycle: cosine only: iterations before a restart at `peak`; 0 makes the whole run one cycle.
        warmup: iterations of linear warm-up at the start; with the cosine, of each cycle.
        warmup_from: share of `peak` that the warm-up starts from.
        milestones: steps only: iterations at which the rate is multiplied by `decay`.
        decay: steps only: the factor at each milestone.
    """

    shape: Literal["cosine", "steps"] = "cosine"
    peak: Annotated[float, Constraint(above=0)] = 1e-4
    floor: Weight = 1e-7
    cycle: NotNegative = 200_000
    warmup: NotNegative = 2000
    warmup_from: Share = 0.1
    milestones: tuple[int, ...] = ()
    decay: Annotated[float, Constraint(above=0, at_most=1)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.floor <= self.peak, f"floor must be at most peak, got {self.floor} and {self.peak}")


@dataclass(frozen=True, kw_only=True)
class Retention(Settings):
    """Which checkpoints are kept: all that at least one of these asks for.

    Attributes:
        newest: this many of the newest. At least two, because the disk may fail while the last one is written.
        every: those of iterations that are a multiple of this; 0 asks for none.
        best: the one with the best value of this metric; None asks for none.
    """

    newest: Annotated[int, Constraint(at_least=2)] = 3
    every: NotNegative = 100_000
    best: ValidationMetric | None = "validation.psnr_y"


@dataclass(frozen=True, kw_only=True)
class Delivery(Settings):
    """Which average of the generator a run delivers.

    Attributes:
        by: metric of validation by which the best average is chosen, among those after the generator first changed;
            last takes that of the end of the run.
        lr_psnr_floor: an average whose validation.lr_psnr, dB, is below this is only chosen while none reaches it, and
            then the one with the highest; null asks for none.
    """

    by: ValidationMetric | Literal["last"] = "last"
    lr_psnr_floor: Weight | None = None


@dataclass(frozen=True, kw_only=True)
class StopRule(Settings):
    """When a run that gets worse stops itself: one of these limits was exceeded in several validations in a row.

    Attributes:
        validations: how many of them.
        psnr_y: dB by which validation.psnr_y is below that of the start; null sets no limit.
        lpips: by how much validation.lpips is above the lowest since the generator first changed; null sets no limit.
    """

    validations: Count = 3
    psnr_y: Weight | None = 1.5
    lpips: Weight | None = None


@dataclass(frozen=True, kw_only=True)
class Optimisation(Settings):
    """How long, on what, and how fast to train; the same for the warm-up and the GAN phase.

    Attributes:
        iterations: optimiser steps; 0 leaves the weights as they are.
        batch: patch pairs in one iteration, over all processes.
        crop: side of an HR training crop, pixels.
        schedule: learning rate over the iterations.
        betas: Adam's decay rates of the averages of gradients and of their squares.
        ema_decay: decay rate of the moving average of the generator's weights; smaller in the first iterations.
        precision: arithmetic of the networks. auto: bf16 where the processor computes it natively, else fp32. fp16
            scales losses, so that small gradients do not vanish; an overflow halves the scale and skips the step.
        tf32: whether fp32 convolutions and matrix products of the networks may round their inputs to TF32 on GPUs that
            have it. Best-buddy search, mask and bicubic never do.
        compile: whether to compile generator and discriminator, which takes minutes at the start and saves a few
            percent. Without a compiler they run uncompiled, with a warning.
        channels_last: memory format of the networks; faster on most processors and GPUs, the same results up to
            rounding.
        accumulate: parts in which a process computes its share of the batch, to save memory. Losses and gradients are
            those of the whole batch, but batch norm and the relativistic mean see one part (of all processes) at a
            time.
        clip_norm: largest norm of the gradient of each network; 0 does not clip.
        skip_limit: steps in a row with non-finite losses or gradients, which are skipped, before training stops.
        seed: of the order, crops and flips of the patches.
        validate_every: iterations between two validations of the averaged generator; 0 disables them.
        validate_patches: patches of the validation split to measure, spread evenly over it.
        checkpoint_every: iterations between checkpoints; one is also written at the end.
        keep: which checkpoints are kept.
        deliver: which average is the result of the run.
        start_share: share of the weights that training started from in what is validated and delivered; the rest is
            the average's. Between a start that is a good generator and a short training, generators often beat both
            (network interpolation, arXiv 1809.00219 section 3.4; WiSE-FT, arXiv 2109.01903).
        start_shares: shares among which, with `start_share`, the delivered one is chosen at the end of the run, as
            `deliver` ranks them on the validation patches.
        stop_when_worse: when the run stops before its last iteration; never without validation.
        log_every: iterations between two logged values.
        picture_every: iterations between two pictures of a few patches; 0 disables them.
    """

    iterations: NotNegative = 600_000
    batch: Count = 8
    crop: Annotated[int, Constraint(multiple_of=SCALE, at_least=12 * SCALE)] = 192
    schedule: LearningRateSchedule = LearningRateSchedule()
    betas: Annotated[tuple[float, float], Constraint(at_least=0, below=1)] = (0.9, 0.999)
    ema_decay: Annotated[float, Constraint(at_least=0, below=1)] = 0.999
    precision: Precision = "auto"
    tf32: bool = True
    compile: bool = False
    channels_last: bool = True
    accumulate: Count = 1
    clip_norm: Weight = 0.0
    skip_limit: Count = 20
    seed: NotNegative = 1
    validate_every: NotNegative = 10_000
    validate_patches: Count = 64
    checkpoint_every: Count = 1000
    keep: Retention = Retention()
    deliver: Delivery = Delivery()
    start_share: Annotated[float, Constraint(at_least=0, below=1)] = 0.0
    start_shares: Annotated[tuple[float, ...], Constraint(at_least=0, below=1)] = ()
    stop_when_worse: StopRule = StopRule()
    log_every: Count = 100
    picture_every: NotNegative = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.batch % self.accumulate == 0,
            f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}",
        )
        for name, chosen, neutral in (("keep.best", self.keep.best, None), ("deliver.by", self.deliver.by, "last")):
            require(
                chosen == neutral or self.validate_every > 0,
                f"{name} is {chosen}, which is never measured: set validate_every above 0, or {name} to "
                f"{neutral or 'null'}",
            )

    @property
    def first_change(self) -> int:
        """Iterations at the start that leave the generator as it is."""
        return 0


@dataclass(frozen=True, kw_only=True)
class BestBuddySettings(Settings):
    """Settings of the best-buddy loss: the keyword arguments of `bebygan.losses.best_buddy_loss`, explained there."""

    alpha: Weight = 1.0
    beta: Weight = 1.0
    patch: Count = 3
    stride: Count = 3
    pyramid: Pyramid = "matlab"
    chunk: Count = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha + self.beta > 0, "alpha and beta must not both be 0")


@dataclass(frozen=True, kw_only=True)
class RegionSettings(Settings):
    """Which regions the discriminator sees: the keyword arguments of `bebygan.losses.region_mask`, explained there."""

    mask_from: MaskSource = "hr"
    window: Annotated[int, Constraint(odd=True, at_least=3)] = 11
    threshold: Share = 0.025


@dataclass(frozen=True, kw_only=True)
class LossWeights(Settings):
    """Weight of each of the generator's losses. A loss of weight 0 is not computed.

    Attributes:
        best_buddy: of the paper, as the next three.
        back_projection: difference of the shrunk SR to LR.
        perceptual: difference of VGG features.
        adversarial: of the discriminator.
        l1: mean absolute difference to HR, as in ESRGAN, which uses 0.01.
        locally_discriminative: LDL's L1 where artefacts are likely (arXiv 2203.09195, which uses 1).
        dists: DISTS, a perceptual distance (arXiv 2004.07728).
        auto_encoded: AESOP's L1 of what an auto-encoder keeps of SR and HR (arXiv 2412.00124, which uses 1).
    """

    best_buddy: Weight = 1.0
    back_projection: Weight = 1.0
    perceptual: Weight = 1.0
    adversarial: Weight = 0.005
    l1: Weight = 0.0
    locally_discriminative: Weight = 0.0
    dists: Weight = 0.0
    auto_encoded: Weight = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(any(vars(self).values()), "loss weights must not all be 0")


@dataclass(frozen=True, kw_only=True)
class PerceptualSettings(Settings):
    """By which features of which network SR and HR are compared.

    Attributes:
        network: vgg19 as in the paper, or vgg16.
        taps: convolutions, whose output before ReLU is compared, and their weights; null takes those of `PAPER_TAPS`.
    """

    network: VggName = "vgg19"
    taps: tuple[tuple[str, float], ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.weights), "taps must name at least one convolution, such as conv5_4, or be null")
        for tap, weight in self.weights.items():
            require(
                tap in vgg_layers(self.network),
                f"{self.network} has no {tap}; it has {', '.join(vgg_layers(self.network))}",
            )
            require(weight > 0, f"the weight of {tap} must be above 0, got {weight}")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each convolution that is compared."""
        return dict(PAPER_TAPS[self.network] if self.taps is None else self.taps)


@dataclass(frozen=True, kw_only=True)
class GanSettings(Optimisation):
    """Beby-GAN training, which starts from a warm-up generator.

    Attributes:
        losses: weights of the losses.
        best_buddy: settings of the best-buddy loss.
        region: which regions the discriminator sees.
        perceptual: network and layers of the perceptual loss.
        discriminator_width: channels of the discriminator's first stage.
        discriminator_first: iterations at the start in which only the discriminator is trained.
        discriminator_rate: learning rate of the discriminator as a multiple of the generator's.
        relativistic_mean: logits that each logit is compared with. global: those of all processes, so that the loss
            does not depend on their number. local: those of its own process, as in the official code.
        start: what training starts from: `warmup`, `champion` (its generator and discriminator; the warm-up while there
            is no champion), a version models:/NAME/VERSION, a file of weights, or a name of known weights.
    """

    losses: LossWeights = LossWeights()
    best_buddy: BestBuddySettings = BestBuddySettings()
    region: RegionSettings = RegionSettings()
    perceptual: PerceptualSettings = PerceptualSettings()
    keep: Retention = Retention(best="validation.lpips")
    deliver: Delivery = Delivery(by="validation.lpips", lr_psnr_floor=38.0)
    stop_when_worse: StopRule = StopRule(lpips=0.03)
    discriminator_width: Count = 32
    discriminator_first: NotNegative = 0
    discriminator_rate: Annotated[float, Constraint(above=0)] = 1.0
    relativistic_mean: Literal["global", "local"] = "global"
    start: Annotated[str, Constraint(pattern=".+")] = "warmup"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.discriminator_first == 0 or self.losses.adversarial > 0,
            "discriminator_first needs an adversarial loss of weight above 0: without one there is no discriminator",
        )
        if self.losses.best_buddy:
            require(
                self.best_buddy.patch <= self.crop,
                f"best_buddy.patch must be at most crop, got {self.best_buddy.patch} and {self.crop}",
            )
        if self.losses.adversarial:
            discriminator_stages(self.crop)
            require(
                self.region.window // 2 < self.crop,
                f"region.window must be below twice the crop, got {self.region.window} and {self.crop}",
            )

    @property
    def first_change(self) -> int:
        """Iterations at the start that leave the generator as it is."""
        return self.discriminator_first
