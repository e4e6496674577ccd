import os
import signal
from pathlib import Path

from bebygan.networks.generator import Generator
from bebygan.settings import GeneratorShape
from pipelines.processes import upscale_in_processes


def _killed_by_bad_files(_: Generator, source: Path, target: Path) -> None:
    if source.name == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    target.write_text("done")


def test_a_photograph_that_kills_its_process_is_refused_and_the_others_are_done(tmp_path: Path) -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    targets = {tmp_path / name: tmp_path / f"{name}.out" for name in ("a", "bad", "c", "d")}
    found = dict(upscale_in_processes(generator, _killed_by_bad_files, targets, 2))
    assert "bad: its process was killed, perhaps for the memory that it took" in str(found.pop(tmp_path / "bad"))
    assert found == dict.fromkeys([tmp_path / "a", tmp_path / "c", tmp_path / "d"])
    assert {path.name for path in tmp_path.iterdir()} == {"a.out", "c.out", "d.out"}
