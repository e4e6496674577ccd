"""A generator as the two files of ncnn: .param, the graph as text, and .bin, the weights in half precision."""

from collections import Counter
from itertools import count
from pathlib import Path

import torch

from bebygan.errors import WeightsError
from bebygan.files import whole_file
from bebygan.networks.generator import Generator
from bebygan.pretrained.readers import NCNN_HALF_PRECISION
from bebygan.settings import GeneratorShape

INPUT, OUTPUT = "data", "output"
"""Names of the graph's ends, which programs such as realsr-ncnn-vulkan and Upscayl look for."""
_MAGIC = 7767517
_Layer = tuple[str, list[str], list[str], str]
"""Kind, inputs, outputs, parameters."""


def _layers(shape: GeneratorShape) -> list[_Layer]:
    """Return the layers in the order of the forward pass; the convolutions in that of the weights."""
    layers: list[_Layer] = [("Input", [], [INPUT], "")]
    numbers = count(1)

    def add(kind: str, inputs: list[str], parameters: str, output: str = "") -> str:
        output = output or f"b{next(numbers)}"
        layers.append((kind, inputs, [output], parameters))
        return output

    def conv(x: str, inputs: int, outputs: int, *, leaky: bool = False, output: str = "") -> str:
        parameters = f"0={outputs} 1=3 4=1 5=1 6={9 * inputs * outputs}"
        return add("Convolution", [x], parameters + " 9=2 -23310=1,0.2" * leaky, output)

    def add_part(x: str, part: str) -> str:
        return add("Eltwise", [x, part], "0=1 -23301=2,1.0,0.2")

    def dense(x: str) -> str:
        stack = [x]
        for number in range(4):
            joined = add("Concat", stack, "0=0") if number else x
            stack = [*stack, conv(joined, features + number * growth, growth, leaky=True)]
        return add_part(x, conv(add("Concat", stack, "0=0"), features + 4 * growth, features))

    features, growth = shape.features, shape.growth
    first = x = conv(INPUT, 3, features)
    for _ in range(shape.blocks):
        x = add_part(x, dense(dense(dense(x))))
    x = add("BinaryOp", [first, conv(x, features, features)], "0=0")
    for _ in range(2):
        x = conv(add("Interp", [x], "0=1 1=2.0 2=2.0"), features, features, leaky=True)
    conv(conv(x, features, features, leaky=True), features, 3, output=OUTPUT)
    return layers


def _split(layers: list[_Layer]) -> list[_Layer]:
    """Give each reader of a blob a copy of its own, which ncnn requires."""
    readers = Counter(each for _, inputs, _, _ in layers for each in inputs)
    used: Counter[str] = Counter()
    result: list[_Layer] = []
    for kind, inputs, outputs, parameters in layers:
        mine = []
        for each in inputs:
            mine.append(f"{each}_{used[each]}" if readers[each] > 1 else each)
            used[each] += 1
        result.append((kind, mine, outputs, parameters))
        for each in outputs:
            if (copies := readers[each]) > 1:
                result.append(("Split", [each], [f"{each}_{number}" for number in range(copies)], ""))
    return result


def _graph(shape: GeneratorShape) -> str:
    layers = _split(_layers(shape))
    lines = [str(_MAGIC), f"{len(layers)} {sum(len(outputs) for _, _, outputs, _ in layers)}"]
    for number, (kind, inputs, outputs, parameters) in enumerate(layers):
        words = [f"{kind:16} {kind.lower()}{number}", str(len(inputs)), str(len(outputs)), *inputs, *outputs]
        lines.append(" ".join([*words, parameters]).rstrip())
    return "\n".join(lines) + "\n"


def _weights(generator: Generator) -> bytes:
    """Return the layers in the order of the forward pass, as `bebygan.pretrained.readers.read_ncnn` reads them."""
    parts = []
    for name, tensor in generator.state_dict().items():
        values = tensor.detach().cpu().contiguous().to(torch.float32)
        if name.endswith("bias"):
            parts.append(values.numpy().astype("<f4").tobytes())
            continue
        if not values.half().isfinite().all():
            raise WeightsError(f"{name} holds numbers above 65504, which ncnn's half precision lacks: export ONNX")
        half = values.half().numpy().astype("<f2").tobytes()
        parts.append(NCNN_HALF_PRECISION.to_bytes(4, "little") + half + b"\0" * (-len(half) % 4))
    return b"".join(parts)


def export_ncnn(generator: Generator, path: Path) -> tuple[Path, Path]:
    """Write a generator for ncnn: input `data` (3, H, W), output `output` (3, 4H, 4W), RGB in [0, 1], of any size.

    Args:
        generator: on any device.
        path: of the graph; the weights are beside it, with the ending .bin. Each is written atomically.

    Returns:
        Paths of the graph (.param) and of the weights (.bin).

    Raises:
        WeightsError: a weight is too large for half precision.
        StorageError: a file cannot be written.
    """
    graph, weights = path.with_suffix(".param"), path.with_suffix(".bin")
    for target, content in ((weights, _weights(generator)), (graph, _graph(generator.shape).encode())):
        with whole_file(target) as temporary:
            temporary.write_bytes(content)
    return graph, weights
