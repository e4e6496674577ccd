"""Kustomizations are built by kubectl; images must be named by digest."""

from pathlib import Path

import pytest
import yaml

from bebygan.errors import ConfigError
from pipelines import cli
from pipelines.kubeflow.manifests import build, containers

IMAGE = f"example@sha256:{'0' * 64}"


def kustomization(folder: Path, *images: str) -> Path:
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": f"c{number}", "image": image} for number, image in enumerate(images)]},
    }  # fmt: skip
    (folder / "pod.yaml").write_text(yaml.safe_dump(pod))
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["pod.yaml"]}))
    return folder


def test_containers_are_found_at_any_depth() -> None:
    pod = {"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "b"}]}}
    job = [{"spec": {"template": pod, "replicatedJobs": [{"template": pod}]}}, "text", {"containers": "no list"}]
    assert [each["name"] for each in containers(job)] == ["a", "b", "a", "b"]


def test_the_output_of_kubectl_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["manifests", str(kustomization(tmp_path, IMAGE))]) == 0
    assert [each["image"] for each in containers(yaml.safe_load(capsys.readouterr().out))] == [IMAGE]


def test_images_without_a_digest_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["manifests", str(kustomization(tmp_path, "b:1", IMAGE, "a"))]) == 2
    told = f"error: no digest: a, b:1; set `digest: sha256:...` under images in {tmp_path / 'kustomization.yaml'}\n"
    assert capsys.readouterr().err == told


def test_a_kustomization_that_does_not_build_is_reported_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]\n")
    with pytest.raises(ConfigError, match=r"cannot be built: .*missing.yaml") as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_kubectl_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="kubectl is not on the PATH"):
        build(tmp_path)
