"""`bebygan export`: write a model as a file for other programs."""

import argparse

from bebygan.exporting import OPSET, export_onnx
from bebygan.networks import save_generator
from components.progress import printable
from pipelines.upscale import find_generator


def export(options: argparse.Namespace) -> None:
    """Write the named model.

    Raises:
        WeightsError, ServiceError: the model is missing, damaged or unreachable, or the package onnx is missing.
        StorageError: the file cannot be written.
    """
    generator, what = find_generator(options.model, options.params.evaluate.model_name, options.workspace)
    if options.to == "onnx":
        export_onnx(generator, options.output)
        kind = f"ONNX, opset {OPSET}, of any size"
    else:
        save_generator(generator, options.output, options.naming, {"model": what})
        kind = f"safetensors, names of {options.naming}"
    print(printable(f"{what} written to {options.output} ({kind})"))
