"""`bebygan export`: write a model as a file for other programs."""

import argparse

from bebygan.exporting import OPSET
from bebygan.exporting import export as export_as
from components.progress import printable
from pipelines.named_model import named_model
from pipelines.upscaling import load_named


def export(options: argparse.Namespace) -> None:
    """Write the named model.

    Raises:
        WeightsError, ServiceError: the model is missing, damaged or unreachable, or the package onnx is missing.
        StorageError: the file cannot be written.
    """
    with named_model(options) as found:
        model = found()
        generator, what = load_named(model), model.what
    files = export_as(generator, options.to, options.output, options.naming, {"model": what})
    names = f"names of {options.naming}"
    kind = {"onnx": f"ONNX, opset {OPSET}, of any size", "ncnn": "ncnn", "safetensors": f"safetensors, {names}"}
    print(printable(f"{what} written to {' and '.join(map(str, files))} ({kind[options.to]})"))
