"""MLflow's own scoring server with a registered model, as docs/serving.md describes it."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bebygan.imaging.tiling import upscale_image
from bebygan.networks.naming import load_generator
from components.artifacts import Registration
from tests.conftest import free_ports
from tests.pipelines.serving.asking import asked, file_of, pixels
from tests.servers import answers, wait_for

pytestmark = pytest.mark.slow
TEXT = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
RGB = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)


@pytest.fixture
def scoring(registered: Callable[..., Registration], challenger: Path, tmp_path: Path) -> Iterator[int]:
    """Port of `mlflow models serve` with the champion."""
    registered(challenger, "promote")
    [port], log = free_ports(1), tmp_path / "log"
    [line] = re.findall(r"^mlflow (models serve .*)", TEXT, re.MULTILINE)
    command = line.replace("/bebygan@", "/tests@").replace("5001", str(port)).split()
    with log.open("w") as lines:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--workers", "1"],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            cwd=tmp_path, stdout=lines, stderr=lines, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), server, log)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def predicted(port: int, asking: Any) -> tuple[int, Any]:
    body = json.dumps(asking).encode()
    status, _, answer = asked(port, "POST", "/invocations", body, {"Content-Type": "application/json"})
    return status, json.loads(answer)


def test_mlflow_models_serve_answers_with_the_champion_s_image(scoring: int, challenger: Path, tmp_path: Path) -> None:
    text = base64.b64encode(file_of(Image.fromarray(RGB))).decode()
    expected = upscale_image(load_generator(challenger / "generator.safetensors").eval(), RGB)
    for asking in (
        {"inputs": [text]},
        {"instances": [f"data:image/png;base64,{text}"]},
        {"dataframe_records": [{"image": text}], "params": {"tile": 16}},
    ):
        status, answer = predicted(scoring, asking)
        assert status == 200
        [image] = answer["predictions"]
        assert np.array_equal(pixels(base64.b64decode(image)), expected)
    (tmp_path / "small.png").write_bytes(file_of(Image.fromarray(RGB)))
    [curl] = re.findall(r"```sh\n(echo .*?)```", TEXT, re.DOTALL)
    subprocess.run(["bash", "-c", curl.replace("5001", str(scoring))], cwd=tmp_path, check=True)
    assert np.array_equal(pixels((tmp_path / "large.png").read_bytes()), expected)
    for asking, said in (
        ({"inputs": ["no image"]}, "a text must be the base64 of an image file"),
        ({"inputs": [base64.b64encode(b"text").decode()]}, "the image is no JPEG, PNG"),
        ({"inputs": [[[300.5]]]}, "an array of float64 and values from 300.5 to 300.5 cannot be upscaled"),
        ({"inputs": {"image": 1}}, "dict cannot be upscaled"),
        ({"inputs": None}, "an array of shape () cannot be upscaled"),
        ({"inputs": [text], "params": {"tile": 0}}, "tile must be at least 1, not 0"),
    ):
        status, answer = predicted(scoring, asking)
        assert (status, "stack_trace" in answer) == (400, False)
        # MLflow quotes the request first.
        _, _, sentence = answer["message"].partition("\nError: ")
        assert sentence.startswith(said)
        assert "\n" not in sentence
