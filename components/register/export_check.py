"""Run an exported model without torch: `export_check.py FILE IMAGES.npz RESULTS.npz`.

Images and results are (3, H, W) float32 RGB in [0, 1], by name. FILE ends with .onnx, or with .param for ncnn.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def _onnx(path: Path) -> Callable[[Any], Any]:
    # Reports of missing GPUs are no errors.
    session = import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"lr": image[None]})[0][0]


def _ncnn(path: Path) -> Callable[[Any], Any]:
    ncnn = import_module("ncnn")
    network = ncnn.Net()
    if network.load_param(str(path)) or network.load_model(str(path.with_suffix(".bin"))):
        raise ValueError(f"ncnn cannot load {path.name}")

    def upscale(image: Any) -> Any:
        extractor = network.create_extractor()
        extractor.input("data", ncnn.Mat(image))
        failed, result = extractor.extract("output")
        if failed:
            raise ValueError(f"ncnn cannot run {path.name}")
        return np.array(result)

    return upscale


if __name__ == "__main__":
    model, images, results = map(Path, sys.argv[1:])
    upscale = {".onnx": _onnx, ".param": _ncnn}[model.suffix](model)
    with np.load(images) as asked:
        np.savez(results, **{name: upscale(image) for name, image in asked.items()})
