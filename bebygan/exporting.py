"""Files of a generator for other programs: ONNX, ncnn, and safetensors in the public namings."""

import warnings
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from bebygan.errors import WeightsError
from bebygan.exporting_ncnn import export_ncnn
from bebygan.files import whole_file
from bebygan.networks.generator import Generator, ResidualDenseBlock, ResidualInResidualDenseBlock
from bebygan.networks.naming import Naming, save_generator
from bebygan.settings import ExportKind

OPSET = 17
"""Version of ONNX's operators in the exported files; onnxruntime reads it from 1.12 on."""


class _DenseBlock(nn.Module):
    """A residual dense block of concatenations, which ONNX has, without writing into a buffer, which it lacks."""

    def __init__(self, block: ResidualDenseBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        stack = x
        for conv in self.block.convs[:4]:
            stack = torch.cat([stack, nn.functional.leaky_relu(conv(stack), 0.2)], 1)
        return torch.add(x, self.block.conv5(stack), alpha=0.2)


class _Exported(nn.Module):
    """The generator as one graph, without bands of rows."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        blocks = cast(Iterable[ResidualInResidualDenseBlock], generator.RRDB_trunk)
        self.blocks = nn.ModuleList(
            nn.Sequential(*map(_DenseBlock, (block.RDB1, block.RDB2, block.RDB3))) for block in blocks
        )

    def forward(self, lr: Tensor) -> Tensor:
        first = x = self.generator.conv_first(lr)
        for dense in self.blocks:
            x = torch.add(x, dense(x), alpha=0.2)
        return self.generator.pixels(first + self.generator.trunk_conv(x))


def export_onnx(generator: Generator, path: Path) -> None:
    """Write a generator as ONNX: input `lr` (N, 3, H, W), output `sr` (N, 3, 4H, 4W), RGB in [0, 1], of any size.

    Args:
        generator: on the CPU.
        path: of the file, written atomically. Files have at most 2 GB, which 23 blocks are far from.

    Raises:
        WeightsError: the package onnx is not installed.
        StorageError: the file cannot be written.
    """
    try:
        import_module("onnx")
    except ModuleNotFoundError as error:
        raise WeightsError("ONNX needs the package onnx: pip install onnx") from error
    sizes = {0: "n", 2: "height", 3: "width"}
    with whole_file(path) as temporary, warnings.catch_warnings():
        # The exporter of torch.export needs more packages.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Exported(generator.eval()),
            (torch.zeros(1, 3, 9, 8),),
            str(temporary),
            dynamo=False,
            opset_version=OPSET,
            input_names=["lr"],
            output_names=["sr"],
            dynamic_axes={"lr": sizes, "sr": {axis: f"sr_{name}" if axis else name for axis, name in sizes.items()}},
        )


def export(
    generator: Generator,
    kind: ExportKind,
    path: Path,
    naming: Naming = "basicsr",
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write a generator as a file for other programs, and return the files: two for ncnn.

    Args:
        generator: on the CPU.
        kind: of the file.
        path: of the file; of ncnn's graph.
        naming: of the weights in safetensors.
        metadata: text kept in the header of safetensors.

    Raises:
        WeightsError: the package onnx is not installed, or the weights do not fit the format.
        StorageError: the file cannot be written.
    """
    if kind == "ncnn":
        return list(export_ncnn(generator, path))
    if kind == "onnx":
        export_onnx(generator, path)
    else:
        save_generator(generator, path, naming, metadata)
    return [path]
