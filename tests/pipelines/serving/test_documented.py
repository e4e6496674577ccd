"""What docs/serving.md shows works as it is written."""

import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.serving import Registry
from pipelines.cli import main
from tests.pipelines.serving.asking import RGB, asked
from tests.pipelines.serving.conftest import Running
from tests.servers import install

TEXT = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def test_the_documented_requests_are_answered(
    ready: Callable[..., Running], registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = ready()
    Image.fromarray(RGB).save(tmp_path / "small.png")
    expected = registry.answer("1", (tmp_path / "small.png").read_bytes())
    [curl] = re.findall(r"```sh\n(curl .*?/upscale\n)```", TEXT, re.DOTALL)
    [python] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    if not shutil.which("curl"):
        install("curl", "curl")
    monkeypatch.chdir(tmp_path)
    for run in (
        lambda: subprocess.run(["sh", "-c", curl.replace(":8080", f":{running.port}")], check=True),
        lambda: exec(python.replace(":8080", f":{running.port}"), {}),  # noqa: S102 - of our own page
    ):
        run()
        assert (tmp_path / "large.png").read_bytes() == expected
        (tmp_path / "large.png").unlink()


def test_the_documented_metrics_and_statuses_are_those_of_the_server(ready: Callable[..., Running]) -> None:
    metrics = asked(ready().port, "GET", "/metrics")[2].decode()
    told = set(re.findall(r"`(bebygan_\w+)", TEXT))
    assert told == set(re.findall(r"# TYPE (bebygan_\w+)", metrics))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "TAKEN"], "port TAKEN of 127.0.0.1 cannot be used (Address already in use): name another --port"),
        (["--port", "65536"], "port 65536 of 127.0.0.1 cannot be used (bind(): port must be 0-65535.): name another"),
        (["--host", "256.1.1.1"], "port 8080 of 256.1.1.1 cannot be used (Name or service not known): name another"),
    ],
)
def test_an_address_that_cannot_be_used_is_named(
    options: list[str], said: str, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [port if word == "TAKEN" else word for word in options]
        assert main(["serve", "--workspace", str(registry.workspace), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said.replace('TAKEN', port)}")


@pytest.mark.parametrize(
    "option", ["--poll=-1", "--poll=0", "--poll=nan", "--max-pixels=inf", "--max-pixels=", "--queue=0"]
)
def test_a_limit_that_is_no_number_above_0_is_rejected(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["serve", option])
    assert " is not a number " in capsys.readouterr().err


def test_the_documented_options_exist_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    told = set(re.findall(r"--[a-z][a-z-]+", TEXT.split("## MLflow's own")[0]))
    of_curl = {"--fail-with-body", "--header", "--data-binary", "--output"}
    assert told - of_curl <= set(re.findall(r"--[a-z-]+", text))
    assert "(default: 32MB)" in text
    for option, default in (("queue", "16"), ("max-pixels", "4.0"), ("poll", "2")):
        assert re.search(rf"--{option} \S+ [^-]*\(default: {default}\)", text), option
