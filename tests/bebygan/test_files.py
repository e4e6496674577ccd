import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bebygan import files
from bebygan.errors import StorageError
from bebygan.files import checksums, sha256_of, whole_file, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole(tmp_path: Path) -> None:
    with whole_file(tmp_path / "deep" / "a") as temporary:
        temporary.write_text("all of it")
        assert not (tmp_path / "deep" / "a").exists()

    assert (tmp_path / "deep" / "a").read_text() == "all of it"
    assert names(tmp_path / "deep") == ["a"]


def test_a_folder_takes_the_place_of_an_older_one_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with whole_folder(tmp_path / "a") as temporary:
        (temporary / "new").touch()
        assert names(tmp_path / "a") == ["old"]

    assert names(tmp_path / "a") == ["new"]
    assert names(tmp_path) == ["a"]


REPLACED = """
import sys
from pathlib import Path
from bebygan.files import whole_folder
path, writer = Path(sys.argv[1]), sys.argv[2]
for number in range(60):
    with whole_folder(path) as folder:
        for name in "ab":
            (folder / name).write_text(f"{writer} {number}")
"""


@pytest.fixture(params=["in one step", "in two steps"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the system exchanges two folders in one step."""
    one = bool(request.param == "in one step")
    if not one:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    return one


def test_a_reader_always_finds_a_whole_folder_while_two_processes_replace_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_folder(path) as folder:
        for name in "ab":
            (folder / name).write_text("first")
    command = [sys.executable, "-c", REPLACED, str(path)]
    writers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in ("one", "two")]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        # An open folder stays the same while another takes its name.
        folder_open = os.open(path, os.O_RDONLY)
        try:
            texts = {Path(f"/proc/self/fd/{folder_open}/{name}").read_text() for name in "ab"}
        except FileNotFoundError:
            # It was replaced, and its content is being removed.
            continue
        finally:
            os.close(folder_open)
        assert len(texts) == 1
        seen |= texts
    assert [(writer.wait(), writer.communicate()[1]) for writer in writers] == [(0, ""), (0, "")]
    assert len(seen) > 2
    assert names(tmp_path) == ["a"]


def test_threads_that_replace_the_same_folder_all_succeed(tmp_path: Path, exchange: bool) -> None:
    def write(number: int) -> None:
        with whole_folder(tmp_path / "a") as folder:
            (folder / "number").write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert (tmp_path / "a" / "number").read_text().isdigit()
    assert names(tmp_path) == ["a"], exchange


def test_a_folder_whose_writer_was_killed_between_two_renames_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whole_folder(tmp_path / "a") as folder:
        (folder / "first").touch()
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    rename, calls = os.rename, []

    def killed(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a"):
        patch.setattr(os, "rename", killed)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="no more"), whole_folder(tmp_path / "a"):
        raise ValueError("no more")
    assert names(tmp_path / "a") == ["first"]
    assert names(tmp_path) == ["a"]


def fail_midway_in_a_file(path: Path) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def fail_midway_in_a_folder(path: Path) -> None:
    with whole_folder(path) as temporary:
        (temporary / "half").touch()
        raise KeyboardInterrupt


def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fail_midway_in_a_file(tmp_path / "a")

    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_failure_leaves_the_older_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt):
        fail_midway_in_a_folder(tmp_path / "a")

    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission is denied"),
    ],
)
def test_a_refused_write_says_why_and_what_to_do(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(StorageError, match=f"cannot write .*{words}.*Make room"), whole_folder(tmp_path / "a"):
        raise OSError(number, os.strerror(number))

    assert names(tmp_path) == []


def test_a_place_where_no_folder_can_be_made_is_named() -> None:
    with (
        pytest.raises(StorageError, match="cannot write /proc/none/a: no folder can be made there"),
        whole_file(Path("/proc/none/a")),
    ):
        pass


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for path in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        with (
            pytest.raises(StorageError, match=r"cannot write .*b.*: a file is where a folder should be"),
            whole_file(path),
        ):
            pass


def test_a_folder_in_the_place_of_a_file_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with (
        pytest.raises(StorageError, match=r"cannot write .*a: a folder is where a file should be"),
        whole_file(tmp_path / "a"),
    ):
        pass
    assert names(tmp_path) == ["a"]


def test_another_error_of_the_system_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "a"):
        (tmp_path / "nowhere").read_text()


KILLED = """
import sys, time
from pathlib import Path
from bebygan.files import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_kill_leaves_nothing_that_counts_and_the_next_writer_clears_it_away(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (part,) = tmp_path.glob(".*.part")
        hour_ago = time.time() - 3600
        os.utime(part, (hour_ago, hour_ago))
        with whole_file(tmp_path / "b"):
            assert part.exists(), "a living writer's folder was taken away"
        process.send_signal(signal.SIGKILL)
        process.wait()

    assert not (tmp_path / "a").exists()
    with whole_file(tmp_path / "c"):
        pass
    assert names(tmp_path) == ["b", "c"]


def flock_of_nfs(descriptor: int, _: int) -> None:
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if stat.S_ISREG(os.fstat(descriptor).st_mode) and mode == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")


def flock_of_lustre(*_: int) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize(("flock", "cleared"), [(flock_of_nfs, True), (flock_of_lustre, False)])
def test_network_file_systems_take_files_and_lose_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: Callable[[int, int], None], cleared: bool
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    part = tmp_path / ".old.part"
    part.touch()
    os.utime(part, (0, 0))
    with whole_file(tmp_path / "a") as file:
        file.write_text("all of it")
    with whole_folder(tmp_path / "b"):
        pass
    # Where nothing can be locked nobody knows whether its writer lives.
    assert names(tmp_path) == (["a", "b"] if cleared else [".old.part", "a", "b"])


def test_windows_has_no_fcntl_and_writes_files_and_folders_too(tmp_path: Path) -> None:
    program = """
import sys, shutil, tempfile
from pathlib import Path
sys.platform, sys.modules["fcntl"] = "win32", None
from bebygan.files import lock, whole_file, whole_folder
folder = Path(sys.argv[1])
with whole_file(folder / "file") as file:
    file.write_text("all of it")
with whole_folder(folder / "folder") as inside:
    (inside / "part").touch()
with (folder / "file").open() as file:
    print(lock(file, wait=True), (folder / "file").read_text())
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.stdout, names(tmp_path)) == ("False all of it\n", ["file", "folder"]), done.stderr


def test_a_checksum_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")

    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_checksums_are_in_the_order_of_the_names_whatever_order_the_file_system_has(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).touch()
    paths = [tmp_path / name for name in ("c", "a", "b")]
    assert list(checksums(tmp_path, paths)) == ["a", "b", "c"]


def test_a_folder_in_the_image_of_a_container_is_replaced(tmp_path: Path) -> None:
    """Overlayfs, on which containers run, cannot rename a folder of its lower layer."""
    (tmp_path / "image" / "a").mkdir(parents=True)
    (tmp_path / "image" / "a" / "old").touch()
    (tmp_path / "disk").mkdir()
    program = """
import os
from pathlib import Path
from bebygan.files import whole_folder
with whole_folder(Path("a")) as folder:
    (folder / "new").touch()
print(os.listdir("."), os.listdir("a"))
"""
    mounts = (
        "mount -t tmpfs tmpfs disk && mkdir disk/upper disk/work && "
        "mount -t overlay overlay -o lowerdir=image,upperdir=disk/upper,workdir=disk/work,userxattr image && "
        'cd image && exec "$0" -c "$1"'
    )
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounts, sys.executable, program]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "['a'] ['new']\n", done.stderr
