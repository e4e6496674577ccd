"""The registered model, with the package `bebygan` of the version that registered it.

MLflow executes this file where it loads the model, and where `components` cannot be imported.
"""

import base64
import binascii
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from bebygan.errors import DataError
from bebygan.imaging.kinds import upscale_any
from bebygan.imaging.tiling import upscale_image
from bebygan.networks.naming import load_generator
from bebygan.registered_model import check_unchanged


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.removeprefix("data:").rpartition(",")[2], validate=True)
    except binascii.Error as error:
        raise DataError("a text must be the base64 of an image file") from error


def _answered(image: Any, upscale: Any) -> Any:
    """Upscale what a request holds; a text is the base64 of a file, and so is its answer."""
    if isinstance(image, str):
        return base64.b64encode(upscale_any(_decoded(image), upscale)).decode()
    if isinstance(image, np.ndarray) and image.dtype.kind in "SU":
        return [_answered(each, upscale) for each in image.ravel().tolist()]
    if isinstance(image, list | tuple):
        return [_answered(each, upscale) for each in image]
    return upscale_any(image, upscale)


class SuperResolution(PythonModel):
    """Upscales images four times."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the generator onto a GPU if there is one.

        Raises:
            WeightsError: the model's weights or its code changed after the registration.
        """
        generator = Path(context.artifacts["generator"])
        check_unchanged(generator.parents[1], context.model_config or {}, "this model")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = load_generator(generator).to(device).eval()

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        # MLflow takes any other type hint as a schema, which would contradict the signature.
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Upscale images of any size in float32, in tiles of at most `params["tile"]` pixels.

        What `bebygan.imaging.kinds.upscale_any` takes gives the same kind. Over HTTP, JSON holds arrays of integers,
        or base64 of image files, which gives base64 of PNG files. An array of N images of different sizes gives such an
        array; a table gives a list of its first column's images.

        Raises:
            MlflowException: the input holds no image, or `tile` is below 1; an HTTP server answers 400 with this
                message.
        """
        tile = int((params or {}).get("tile", 512))
        if tile < 1:
            raise MlflowException.invalid_parameter_value(f"tile must be at least 1, not {tile}")
        upscale = partial(upscale_image, self.generator, tile=tile)
        images = model_input
        if hasattr(images, "iloc"):
            images = images.iloc[:, 0].tolist()
        try:
            upscaled = _answered(images, upscale)
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        if not (isinstance(images, np.ndarray) and images.dtype == object):
            return upscaled
        result = np.empty(len(upscaled), object)
        result[:] = upscaled
        return result


mlflow.models.set_model(SuperResolution())
