from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from bebygan.errors import WeightsError
from bebygan.exporting import OPSET, export_onnx
from bebygan.exporting_ncnn import export_ncnn
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator, save_generator
from bebygan.networks.weights import read_state
from bebygan.pretrained.readers import read_ncnn
from bebygan.settings import GeneratorShape
from pipelines import cli

ROOT = Path(__file__).parents[2]
LAPTOP = ROOT / "data" / "pretrained" / "rrdb-4x32.safetensors"


@pytest.mark.parametrize(("naming", "key"), [("esrgan", "trunk_conv.weight"), ("basicsr", "conv_body.weight")])
def test_weights_are_written_in_a_public_naming(
    naming: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    save_generator(generator, tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    options = ["--to", "safetensors", "--naming", naming, "-o", str(out), "--params", str(ROOT / "params.yaml")]
    assert cli.main(["export", str(tmp_path / "a.safetensors"), *options]) == 0
    assert f"written to {out} (safetensors, names of {naming})" in capsys.readouterr().out
    assert key in read_state(out)
    found = load_generator(out).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in generator.state_dict().items())


def test_onnx_computes_what_torch_computes_at_any_size(tmp_path: Path) -> None:
    generator, out = load_generator(LAPTOP).eval(), tmp_path / "a.onnx"
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        with pytest.raises(WeightsError, match="ONNX needs the package onnx: pip install onnx"):
            export_onnx(generator, out)
        return
    import onnx
    import onnxruntime

    options = ["--to", "onnx", "-o", str(out), "--params", str(ROOT / "params.yaml")]
    assert cli.main(["export", str(LAPTOP), *options]) == 0
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == OPSET
    runtime = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for size in ((1, 1, 1), (1, 7, 13), (2, 33, 18), (1, 5, 64)):
        lr = np.random.default_rng(0).random((size[0], 3, *size[1:]), np.float32)
        [found] = runtime.run(None, {"lr": lr})
        with torch.inference_mode():
            wanted = generator(torch.from_numpy(lr)).numpy()
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (33, 18)])
def test_ncnn_computes_what_torch_computes_at_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    import ncnn

    options = ["--to", "ncnn", "-o", str(tmp_path / "a.param"), "--params", str(ROOT / "params.yaml")]
    assert cli.main(["export", str(LAPTOP), *options]) == 0
    network = ncnn.Net()
    network.opt.num_threads = 1
    assert network.load_param(str(tmp_path / "a.param")) == network.load_model(str(tmp_path / "a.bin")) == 0
    lr = np.random.default_rng(0).random((3, *size), np.float32)
    extractor = network.create_extractor()
    extractor.input("data", ncnn.Mat(lr))
    failed, found = extractor.extract("output")
    assert not failed
    with torch.inference_mode():
        wanted = load_generator(LAPTOP).eval()(torch.from_numpy(lr)[None])[0].numpy()
    assert np.array(found).shape == wanted.shape
    # Weights in half precision.
    assert np.abs(np.array(found) - wanted).max() < 2e-3


def test_the_weights_for_ncnn_are_those_of_the_generator_in_half_precision(tmp_path: Path) -> None:
    generator = load_generator(LAPTOP)
    graph, weights = export_ncnn(generator, tmp_path / "a.param")
    state = generator.state_dict()
    found = read_ncnn(weights, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert all(
        torch.equal(found[name], state[name].half().float() if name.endswith("weight") else state[name])
        for name in state
    )
    magic, counts, *layers = graph.read_text().splitlines()
    assert (magic, len(layers)) == ("7767517", int(counts.split()[0]))
    generator.conv_first.weight.data[0] = 1e5
    with pytest.raises(WeightsError, match=r"conv_first\.weight holds numbers above 65504"):
        export_ncnn(generator, tmp_path / "b.param")
    assert not (tmp_path / "b.param").exists()


def test_an_unknown_model_or_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-o", str(tmp_path / "a"), "--params", str(ROOT / "params.yaml"), "--workspace", str(tmp_path)]
    assert cli.main(["export", "lost.pth", "--to", "onnx", *options]) == 5
    assert "the file lost.pth does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(LAPTOP), "--to", "tflite", *options])
