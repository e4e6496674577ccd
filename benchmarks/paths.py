"""Ways to run a generator on this processor, each beside plain torch in float32: time, memory and PSNR in 8 bits.

`python -m benchmarks.bench --only paths-23x64`. What `bebygan.imaging.tiling.upscale_fast` chooses by itself, bfloat16
where the processor computes it, else float32, and channels_last, is justified by these figures.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bebygan.exporting import export_onnx
from bebygan.imaging.convert import to_image, to_tensor
from bebygan.networks.naming import load_generator
from bebygan.precision import autocast, compile_in_place
from bebygan.settings import Precision
from bebygan.training.state import place
from benchmarks.comparing import CPU, Crops, psnr, time_and_memory
from benchmarks.figures import Figure, compared
from benchmarks.measuring import Measured, Prepare, Rounds, Work, in_turn
from benchmarks.upscaling import plain_upscaling
from components.progress import say

_COMPILED: tuple[Precision, ...] = ("fp32",)
"""Precisions with which torch.compile, which takes a minute, is measured."""


def _input(crops: Crops) -> torch.Tensor:
    return to_tensor(to_image(crops.read()[1]))


def _work(upscale: Callable[[], torch.Tensor]) -> Work:
    return lambda: {"sr": torch.from_numpy(to_image(upscale()))}


def _torch(crops: Crops, weights: Path, precision: Precision, *, channels_last: bool, compiled: bool = False) -> Work:
    generator, lr = place(load_generator(weights).eval(), CPU, channels_last=channels_last), _input(crops)
    if compiled:
        compile_in_place(generator)

    def upscale() -> torch.Tensor:
        with torch.inference_mode(), autocast(precision, CPU):
            found: torch.Tensor = generator(lr)
        return found

    return _work(upscale)


class _Calibration:
    """The one input on which onnxruntime measures the ranges of values."""

    def __init__(self, lr: NDArray[np.float32]) -> None:
        self._inputs = iter([{"lr": lr}])

    def get_next(self) -> Any:
        return next(self._inputs, None)


def _onnxruntime(crops: Crops, weights: Path, *, int8: bool) -> Work:
    lr, runtime = _input(crops).numpy(), import_module("onnxruntime")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fp32.onnx"
        export_onnx(load_generator(weights), path)
        if int8:
            quantization, whole = import_module("onnxruntime.quantization"), path
            path = whole.with_name("int8.onnx")
            quantization.quantize_static(whole, path, _Calibration(lr), per_channel=True)
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _work(lambda: torch.from_numpy(session.run(None, {"lr": lr})[0]))


def _openvino(crops: Crops, weights: Path, kind: str) -> Work:
    lr, core = _input(crops).numpy(), import_module("openvino").Core()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fp32.onnx"
        export_onnx(load_generator(weights), path)
        model = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": kind})
    return _work(lambda: torch.from_numpy(model(lr)[0]))


def paths(crops: Crops, weights: Path, rounds: Rounds) -> list[Figure]:
    """Measure each way whose packages are installed.

    Args:
        crops: one square crop of a photograph, whose LR is upscaled.
        weights: of the generator.
        rounds: how often all take their turn.
    """
    ways: dict[str, Prepare] = {
        "plain fp32": partial(plain_upscaling, crops, weights),
        "fp32, channels_last": partial(_torch, crops, weights, "fp32", channels_last=True),
        "bf16": partial(_torch, crops, weights, "bf16", channels_last=False),
        "bf16, channels_last": partial(_torch, crops, weights, "bf16", channels_last=True),
    }
    for precision in _COMPILED:
        compiled = partial(_torch, crops, weights, precision, channels_last=True, compiled=True)
        ways[f"{precision}, channels_last, torch.compile"] = compiled
    others: dict[str, dict[str, Prepare]] = {
        "onnxruntime": {
            "onnxruntime fp32": partial(_onnxruntime, crops, weights, int8=False),
            "onnxruntime int8": partial(_onnxruntime, crops, weights, int8=True),
        },
        "openvino": {f"OpenVINO {kind}": partial(_openvino, crops, weights, kind) for kind in ("f32", "bf16")},
    }
    for package, its in others.items():
        if find_spec(package):
            ways |= its
        else:
            say(f"without {package}, which is not installed")
    found = in_turn("paths", ways, rounds)
    reference: Measured = found.pop("plain fp32")
    figures, blocks = [], load_generator(weights).shape.blocks
    for way, measured in found.items():
        name = f"{blocks} blocks, {crops}, {way}"
        figures += time_and_memory(name, measured, reference, None, None)
        figures.append(compared(f"{name}: PSNR", psnr(measured, reference), 50, "dB", None, more_is_better=True))
    return figures
