"""Configuration: one frozen, typed model. Values stand in params.yaml and nowhere else.

A profile such as params/paper.yaml holds only what differs from params.yaml. A step is given its own group, as a
file or as one YAML string (Kubeflow turns integers inside dict parameters into floats).
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bebygan.errors import ConfigError
from bebygan.settings import GeneratorShape, Optimisation

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Convertible = Literal["rotated", "grey", "transparent", "cmyk", "16-bit"]


class Group(BaseModel):
    """Base of the groups: frozen, and a name that it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Read a group from YAML text.

        Raises:
            ConfigError: the text is no YAML mapping, or a value is unknown, missing or out of range.
        """
        return _validated(cls, _parse(text, "the configuration"))

    def to_yaml(self) -> str:
        """Write the group as YAML that `from_yaml` reads back to an equal group; the same text each time."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=True)


class IngestParams(Group):
    """Which photographs are taken in."""

    minimum_side: Count
    """Pixels; a photograph whose shorter side is smaller is quarantined."""
    convert: tuple[Convertible, ...]
    """Kinds of pictures that are made upright 8-bit RGB and taken in; those not named here are quarantined."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)]
    """Two photographs whose 64-bit perceptual hashes differ in at most so many bits show the same scene."""
    validation_share: Share
    """Share of the photographs that training is watched on."""
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
    texture_kernel: Annotated[int, Field(ge=3, le=31)]
    """Side of the window in which texture is measured (paper: 11)."""
    texture_threshold: Share
    """Standard deviation of luma in [0, 1] from which a pixel counts as textured (paper: 0.025)."""
    minimum_texture: Share
    """Sub-images with a smaller share of textured pixels are left out."""
    shard_megabytes: Count
    """Upper bound of one shard of pixels."""


class WarmupParams(Group):
    """The PSNR-oriented generator that Beby-GAN starts from."""

    generator: GeneratorShape
    weights: str | None
    """Weights to start from: a file, the name of a known one, or none to start from scratch."""
    optimisation: Optimisation


PARAMS_FILE = Path("params.yaml")
G = TypeVar("G", bound=Group)


class Params(Group):
    """All parameters, grouped by step."""

    ingest: IngestParams
    patches: PatchesParams
    warmup: WarmupParams


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
    """Lay `over` on `base`, mapping by mapping; anything that is not a mapping is replaced."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        result[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
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
    return f"; did you mean {matches[0]}?" if matches else f"; known are {', '.join(names)}"


def _override(values: dict[str, Any], assignment: str) -> dict[str, Any]:
    name, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"--set takes name=value, got {assignment!r}")
    known = _names(values)
    if name not in known:
        raise ConfigError(f"there is no parameter {name}{_nearest(name, known)}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {name} is not YAML: {text!r}") from error
    for part in reversed(name.split(".")):
        value = {part: value}
    return _merged(values, value)


def _known_fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names that the group at a location of `model` knows."""
    fields: Any = model
    for part in location:
        annotation = fields.model_fields[part].annotation if hasattr(fields, "model_fields") else None
        annotation = annotation or getattr(fields, "__annotations__", {}).get(part)
        fields = annotation
    names = getattr(fields, "model_fields", None) or getattr(fields, "__dataclass_fields__", {})
    return list(names)


def _explained(model: type[BaseModel], error: ValidationError) -> str:
    """Say the first fault of a validation in one line."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or model.__name__
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        *group, last = first["loc"]
        known = _known_fields(model, tuple(group))
        prefix = "".join(f"{part}." for part in group)
        return f"there is no parameter {name}{_nearest(str(last), known).replace('mean ', f'mean {prefix}', 1)}"
    if first["type"] in ("missing", "missing_argument"):
        return f"parameter {name} is missing"
    return f"parameter {name}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"


def _validated(model: type[G], values: Mapping[str, Any]) -> G:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explained(model, error)) from error


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
