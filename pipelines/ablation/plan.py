"""What an ablation consists of: the file that describes it, and the trainings that it asks for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bebygan.errors import ConfigError
from bebygan.settings import Settings, require
from components.config import Params, from_yaml, load_params, read_settings
from pipelines.ablation.measures import METRICS

Values = Mapping[str, Any]
"""Values of parameters by their dotted names, such as train.losses.l1."""


@dataclass(frozen=True, kw_only=True)
class Cell(Settings):
    """One objective.

    Attributes:
        title: what it is, for a reader.
        set: parameters that differ from those of all cells.
        claim: what it should achieve beside the cell before it; empty claims nothing.
        better: metrics in which it must be better for the claim to hold, with an interval that excludes 0.
        not_worse: metrics in which it may be worse by less than this, at the worse end of the interval.
    """

    title: str
    set: dict[str, Any]
    claim: str = ""
    better: tuple[str, ...] = ()
    not_worse: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*self.better, *self.not_worse):
            require(name in METRICS, f"there is no metric {name}; there are {', '.join(METRICS)}")


@dataclass(frozen=True, kw_only=True)
class Ablation(Settings):
    """An ablation: every cell is trained once with every seed.

    Attributes:
        seeds: of the trainings.
        set: parameters of all cells that differ from the parameters file.
        cells: by name, in the order in which each is compared with the one before it.
    """

    seeds: tuple[int, ...]
    set: dict[str, Any]
    cells: dict[str, Cell]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.seeds) and bool(self.cells), "an ablation needs at least one seed and one cell")
        for name in self.cells:
            require(name.replace("-", "").isalnum(), f"the name of a cell has letters, digits and -, got {name!r}")


@dataclass(frozen=True, slots=True)
class Training:
    """A cell with a seed."""

    cell: str
    seed: int
    params: Params

    @staticmethod
    def name_of(cell: str, seed: int) -> str:
        """Return the name of the folder and the run of a cell with a seed."""
        return f"{cell}-seed-{seed}"

    @property
    def name(self) -> str:
        """Name of its folder and of its run."""
        return self.name_of(self.cell, self.seed)


def read_ablation(path: Path) -> Ablation:
    """Read the description of an ablation.

    Raises:
        ConfigError: the file cannot be read, or a value is unknown, missing or out of range.
    """
    return from_yaml(Ablation, read_settings(path, "the ablation"))


def _assignments(values: Values) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def trainings_of(ablation: Ablation, params: Path, overrides: Sequence[str]) -> list[Training]:
    """Return all trainings, those of the first seed first.

    Args:
        ablation: of `read_ablation`.
        params: file that the values are laid over.
        overrides: `name=value` of the command line; they win over `ablation.set`, and a cell's values over them.

    Raises:
        ConfigError: a name or value is wrong, or two cells are the same.
    """
    found: list[Training] = []
    for seed in ablation.seeds:
        for name, cell in ablation.cells.items():
            values = [*_assignments(ablation.set), *overrides, *_assignments(cell.set), f"train.seed={seed}"]
            found.append(Training(name, seed, load_params(params, values)))
    first = found[: len(ablation.cells)]
    for number, training in enumerate(first):
        for earlier in first[:number]:
            if earlier.params == training.params:
                raise ConfigError(f"the cells {earlier.cell} and {training.cell} have the same parameters")
    return found
