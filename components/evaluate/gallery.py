"""The photographs that the report shows: the best, the worst, the most changed, and those with most artefacts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from bebygan import SCALE
from bebygan.imaging import Image
from bebygan.metrics.relative_variance import artefact_map
from components.artifacts import Candidate
from components.comparison import NAMES
from components.config import Metric
from components.evaluate.pictures import SIDE, Square, most_textured, square_with_most

ROLES = ("best", "worst", "most changed", "most artefacts")
"""Why a photograph is shown. Best and worst are by the gain in LPIPS."""
LR, ORIGINAL = "LR", "original"
_OF_EACH = 3
_OVERVIEW = 160
"""Longest side of the small picture of a whole photograph, pixels."""
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A square of a photograph, from LR, each candidate, and the original."""

    photograph: str
    roles: tuple[str, ...] = ()
    panels: Mapping[str, Image]
    """By name; LR is smaller by the scale."""
    textured: Mask
    """(H, W) of the original: where it has texture."""
    artefacts: Mask
    """(H, W): where the challenger varies out of proportion to the start."""
    overview: Image
    """The whole photograph, small."""
    frame: tuple[float, float, float, float]
    """Left, top, width and height of the square, in percent of the whole photograph."""
    facts: Mapping[str, float]
    """How the photograph ranks: the gain in LPIPS, the mean change in levels of 255, the share of artefacts."""


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A photograph with what was upscaled from it."""

    name: str
    hr: Image
    lr: Image
    textured: Mask
    upscaled: Mapping[Candidate, Image]
    metrics: Mapping[Candidate, Mapping[Metric, float]]
    opponent: Candidate
    """What the challenger is ranked against."""
    start: Image
    """What `artefact_map` compares the challenger with."""

    @cached_property
    def facts(self) -> dict[str, float]:
        """See `Sight.facts`."""
        theirs, ours = (self.metrics[each] for each in (self.opponent, "challenger"))
        pixels = (self.upscaled[each].astype(np.int16) for each in (self.opponent, "challenger"))
        return {
            "gain": theirs["lpips"] - ours["lpips"],
            "change": float(np.abs(next(pixels) - next(pixels)).mean()),
            "artefacts": ours["artefacts"],
        }

    @cached_property
    def artefacts(self) -> Mask:
        """Where the challenger has artefacts, (H, W)."""
        return artefact_map(self.upscaled["challenger"], self.start)

    @cached_property
    def with_texture(self) -> Sight:
        """The square with the most texture."""
        return self._sight(most_textured(self.hr, SIDE))

    @cached_property
    def with_artefacts(self) -> Sight:
        """The square with the most artefacts."""
        return self._sight(square_with_most(self.artefacts.astype(float), SIDE))

    def _sight(self, square: Square) -> Sight:
        rows, columns = square
        height, width = self.hr.shape[:2]
        left, top, right, bottom = columns.start, rows.start, columns.stop, rows.stop
        small = PillowImage.fromarray(self.hr)
        small.thumbnail((_OVERVIEW, _OVERVIEW), reducing_gap=2)
        return Sight(
            photograph=self.name,
            panels={
                # Copies: a view would keep the whole photograph in memory.
                LR: self.lr[top // SCALE : bottom // SCALE, left // SCALE : right // SCALE].copy(),
                **{NAMES[candidate]: image[square].copy() for candidate, image in self.upscaled.items()},
                ORIGINAL: self.hr[square].copy(),
            },
            textured=self.textured[square],
            artefacts=self.artefacts[square],
            overview=np.asarray(small),
            frame=(
                100 * left / width,
                100 * top / height,
                100 * (right - left) / width,
                100 * (bottom - top) / height,
            ),
            facts=self.facts,
        )


@dataclass
class Gallery:
    """Keeps the squares of the photographs that rank first, while all are measured one after another."""

    _kept: dict[str, list[tuple[float, Sight]]] = field(default_factory=lambda: {role: [] for role in ROLES})

    def add(self, photograph: Photograph) -> None:
        """Rank a photograph, and keep its square if it is among the first of a role."""
        facts = photograph.facts
        self._rank("best", facts["gain"], lambda: photograph.with_texture)
        self._rank("worst", -facts["gain"], lambda: photograph.with_texture)
        self._rank("most changed", facts["change"], lambda: photograph.with_texture)
        if facts["artefacts"] > 0:
            self._rank("most artefacts", facts["artefacts"], lambda: photograph.with_artefacts)

    def _rank(self, role: str, value: float, cut: Callable[[], Sight]) -> None:
        kept = self._kept[role]
        if len(kept) < _OF_EACH or value > kept[-1][0]:
            kept.append((value, cut()))
            # A stable sort: of equal photographs the first stays.
            kept.sort(key=lambda each: -each[0])
            del kept[_OF_EACH:]

    def sights(self) -> list[Sight]:
        """Return the squares, the first of each role, then the second, and so on; each once, with its roles."""
        found: dict[tuple[str, tuple[float, ...]], Sight] = {}
        for rank in range(_OF_EACH):
            for role, kept in self._kept.items():
                for _, sight in kept[rank : rank + 1]:
                    known = found.setdefault((sight.photograph, sight.frame), sight)
                    if rank == 0 or not known.roles:
                        found[sight.photograph, sight.frame] = replace(known, roles=(*known.roles, role))
        return list(found.values())
