import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from components.config import EvaluateParams, Params, from_yaml, load_params, to_yaml
from components.tracking import provenance as module
from components.tracking.provenance import UNKNOWN, code_hash, provenance

ROOT = Path(__file__).parents[3]
FACTS = {
    "git_sha",
    "git_dirty",
    "code_hash",
    "data_version",
    "params_hash",
    "image_digest",
    "kfp_run_id",
    "seed",
    "metric_protocol",
    "python_version",
    "torch_version",
}


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the sources outside any repository."""
    for package in ("bebygan", "components", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "components" / "tracking" / "provenance.py"))
    monkeypatch.setattr(module, "BUILD_INFO", tmp_path / "bebygan.json")
    code_hash.cache_clear()
    yield tmp_path
    code_hash.cache_clear()


def test_provenance_has_every_fact_as_text(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BEBYGAN_IMAGE", "KFP_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    facts = provenance(params.train, "d41d8cd98f00b204e9800998ecf8427e.dir")
    assert facts.keys() == FACTS
    assert all(isinstance(fact, str) and fact for fact in facts.values())
    assert facts["data_version"] == "d41d8cd98f00b204e9800998ecf8427e.dir"
    assert re.fullmatch(r"[0-9a-f]{64}", facts["code_hash"])
    assert facts["seed"] == str(params.train.seed)


@pytest.mark.usefixtures("copy")
def test_facts_that_cannot_be_determined_are_unknown(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BEBYGAN_IMAGE", "KFP_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    facts = provenance(params.evaluate)
    assert facts.keys() == FACTS
    unknown = ("git_sha", "git_dirty", "data_version", "image_digest", "kfp_run_id")
    assert {name: facts[name] for name in unknown} == dict.fromkeys(unknown, UNKNOWN)
    assert facts["seed"] == "none"


def test_an_image_reports_the_revision_it_was_built_from(
    params: Params, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEBYGAN_IMAGE", "registry.example/bebygan@sha256:0123")
    monkeypatch.setenv("KFP_RUN_ID", "run-7")
    (copy / "bebygan.json").write_text(json.dumps({"git_sha": "abc", "git_dirty": "false"}))
    facts = provenance(params.train)
    assert (facts["git_sha"], facts["git_dirty"], facts["image_digest"], facts["kfp_run_id"]) == (
        "abc",
        "false",
        "registry.example/bebygan@sha256:0123",
        "run-7",
    )


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_repository_gives_its_revision_and_whether_it_was_changed(params: Params, copy: Path) -> None:
    git(copy, "init", "--quiet")
    git(copy, "add", ".")
    git(copy, "commit", "--quiet", "--message", "all")
    clean = provenance(params.train)
    assert (clean["git_sha"], clean["git_dirty"]) == (git(copy, "rev-parse", "HEAD"), "false")
    with (copy / "bebygan" / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert provenance(params.train)["git_dirty"] == "true"


def test_a_copy_inside_another_repository_does_not_report_its_revision(params: Params, copy: Path) -> None:
    (copy / "other").write_text("another project")
    git(copy, "init", "--quiet")
    git(copy, "add", "other")
    git(copy, "commit", "--quiet", "--message", "another project")
    assert provenance(params.train)["git_sha"] == UNKNOWN


def test_the_code_hash_depends_only_on_the_sources(copy: Path) -> None:
    first = code_hash()
    (copy / "bebygan" / "notes.txt").write_text("no source")
    code_hash.cache_clear()
    assert code_hash() == first
    (copy / "components" / "evaluate" / "report.html").write_text("another page")
    code_hash.cache_clear()
    second = code_hash()
    (copy / "bebygan" / "errors.py").rename(copy / "bebygan" / "faults.py")
    code_hash.cache_clear()
    assert len({first, second, code_hash()}) == 3


def test_the_params_hash_is_that_of_the_values(params: Params) -> None:
    evaluate = params.evaluate
    same = from_yaml(EvaluateParams, to_yaml(evaluate))
    other = replace(evaluate, crop=256)
    hashes = [provenance(group)["params_hash"] for group in (evaluate, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_provenance_does_not_import_torch() -> None:
    code = "import sys, components.tracking.provenance; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
