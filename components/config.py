"""Configuration: one frozen, typed model. Values stand in params.yaml and nowhere else.

A profile such as params/paper.yaml holds only what differs from params.yaml. A step is given its own group, as a
file or as one YAML string (Kubeflow turns integers inside dict parameters into floats).
"""

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bebygan.errors import ConfigError
from bebygan.settings import GanSettings, GeneratorShape, Optimisation, require

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Convertible = Literal["rotated", "grey", "transparent", "cmyk", "16-bit"]


def _odd(value: int) -> int:
    require(value % 2 == 1, f"must be odd, got {value}")
    return value


class Group(BaseModel):
    """Base of the groups: frozen; a name that it does not know is refused, and so is .nan or .inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class IngestParams(Group):
    """Which photographs are taken in."""

    minimum_side: Count
    """Pixels; a photograph whose shorter side is smaller is quarantined."""
    convert: tuple[Convertible, ...]
    """Kinds of pictures that are made upright 8-bit RGB and taken in; those not named here are quarantined."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)]
    """Two photographs whose 64-bit perceptual hashes differ in at most so many bits show the same scene."""
    validation_share: Share
    """Share of the photographs kept out of training and out of the comparison, to watch training with."""
    test_share: Share
    """Share of the photographs that are held out for the comparison of models."""
    quarantine_tolerance: Share
    """Share of the files that may be quarantined before the step stops."""


class PatchesParams(Group):
    """How photographs become training patches."""

    size: Annotated[int, Field(ge=48, multiple_of=4)]
    """Side of an HR sub-image, pixels (480 in the paper)."""
    step: Annotated[int, Field(ge=4, multiple_of=4)]
    """Distance between neighbouring sub-images, pixels (240 in the paper)."""
    texture_kernel: Annotated[int, Field(ge=3, le=31), AfterValidator(_odd)]
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
    """Weights to start from: a file, the name of a known one, or none to start from scratch."""


Metric = Literal["psnr_y", "ssim_y", "lpips", "lr_psnr"]


class Thresholds(Group):
    """What a challenger must reach to be promoted. Without a threshold against the champion it never replaces one."""

    absolute: dict[Metric, float]
    """Value that must be reached: at least this, or at most this where lower is better (lpips)."""
    bicubic: dict[Metric, float]
    """Gain over bicubic that must be exceeded, counted in the direction that is better; negative: loss that is let."""
    warmup: dict[Metric, float]
    """The same over the warm-up generator."""
    champion: dict[Metric, float]
    """The same over the model that holds the alias champion; not asked for while there is none."""


Range = tuple[float, float]


def _ordered(value: Range) -> Range:
    require(value[0] <= value[1], f"must be a lower and an upper bound, got {list(value)}")
    return value


class HealthLimits(Group):
    """Between which values the end of a GAN training counts as healthy. The report tells; promotion does not ask."""

    window: Annotated[float, Field(gt=0, le=1)]
    """Share of the logged values, the last ones, whose medians are judged."""
    discriminator_loss: Annotated[Range, AfterValidator(_ordered)]
    """Below the first the discriminator has won, above the second it tells nothing apart (log 2 is chance)."""
    logit_margin: Annotated[float, Field(gt=0)]
    """Distance between the logits of HR and SR from which the adversarial loss saturates."""
    textured_share: Annotated[Range, AfterValidator(_ordered)]
    """Below the first the mask hides nearly everything from the discriminator, above the second nothing."""


class EvaluateParams(Group):
    """How models are compared on the held-out photographs."""

    model_name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Registered model whose champion the challenger is compared with, and of which it becomes a version."""
    crop: Annotated[int, Field(ge=64, multiple_of=4)] | None
    """Side of the central square of each photograph that is measured, pixels; none measures photographs whole."""
    tile: Annotated[int, Field(ge=32)] | None
    """Generators see LR images in tiles of at most this side, which bounds memory; none lets them see images whole."""
    thresholds: Thresholds
    health: HealthLimits


class RegisterParams(Group):
    """What becomes of a challenger with a verdict."""

    promotion: Literal["automatic", "manual"]
    """Whether a challenger that passed becomes champion by itself, or stays challenger until a person promotes it."""


PARAMS_FILE = Path("params.yaml")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Params:
    """All parameters, grouped by step. No pydantic model: those have an attribute `register` of their own."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    ingest: IngestParams
    patches: PatchesParams
    warmup: WarmupParams
    train: GanSettings
    evaluate: EvaluateParams
    register: RegisterParams

    def __post_init__(self) -> None:
        for step, settings in (("warmup", self.warmup), ("train", self.train)):
            require(
                not settings.iterations or settings.crop <= self.patches.size,
                f"{step}.crop must be at most patches.size, got {settings.crop} and {self.patches.size}",
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


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the parameters {path}: {error.strerror}") from error
    return _parse(text, str(path))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`, mapping by mapping; an empty mapping, and what is no mapping, takes the old one's place."""
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
    # Whether a group takes the name, though it does not stand there yet, is seen when all is validated.
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
        kind = get_args(kind)[0] if isinstance(part, int) else get_type_hints(kind).get(part)
    return list(getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {}))


_MAPPING = "a mapping of names to values"
_SHAPES = {"dataclass_type": _MAPPING, "model_type": _MAPPING, "dict_type": _MAPPING, "tuple_type": "a list"}
"""What pydantic's faults of these types ask for."""


def _explained(kind: type, error: ValidationError) -> str:
    """Say the first fault of a validation in one line."""
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    # A misspelt name is also a missing one: the misspelling is what helps.
    first = min(error.errors(), key=lambda fault: fault["type"] not in unknown)
    # pydantic's own mark of what is wrong with a name in a mapping.
    name = ".".join(str(part) for part in first["loc"] if part != "[key]") or kind.__name__
    if first["type"] in unknown:
        *group, last = first["loc"]
        known = _known_fields(kind, tuple(group))
        prefix = "".join(f"{part}." for part in group)
        return f"there is no parameter {name}{_nearest(str(last), known).replace('mean ', f'mean {prefix}', 1)}"
    if first["type"] in ("missing", "missing_argument"):
        return f"parameter {name} is missing"
    if first["type"] == "value_error":
        said = first["msg"].removeprefix("Value error, ")
        return f"parameter {name}: {said}" if first["loc"] else str(said)
    if first["type"] in _SHAPES:
        return f"parameter {name} must be {_SHAPES[first['type']]}, got {first['input']!r}"
    return f"parameter {name}: {first['msg']} (got {first['input']!r})"


def _validated(kind: type[T], values: Mapping[str, Any]) -> T:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise ConfigError(_explained(kind, error)) from error


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
        path: params.yaml, or a profile that is laid over the params.yaml of the folder above it.
        overrides: `group.name=value`, the value in YAML; later ones win.

    Raises:
        ConfigError: a file cannot be read, or a name is unknown (the nearest one is told), missing or out of range.
    """
    values = _read(path)
    if path.name != PARAMS_FILE.name:
        values = _merged(_read(path.resolve().parent.parent / PARAMS_FILE.name), values)
    for assignment in overrides:
        values = _override(values, assignment)
    return _validated(Params, values)
