import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from bebygan.errors import ConfigError, ServiceError
from bebygan.files import sha256_of
from bebygan.imaging.tiling import upscale_image
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator, save_generator
from bebygan.settings import GeneratorShape
from components.tracking.address import database_uri
from components.tracking.client import mlflow_client
from pipelines import cli
from pipelines.named_model import in_other_process
from pipelines.upscale import plan
from tests.bebygan.imaging.test_picture_files import bomb

ROOT = Path(__file__).parents[2]
Upscale = Callable[..., int]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights" / "generator.safetensors"
    path.parent.mkdir()
    torch.manual_seed(1)  # others give black pictures
    save_generator(Generator(GeneratorShape(blocks=1, features=4, growth=2)), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three photographs in two folders, and a text."""
    folder = tmp_path / "photographs"
    (folder / "trip").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.png", "b.bmp", "trip/a.jpg"):
        Image.fromarray(random.integers(0, 256, (12, 20, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a photograph")
    return folder


@pytest.fixture
def upscale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Upscale:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    workspace = tmp_path / "workspace"

    def run(*arguments: object) -> int:
        options = ["--params", ROOT / "params.yaml", "--workspace", workspace]
        return cli.main(["upscale", *map(str, [*arguments, *options])])

    return run


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_mirrored_and_each_photograph_is_four_times_as_large(
    upscale: Upscale, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert upscale(folder, "--output", out, "--model", weights, "--tile", 8) == 0
    assert contents(out) == {"a.png", "b.bmp", "trip/a.jpg"}
    assert capsys.readouterr().out == f"3 of 3 photographs written to {out}\n"
    with Image.open(folder / "a.png") as lr, Image.open(out / "a.png") as sr:
        generator = load_generator(weights).eval()
        expected = upscale_image(generator, np.asarray(lr), tile=8)
        assert np.abs(np.asarray(sr).astype(int) - expected).max() <= 1


def test_photographs_that_are_there_are_kept_unless_overwritten(
    upscale: Upscale, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_text("kept")
    assert upscale(folder, "-o", out, "--model", weights) == 0
    assert (out / "a.png").read_text() == "kept"
    assert "2 of 3 photographs written" in capsys.readouterr().out
    # Nothing is left to do, so no model is needed.
    assert upscale(folder, "-o", out) == 0
    assert capsys.readouterr().out.splitlines()[1] == "3 were there already: --overwrite writes them again"
    assert upscale(folder, "-o", out, "--model", weights, "--overwrite") == 0
    with Image.open(out / "a.png") as written:
        assert written.size == (80, 48)


def test_one_bad_file_does_not_stop_the_others(
    upscale: Upscale, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad\x1b[31m.png").write_bytes((folder / "a.png").read_bytes()[:100])
    assert upscale(folder, "-o", tmp_path / "out", "--model", weights) == 3
    told, said = capsys.readouterr()
    assert contents(tmp_path / "out") == {"a.png", "b.bmp", "trip/a.jpg"}
    assert "3 of 4 photographs written" in told
    assert "refused: cannot read " in said
    assert "\x1b" not in said
    assert "error: 1 of 4 photographs were refused" in said


def test_several_processes_write_what_one_writes_and_refuse_what_it_refuses(
    upscale: Upscale, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:100])
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "b.bmp").write_text("kept")
    assert upscale(folder, "-o", tmp_path / "one", "--model", weights, "--precision", "fp32") == 3
    options = ["--model", weights, "--precision", "fp32", "--processes", 2]
    assert upscale(folder, "-o", tmp_path / "two", *options) == 3
    told, said = capsys.readouterr()
    assert "2 of 4 photographs written" in told
    assert "1 were there already" in told
    assert "upscaling 3 photographs with" in said
    assert ", 2 at a time" in said
    assert said.count("refused: cannot read") == 2
    assert (tmp_path / "two" / "b.bmp").read_text() == "kept"
    for name in ("a.png", "trip/a.jpg"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_single_photograph_may_be_given_a_name(upscale: Upscale, folder: Path, weights: Path, tmp_path: Path) -> None:
    assert upscale(folder / "trip" / "a.jpg", "-o", tmp_path / "large.webp", "--model", weights) == 0
    with Image.open(tmp_path / "large.webp") as written:
        assert (written.format, written.size) == ("WEBP", (80, 48))


def test_an_output_that_names_a_file_is_not_made_a_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^\.gif is not written: name a folder, or a file that ends in \.jpg, "):
        plan([folder / "a.png"], tmp_path / "large.gif")
    for inputs in ([folder], [folder / "a.png", folder / "trip" / "a.jpg"]):
        with pytest.raises(
            ConfigError, match=r"/large\.png is the name of one file, and there are several photographs"
        ):
            plan(inputs, tmp_path / "large.png")
    (tmp_path / "old.gif").mkdir()
    assert plan([folder / "a.png"], tmp_path / "old.gif") == {folder / "a.png": tmp_path / "old.gif" / "a.png"}
    assert plan([folder / "a.png"], tmp_path / "v1.2") == {folder / "a.png": tmp_path / "v1.2" / "a.png"}


def test_the_plan_keeps_writable_endings_and_leaves_out_its_own_output(folder: Path) -> None:
    shutil.copy(folder / "a.png", folder / "c.gif")
    out = folder / "large"
    out.mkdir()
    shutil.copy(folder / "a.png", out / "a.png")
    assert plan([folder], out) == {
        folder / "a.png": out / "a.png",
        folder / "b.bmp": out / "b.bmp",
        folder / "c.gif": out / "c.gif.png",
        folder / "trip" / "a.jpg": out / "trip" / "a.jpg",
    }


def test_a_plan_that_would_lose_a_photograph_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a.png", folder / "trip" / "a.png")
    with pytest.raises(ConfigError, match=r"a\.png and .*trip/a\.png would both be written to"):
        plan([folder / "a.png", folder / "trip" / "a.png"], tmp_path / "out")
    with pytest.raises(ConfigError, match="would be replaced by its own enlargement"):
        plan([folder / "a.png"], folder / "a.png")
    with pytest.raises(ConfigError, match="would be replaced by its own enlargement"):
        plan([folder / "a.png"], folder)
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        plan([folder / "a.png", tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="there are no photographs in"):
        plan([tmp_path / "empty"], tmp_path / "out")


@pytest.fixture
def champion(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stored weights of version 1, the champion of the workspace."""
    workspace = tmp_path / "workspace"
    stored = workspace / "stored" / "artifacts" / "generator.safetensors"
    stored.parent.mkdir(parents=True)
    shutil.copy(weights, stored)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", database_uri(workspace / "mlflow.db"))
        client = mlflow_client()
        client.create_registered_model("bebygan")
        source, tags = stored.parents[1].as_uri(), {"weights_sha256": sha256_of(stored)}
        client.create_model_version("bebygan", source, tags=tags)
        client.set_registered_model_alias("bebygan", "champion", "1")
    return stored


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_fidelity_goes_from_the_training_alone_to_the_start_and_its_default_is_the_version(
    upscale: Upscale, folder: Path, champion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    start = champion.with_name("start.safetensors")
    save_generator(Generator(GeneratorShape(blocks=1, features=4, growth=2)), start)

    def enlarged(name: str, *options: object) -> npt.NDArray[np.uint8]:
        arguments = ["--precision", "fp32", "-o", tmp_path / f"{name}.png", *options]
        assert upscale(folder / "a.png", *arguments) == 0, capsys.readouterr().err
        return pixels(tmp_path / f"{name}.png")

    assert upscale(folder / "a.png", "-o", tmp_path / "no.png", "--fidelity", 0.5) == 5
    assert "the weights that the training of models:/bebygan/1 started from are not in the" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", database_uri(tmp_path / "workspace" / "mlflow.db"))
        for name, text in {"train.start_share": "0.25", "start_sha256": sha256_of(start)}.items():
            mlflow_client().set_model_version_tag("bebygan", "1", name, text)
    default = enlarged("default")
    assert np.array_equal(enlarged("stored", "--fidelity", 0.25), default)
    assert np.array_equal(enlarged("start", "--fidelity", 1), enlarged("file", "--model", start))
    assert not np.array_equal(enlarged("half", "--fidelity", 0.5), default)
    assert "upscaling 1 photographs with models:/bebygan/1 at fidelity 0.5" in capsys.readouterr().err
    start.write_bytes(champion.read_bytes())
    assert upscale(folder / "a.png", "-o", tmp_path / "no.png", "--fidelity", 0.5) == 5
    assert "models:/bebygan/1 is damaged: its weights have SHA-256" in capsys.readouterr().err
    assert upscale(folder / "a.png", "-o", tmp_path / "no.png", "--fidelity", 0.5, "--model", champion) == 2
    assert "--fidelity needs a registered version" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        upscale(folder / "a.png", "-o", tmp_path / "no.png", "--fidelity", 1.5)


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize("model", ["champion", "1", "models:/bebygan/1", "models:/bebygan@champion"])
def test_versions_of_the_workspace_are_named_by_alias_number_or_address(
    model: str, upscale: Upscale, folder: Path, tmp_path: Path
) -> None:
    assert upscale(folder / "a.png", "-o", tmp_path / "out", "--model", model) == 0
    assert contents(tmp_path / "out") == {"a.png"}


def test_a_damaged_champion_upscales_nothing(
    upscale: Upscale, folder: Path, champion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_generator(load_generator(champion), champion, metadata={"other": "model"})
    assert upscale(folder, "-o", tmp_path / "out") == 5
    assert "error: models:/bebygan/1 is damaged: its weights have SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("champion", "has no models yet: train one with `bebygan run`, or name weights, such as bebygan-4x32"),
        ("lost.pth", "the file lost.pth does not exist"),
    ],
)
def test_a_missing_model_is_said_and_leaves_no_database(
    model: str, said: str, upscale: Upscale, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale(folder, "-o", folder.parent / "out", "--model", model) == 5
    assert said in capsys.readouterr().err
    assert not (folder.parent / "workspace").exists()


@pytest.mark.parametrize("model", ["7", "previous", "models:/other/1"])
@pytest.mark.usefixtures("champion")
def test_an_unknown_version_is_named(
    model: str, upscale: Upscale, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale(folder, "-o", tmp_path / "out", "--model", model) == 5
    assert (
        "in this registry: name one that `bebygan models` shows, or train one with `bebygan run`"
        in capsys.readouterr().err
    )


def test_a_photograph_that_does_not_fit_into_the_memory_is_refused(
    upscale: Upscale, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale(folder, "-o", tmp_path / "out", "--model", weights, "--max-memory", "100MB") == 3
    said = capsys.readouterr().err
    assert re.search(r"a\.png needs about \d\.\d GB of memory: raise --max-memory, or cut it into parts", said)
    assert upscale(folder, "-o", tmp_path / "out", "--model", weights, "--max-memory", "8GB") == 0


def test_upscaling_with_a_file_of_weights_imports_nothing_slow_but_torch() -> None:
    for module, slow in (
        ("pipelines.upscaling", {"mlflow", "sqlalchemy", "torch._dynamo", "sympy", "pandas"}),
        ("pipelines.upscale", {"mlflow", "sqlalchemy", "torch", "pandas"}),
    ):
        code = f"import sys, {module}; print(*{slow} & set(sys.modules))"
        assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == ""
    code = "import sys, components.tracking.registry; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "False"


@pytest.mark.parametrize(
    ("model", "ending"),
    [
        ("champion", (0, "upscaling 1 photographs with models:/bebygan/1")),
        ("7", (5, "error: the model bebygan has no version 7 in this registry")),
    ],
)
def test_another_process_finds_a_version_while_this_one_imports_torch(
    folder: Path, champion: Path, tmp_path: Path, model: str, ending: tuple[int, str]
) -> None:
    workspace = champion.parents[2]
    program = "import sys; from pipelines.cli import main; print(main(sys.argv[1:]), 'mlflow' in sys.modules)"
    options = ["--model", model, "--workspace", str(workspace), "--params", str(ROOT / "params.yaml")]
    arguments = ["upscale", str(folder / "a.png"), "-o", str(tmp_path / "a.png"), *options]
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    code, said = ending
    assert done.stdout.splitlines()[-1] == f"{code} False"
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_is_killed_while_it_finds_a_version_is_told() -> None:
    with (
        pytest.raises(ServiceError, match="was ended: run the command again"),
        in_other_process(partial(os._exit, 9)) as found,
    ):
        found()


def test_a_pattern_names_what_matches_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert plan([folder / "*.png"], out) == {folder / "a.png": out / "a.png"}
    assert len(plan([folder / "**" / "a.*"], out)) == 2
    shutil.copy(folder / "a.png", folder / "[a].png")
    assert plan([folder / "[a].png"], out) == {folder / "[a].png": out / "[a].png"}
    with pytest.raises(ConfigError, match=r"\*\.webp does not exist: name files, folders or patterns"):
        plan([folder / "*.webp"], out)


def test_a_link_out_of_the_folder_is_refused(
    upscale: Upscale, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "a.png", tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside.png").symlink_to(folder / "a.png")
    (tmp_path / "album").mkdir()
    (folder / "album").symlink_to(tmp_path / "album")
    (folder / "same trip").symlink_to(folder / "trip")
    (folder / "lost.png").symlink_to(folder / "nowhere.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert upscale(folder, "-o", tmp_path / "out", "--model", weights) == 3
    told = capsys.readouterr().err
    for name in ("link.png", "album", "gone.png"):
        assert f"{name} is a link out of the folder: name what it links to itself" in told
    assert contents(tmp_path / "out") == {"a.png", "b.bmp", "inside.png", "trip/a.jpg"}
    assert upscale(folder / "link.png", "-o", tmp_path / "out", "--model", weights) == 0


def test_an_output_inside_of_the_photographs_is_told_and_not_upscaled_again(
    upscale: Upscale, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for written in (3, 0):
        assert upscale(folder, "-o", folder / "large", "--model", weights) == 0
        told, said = capsys.readouterr()
        assert f"{written} of 3 photographs written" in told
        assert f"{folder / 'large'} is inside of {folder}: what is there already is not upscaled" in said
    assert upscale(folder, "-o", folder, "--model", weights) == 2
    assert "is the folder of the photographs: choose another --output" in capsys.readouterr().err


def test_a_pipe_which_never_ends_is_refused(
    upscale: Upscale, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert upscale(tmp_path / "pipe.png", "-o", tmp_path / "out", "--model", weights) == 2
    assert "pipe.png is neither a file nor a folder" in capsys.readouterr().err


def test_the_longest_names_are_written(upscale: Upscale, folder: Path, weights: Path, tmp_path: Path) -> None:
    name = "é" * 125 + ".png"
    shutil.copy(folder / "a.png", folder / name)
    assert upscale(folder / name, "-o", tmp_path / "out", "--model", weights) == 0
    assert contents(tmp_path / "out") == {name}


def test_the_smallest_and_the_longest_photographs_are_upscaled_and_a_bomb_is_refused(
    upscale: Upscale, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    Image.new("RGB", (1, 1)).save(odd / "dot.png")
    Image.new("L", (50_000, 3)).save(odd / "line.png")
    Image.fromarray(np.full((5, 4), 40_000, np.uint16)).save(odd / "deep.png")
    bomb(odd / "bomb.png")
    assert upscale(odd, "-o", tmp_path / "out", "--model", weights) == 3
    assert "bomb.png (Image size (3600000000 pixels) exceeds limit" in capsys.readouterr().err
    sizes = {
        path.name: (image.size, image.mode) for path in (tmp_path / "out").iterdir() for image in [Image.open(path)]
    }
    assert sizes == {"dot.png": ((4, 4), "RGB"), "line.png": ((200_000, 12), "L"), "deep.png": ((16, 20), "I;16")}


KILLED = """
import os, signal, sys
from bebygan.imaging import picture_files
from pipelines import cli

encode = picture_files._IN_BLOCKS["PNG"]

def encode_one(file, frame, blocks, options):
    if os.path.exists(sys.argv[-1]):
        file.write(next(blocks).tobytes())
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    encode(file, frame, blocks, options)

picture_files._IN_BLOCKS["PNG"] = encode_one
cli.main(sys.argv[1:-1])
"""


def test_after_a_kill_the_same_command_goes_on(
    upscale: Upscale, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "a.png", folder / "c.png")
    out, options = tmp_path / "out", ["--model", weights, "--params", ROOT / "params.yaml"]
    command = [sys.executable, "-c", KILLED, "upscale", folder, "-o", out, *options, out / "a.png"]
    assert subprocess.run(list(map(str, command)), cwd=ROOT, check=False).returncode == -9
    first = (out / "a.png").stat()
    # What it had begun is under a hidden name.
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {"a.png", "b.bmp"}
    assert len(list(out.glob(".c.png.*.part"))) == 1
    assert upscale(folder, "-o", out, *options) == 0
    assert "2 of 4 photographs written" in capsys.readouterr().out
    assert (out / "a.png").stat() == first
    assert pixels(out / "c.png").shape == (48, 80, 3)


def test_a_truncated_file_among_hundreds_does_not_stop_the_others(
    upscale: Upscale, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    for number in range(200):
        (many / f"{number:03}.png").write_bytes(content if number != 100 else content[:60])
    for written in (199, 0):
        assert upscale(many, "-o", many / "large", "--model", weights) == 3
        told, said = capsys.readouterr()
        assert f"{written} of 200 photographs written" in told
        assert "refused: cannot read" in said
        assert "100.png (image file is truncated)" in said
    assert len(contents(many / "large")) == 199


def test_names_that_are_no_text_are_read_written_and_told(
    upscale: Upscale, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [os.fsdecode(name) for name in (b"\xff\xfe.png", b"\xff broken.png")]
    shutil.copy(folder / "a.png", folder / names[0])
    (folder / names[1]).write_bytes(b"")
    assert upscale(folder, "-o", tmp_path / "out", "--model", weights) == 3
    assert contents(tmp_path / "out") == {"a.png", "b.bmp", "trip/a.jpg", names[0]}
    assert r"\udcff broken.png is no JPEG, PNG" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_ends_the_batch_with_its_own_code(
    upscale: Upscale, folder: Path, weights: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert upscale(folder, "-o", small_disk / "out", "--model", weights) == 6
    assert "a.png: the file system is read-only" in capsys.readouterr().err
    assert upscale(folder, "-o", weights, "--model", weights) == 6
    assert "a.png: a file is where a folder should be" in capsys.readouterr().err


def test_an_unreachable_registry_and_one_without_a_champion_are_told(
    upscale: Upscale, folder: Path, champion: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = champion.parents[2]
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", database_uri(workspace / "mlflow.db"))
        mlflow_client().delete_registered_model_alias("bebygan", "champion")
    assert upscale(folder, "-o", folder.parent / "out") == 5
    assert "the model bebygan has no champion in this registry: name one that" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert upscale(folder, "-o", folder.parent / "out") == 4
    assert "failed at MLflow's http://127.0.0.1:9 (Connection refused)" in capsys.readouterr().err
    assert not (folder.parent / "out").exists()


def test_a_size_that_is_none_is_a_usage_error(upscale: Upscale, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        upscale(folder, "-o", tmp_path / "out", "--max-memory", "much")


def test_a_full_disk_ends_the_batch_with_its_own_code(
    upscale: Upscale, folder: Path, weights: Path, small_disk: Path
) -> None:
    # 300 kB without compression.
    Image.new("RGB", (80, 80)).save(folder / "0.bmp")
    assert upscale(folder, "-o", small_disk / "out", "--model", weights) == 6
    assert not [name for name in os.listdir(small_disk / "out") if not name.startswith(".")]
