"""Load a model with MLflow alone and upscale the images of a file: `load_check.py MODEL_URI IMAGES.npy RESULT.npz`.

The result holds "pixels", the upscaled images, and "origin", the file of the package `bebygan` that was imported.
"""

import sys

import mlflow.pyfunc
import numpy as np

if __name__ == "__main__":
    model_uri, images, result = sys.argv[1:]
    pixels = mlflow.pyfunc.load_model(model_uri).predict(np.load(images))
    np.savez(result, pixels=pixels, origin=np.array(sys.modules["bebygan"].__file__))
