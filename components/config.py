"""Configuration: one frozen, typed model. Every value of the pipeline is written in params.yaml.

A parameters file must name all parameters, although the library's settings have defaults. A profile such as
params/paper.yaml holds only what differs from params.yaml. A step is given its own group, as a file or as one YAML
string (Kubeflow turns integers inside dict parameters into floats).
"""

import difflib
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from bebygan import SCALE
from bebygan.errors import ConfigError
from bebygan.networks.architecture import ALEXNET_SMALLEST
from bebygan.settings import (
    Constraint,
    Count,
    ExportKind,
    GanSettings,
    GeneratorShape,
    Objective,
    Optimisation,
    Precision,
    Settings,
    Share,
    require,
)
from components.checkout import in_checkout

Convertible = Literal["rotated", "grey", "transparent", "cmyk", "16-bit"]
Metric = Literal[
    "psnr_y", "ssim_y", "lpips", "lr_psnr", "dists", "psnr_y_textured", "psnr_y_flat", "lpips_textured", "lpips_flat",
    "artefacts",
]  # fmt: skip
Interval = tuple[float, float]
"""Lower and upper bound."""
Positive = Annotated[float, Constraint(above=0)]


@dataclass(frozen=True, kw_only=True)
class IngestParams(Settings):
    """Which photographs are taken in."""

    minimum_side: Count
    """Pixels; a photograph whose shorter side is smaller is quarantined."""
    convert: tuple[Convertible, ...]
    """Kinds of images that are converted to upright 8-bit RGB; the kinds not named here are quarantined."""
    near_duplicate_bits: Annotated[int, Constraint(at_least=0, at_most=64)]
    """Two photographs whose 64-bit perceptual hashes differ in at most this many bits show the same scene."""
    validation_share: Share
    """Share of the photographs that are used for validation during training only."""
    test_share: Share
    """Share of the photographs that are held out for the comparison of models."""
    quarantine_tolerance: Share
    """Share of the files that may be quarantined before the step fails."""

    def __post_init__(self) -> None:
        super().__post_init__()
        measurable = -(-ALEXNET_SMALLEST // SCALE) * SCALE
        require(
            self.minimum_side >= measurable,
            f"minimum_side must be at least {measurable}, got {self.minimum_side}: LPIPS, which compares models, needs "
            f"{ALEXNET_SMALLEST} pixels, and sides are cut to multiples of {SCALE}",
        )
        require(self.test_share > 0, "test_share must be above 0, got 0.0: models are compared on its photographs")
        require(
            self.test_share + self.validation_share < 1,
            f"test_share and validation_share must have a sum below 1, got {self.test_share:g} and "
            f"{self.validation_share:g}: they leave nothing to train on",
        )


@dataclass(frozen=True, kw_only=True)
class PatchesParams(Settings):
    """How photographs become training patches."""

    size: Annotated[int, Constraint(multiple_of=4, at_least=48)]
    """Side of an HR sub-image, pixels (480 in the paper)."""
    step: Annotated[int, Constraint(multiple_of=4, at_least=4)]
    """Distance between neighbouring sub-images, pixels (240 in the paper)."""
    texture_kernel: Annotated[int, Constraint(odd=True, at_least=3, at_most=31)]
    """Side of the window in which texture is measured (paper: 11)."""
    texture_threshold: Share
    """Standard deviation of luma in [0, 1] from which a pixel counts as textured (paper: 0.025)."""
    minimum_texture: Share
    """Sub-images with a smaller share of textured pixels are left out."""
    shard_megabytes: Count
    """Upper bound of one shard of pixels."""


@dataclass(frozen=True, kw_only=True)
class WarmupParams(Optimisation):
    """The PSNR-oriented generator that Beby-GAN starts from."""

    generator: GeneratorShape
    weights: str | None
    """Weights to start from: a file, the name of known weights, or none to start from random weights."""


@dataclass(frozen=True, kw_only=True)
class Thresholds(Settings):
    """What a challenger must reach to be promoted. Without a threshold for the champion it never replaces one.

    Bounds are in units of their metric: dB for psnr_y and lr_psnr, SSIM from 0 to 1, LPIPS from about 0 to 1. A gain is
    counted in the better direction, so that a negative bound is the largest loss allowed.
    """

    absolute: dict[Metric, float]
    """Mean that must be reached: at least this, or at most this where lower is better (lpips)."""
    bicubic: dict[Metric, float]
    """Required mean gain over bicubic."""
    warmup: dict[Objective, dict[Metric, float]]
    """Required mean gain over the generator that training started from, by what that was trained for."""
    champion: dict[Metric, float]
    """Required gain over the model with the alias champion, which the lower limit of the confidence interval must
    exceed; ignored while there is no champion."""


@dataclass(frozen=True, kw_only=True)
class HealthLimits(Settings):
    """Bounds within which the end of a GAN training is healthy. They are reported and do not affect promotion."""

    window: Annotated[float, Constraint(above=0, at_most=1)]
    """Share of the logged values, the last ones, whose medians are judged."""
    discriminator_loss: Interval
    """Below the first the discriminator has won, above the second it distinguishes nothing (log 2 is chance)."""
    logit_margin: Positive
    """Distance between the logits of HR and SR from which the adversarial loss saturates."""
    textured_share: Interval
    """Below the first the mask hides nearly everything from the discriminator, above the second nothing."""
    validation_loss: dict[Literal["psnr_y", "lpips", "lr_psnr"], Positive]
    """By how much the averaged generator may be worse on the validation photographs at the end than at the start."""
    back_projection_growth: Positive
    """Ratio of the back-projection loss at the end to that at the start, above which the content has changed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discriminator_loss", "textured_share"):
            low, high = getattr(self, name)
            require(low <= high, f"{name} must be a lower and an upper bound, got {low}, {high}")


@dataclass(frozen=True, kw_only=True)
class EvaluateParams(Settings):
    """How models are compared on the held-out photographs."""

    # It is also the name of a folder of the ledger.
    model_name: Annotated[str, Constraint(pattern=r"\w[\w.-]*")]
    """Registered model that the challenger becomes a version of, and whose champion it is compared with."""
    crop: Annotated[int, Constraint(multiple_of=4, at_least=64)] | None
    """Side of the central square of each photograph that is measured, pixels; none measures whole photographs."""
    tile: Annotated[int, Constraint(at_least=32)] | None
    """Largest side of the tiles that generators process, LR pixels, to bound memory; none is what `upscale` takes."""
    precision: Precision
    """What generators compute in; auto is what `upscale` takes: bfloat16 where the processor computes it."""
    confidence: Annotated[float, Constraint(at_least=0.8, at_most=0.999)]
    """Of the intervals of gains: the share of repeated comparisons whose interval contains the true gain."""
    anchor: Annotated[str, Constraint(pattern=r"first|none|[0-9a-f]{32}\.dir")]
    """Data version whose held-out photographs are measured in every run, so that figures of different runs compare.
    first: that of the first promotion, by the ledger. none: no anchor."""
    thresholds: Thresholds
    training_noise: dict[Metric, Positive]
    """By how much one training is better than another that differs in the seed alone, in 97.5 % of pairs at most this
    (for a confidence of 95 %): `bebygan calibrate` measures it. A gain over the champion that `thresholds` require must
    exceed it, too. {} counts the uncertainty of the photographs alone."""
    health: HealthLimits


@dataclass(frozen=True, kw_only=True)
class RegisterParams(Settings):
    """What happens to a challenger after its verdict."""

    promotion: Literal["automatic", "manual"]
    """Whether a challenger that passed becomes champion by itself, or stays challenger until a person promotes it."""
    exports: tuple[ExportKind, ...]
    """Files for other programs that are made of each version, compared with torch, and stored with the run."""


PARAMS_FILE = Path("params.yaml")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Params(Settings):
    """All parameters, grouped by step."""

    ingest: IngestParams
    patches: PatchesParams
    warmup: WarmupParams
    train: GanSettings
    evaluate: EvaluateParams
    register: RegisterParams

    def __post_init__(self) -> None:
        super().__post_init__()
        for step, settings in (("warmup", self.warmup), ("train", self.train)):
            require(
                not settings.iterations or settings.crop <= self.patches.size,
                f"{step}.crop must be at most patches.size, got {settings.crop} and {self.patches.size}",
            )
            require(
                not (settings.iterations and settings.validate_every) or self.ingest.validation_share > 0,
                f"ingest.validation_share must be above 0, got 0.0: {step}.validate_every {settings.validate_every} "
                f"validates on these photographs; set {step}.validate_every to 0, and {step}.deliver.by to last, to "
                "train without",
            )


GROUPS = tuple(Params.__dataclass_fields__)
"""Names of the groups, which are those of the steps."""


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping of names to values")
    return values


def read_settings(path: Path, what: str) -> str:
    """Return the text of a file of settings; `what` names them in errors.

    Raises:
        ConfigError: the file cannot be read or is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {what} {path}: it is not text in UTF-8") from error


def _read(path: Path) -> dict[str, Any]:
    return _parse(read_settings(path, "the parameters"), str(path))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`, mapping by mapping; an empty mapping, and any other value, replaces the old one."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        if isinstance(old, dict) and isinstance(value, dict) and value:
            value = _merged(old, value)  # noqa: PLW2901
        result[name] = value
    return result


def _names(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All dotted names of a tree, inner ones included."""
    found = []
    for name, value in values.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += _names(value, f"{prefix}{name}.")
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    matches = difflib.get_close_matches(name, names, 1, 0.5)
    last = name.rpartition(".")[2]
    matches = matches or [known for known in names if known.rpartition(".")[2] == last]
    if matches:
        return f"; did you mean {matches[0]}?"
    return f"; known are {', '.join(known for known in names if '.' not in known)}"


def _override(values: dict[str, Any], assignment: str) -> dict[str, Any]:
    name, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"--set takes name=value, got {assignment!r}")
    known = _names(values)
    group = name.rpartition(".")[0]
    # A name that its group does not hold yet is checked when everything is validated.
    if name not in known and group not in known:
        raise ConfigError(f"there is no parameter {name}{_nearest(name, known)}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {name} is not YAML: {text!r}") from error
    for part in reversed(name.split(".")):
        value = {part: value}
    return _merged(values, value)


def _known_fields(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the names that the group at a location of `kind` knows."""
    for part in location:
        hints = get_type_hints(kind) if hasattr(kind, "__dataclass_fields__") else {}
        kind = get_args(kind)[0] if isinstance(part, int) else hints.get(str(part))
    return list(getattr(kind, "__dataclass_fields__", {}))


_MAPPING = "a mapping of names to values"
_SHAPES = {"dataclass_type": _MAPPING, "dict_type": _MAPPING, "tuple_type": "a list"}
"""What pydantic's errors of these types require."""


def _explained(kind: type, error: ValidationError) -> str:
    """Return the first error of a validation in one line."""
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    # A misspelt name also leaves the right one missing: report the misspelling.
    first = min(error.errors(), key=lambda fault: fault["type"] not in unknown)
    # pydantic marks a wrong name in a mapping with "[key]".
    name = ".".join(str(part) for part in first["loc"] if part != "[key]") or kind.__name__
    if first["type"] in unknown:
        *group, last = first["loc"]
        known = _known_fields(kind, tuple(group))
        prefix = "".join(f"{part}." for part in group)
        return f"there is no parameter {name}{_nearest(str(last), known).replace('mean ', f'mean {prefix}', 1)}"
    if first["type"] in ("missing", "missing_argument"):
        return f"parameter {name} is missing"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        # Most messages of a group begin with the name of the field.
        if re.split(r"\W", message)[0] in _known_fields(kind, first["loc"]):
            return f"parameter {'.'.join(map(str, (*first['loc'], message)))}"
        return f"parameter {name}: {message}" if first["loc"] else str(message)
    if first["type"] in _SHAPES:
        return f"parameter {name} must be {_SHAPES[first['type']]}, got {first['input']!r}"
    return f"parameter {name}: {first['msg']} (got {first['input']!r})"


def _missing(settings: Any, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of fields that took their defaults because `values` does not name them."""
    for field in fields(settings):
        name, value = prefix + field.name, getattr(settings, field.name)
        if field.name not in values:
            yield name
        elif is_dataclass(value):
            yield from _missing(value, values[field.name], f"{name}.")


def _validated(kind: type[T], values: Mapping[str, Any]) -> T:
    try:
        settings = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise ConfigError(_explained(kind, error)) from error
    if kind is Params or kind in get_type_hints(Params).values():
        for name in _missing(settings, values):
            raise ConfigError(f"parameter {name} is missing")
    return settings


def from_yaml(kind: type[T], text: str) -> T:
    """Read one group from YAML text.

    Raises:
        ConfigError: the text is no YAML mapping, or a value is unknown, missing or out of range.
    """
    return _validated(kind, _parse(text, "the configuration"))


def plain(group: object) -> dict[str, Any]:
    """Return a group as nested dictionaries of what YAML and JSON can hold: numbers, text, booleans, lists and None."""
    values: dict[str, Any] = TypeAdapter(type(group)).dump_python(group, mode="json")
    return values


def to_yaml(group: object) -> str:
    """Write a group as YAML that `from_yaml` reads back to an equal one; the same text each time."""
    return yaml.safe_dump(plain(group), sort_keys=True)


def digest(group: object) -> str:
    """Return the hexadecimal SHA-256 of a group's YAML: the same for equal groups."""
    return hashlib.sha256(to_yaml(group).encode()).hexdigest()


def one_line_yaml(group: object) -> str:
    """Write a group as one line of YAML. Unlike JSON, it reads back to the same floats and fits in a comment."""
    return yaml.safe_dump(plain(group), sort_keys=True, default_flow_style=True, width=sys.maxsize).strip()


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of each leaf in a tree of mappings; an empty mapping yields nothing."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def load_params(path: Path = PARAMS_FILE, overrides: Iterable[str] = ()) -> Params:
    """Read all parameters.

    Args:
        path: params.yaml, or a profile that is laid over the params.yaml of the folder above it, or else over the
            params.yaml of the current folder. A relative path that does not exist may be one of this checkout.
        overrides: `group.name=value`, the value in YAML; later ones win.

    Raises:
        ConfigError: a file cannot be read, or a name is unknown (the message tells the nearest one), missing or out of
            range.
    """
    path = in_checkout(path)
    values = _read(path)
    if path.name != PARAMS_FILE.name:
        above = path.resolve().parent.parent / PARAMS_FILE
        values = _merged(_read(above if above.exists() else in_checkout(PARAMS_FILE)), values)
    for assignment in overrides:
        values = _override(values, assignment)
    return _validated(Params, values)
