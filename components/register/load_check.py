"""Load a model with MLflow alone and upscale the images of a file: `load_check.py MODEL_URI IMAGES.npy RESULT.npz`.

The result holds "pixels", the upscaled images, and "origin", the file of the package `bebygan` that was imported.
"""

import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np

if __name__ == "__main__":
    model_uri, images, result = sys.argv[1:]
    # Loaded in place, MLflow would decode a "%2F" in the path of an embedded store's artifacts.
    model = mlflow.pyfunc.load_model(model_uri, dst_path=str(Path(result).parent))
    pixels = model.predict(np.load(images))
    np.savez(result, pixels=pixels, origin=np.array(sys.modules["bebygan"].__file__))
