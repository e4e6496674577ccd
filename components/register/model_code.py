"""The registered model, with the package `bebygan` of the version that registered it.

MLflow executes this file where it loads the model, and where `components` cannot be imported.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from bebygan.imaging.tiling import upscale_image
from bebygan.networks.naming import load_generator
from bebygan.registered_model import check_unchanged


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
    ) -> npt.NDArray[Any]:
        """Upscale images of any size, in tiles of at most `params["tile"]` pixels.

        (N, H, W, 3) uint8 RGB gives (N, 4H, 4W, 3), an array of N images of different sizes gives such an array, and,
        unless MLflow checks the signature, one image (H, W, 3) gives (4H, 4W, 3).
        """
        tile = int((params or {}).get("tile", 512))
        if model_input.ndim == 3:
            return upscale_image(self.generator, model_input, tile=tile)
        upscaled = [upscale_image(self.generator, np.asarray(image), tile=tile) for image in model_input]
        if model_input.ndim == 4:
            return np.stack(upscaled)
        result = np.empty(len(upscaled), object)
        result[:] = upscaled
        return result


mlflow.models.set_model(SuperResolution())
