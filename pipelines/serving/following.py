"""The model that is served: follows an alias, and is replaced only by a version that was verified and tried."""

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import bebygan
from bebygan.errors import BebyganError, ServiceError, StorageError, WeightsError
from bebygan.imaging.tiling import upscale_fast
from bebygan.loading import Upscaler
from bebygan.precision import training_device
from bebygan.settings import Precision
from components.tracking.registry import ModelVersion, download_generator, find_version

_log = logging.getLogger(__name__)
_SECONDS_UNTIL_RETRY = 60.0
"""A version that was refused is fetched again after this time, in case its files were restored."""


@dataclass(frozen=True)
class Served:
    """A version that answers requests."""

    version: ModelVersion
    upscaler: Upscaler


def _try(upscaler: Upscaler, uri: str) -> None:
    """Upscale a small image.

    Raises:
        WeightsError: the result is of another size, or not finite.
    """
    probe = np.random.default_rng(0).random((1, 3, 24, 17), np.float32)
    with torch.inference_mode():
        found = upscaler(torch.from_numpy(probe).to(next(upscaler.parameters()).device))
    if found.shape != (1, 3, 96, 68) or not found.isfinite().all():
        raise WeightsError(f"{uri} does not upscale a probe image: give the alias to another version")
    upscale_fast(upscaler, np.zeros((8, 8, 3), np.uint8), precision=upscaler.precision)


class Follower:
    """Keeps the version loaded that a reference names.

    Args:
        reference: alias or number of a version, or models:/NAME@ALIAS.
        model: registered model of an alias or number.
        precision: of the arithmetic.
    """

    def __init__(self, reference: str, model: str, precision: Precision = "auto") -> None:
        self._reference, self._model, self._precision = reference, model, precision
        self.current: Served | None = None
        """Replaced as a whole: a request keeps the version that it began with."""
        self.fault: str | None = "no version is loaded yet"
        """Why the version that the reference names is not served; None if it is."""
        self.switches, self.refused = 0, 0
        self._broken: tuple[str, float] | None = None

    def refresh(self) -> None:
        """Look which version is named, and serve it; keep the old one if that one is unreachable or broken."""
        try:
            version = find_version(self._reference, self._model)
            if self.current and version.uri == self.current.version.uri:
                self._broken, self.fault = None, None
                return
            if self._broken and self._broken[0] == version.uri and time.monotonic() < self._broken[1]:
                return
            served = self._loaded(version)
        except BebyganError as error:
            if self.fault != str(error):
                kept = f"{self.current.version.uri} is served on" if self.current else "nothing is served"
                _log.warning("warning: %s; %s", error, kept)
            self.fault = str(error)
            return
        self.switches += self.current is not None
        self.current, self.fault, self._broken = served, None, None
        _log.info("serving %s", version.uri)

    def _loaded(self, version: ModelVersion) -> Served:
        """Fetch, check, load and try a version.

        Raises:
            BebyganError: see `download_generator`; or the version is unfit, and is not tried again for a while.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="model-") as scratch:
                upscaler = bebygan.load(download_generator(version, Path(scratch)), precision=self._precision)
            upscaler.to(training_device())
            _try(upscaler, version.uri)
        except (ServiceError, StorageError):
            raise
        except Exception as error:
            self._broken = version.uri, time.monotonic() + _SECONDS_UNTIL_RETRY
            self.refused += 1
            if isinstance(error, BebyganError):
                raise
            # Out of memory with two models, or whatever a network of another kind raises.
            what = " ".join(str(error).split()) or type(error).__name__
            raise WeightsError(
                f"{version.uri} cannot be used here ({what}): give the alias to another version"
            ) from error
        return Served(version, upscaler)
