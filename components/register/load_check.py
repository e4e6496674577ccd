"""Load a model with MLflow alone and upscale the images of a file.

Called as `python -I load_check.py MODEL_URI IMAGES.npy RESULT.npz`; the result also says where `bebygan` came from.
"""

import sys

import mlflow.pyfunc
import numpy as np


def main(model_uri: str, images: str, result: str) -> None:
    """Write "pixels", the upscaled images, and "origin", the file of the package `bebygan`."""
    pixels = mlflow.pyfunc.load_model(model_uri).predict(np.load(images))
    np.savez(result, pixels=pixels, origin=np.array(sys.modules["bebygan"].__file__))


if __name__ == "__main__":
    main(*sys.argv[1:])
