import tempfile
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from bebygan.errors import ServiceError, StorageError
from components.tracking import registry as module
from components.tracking.client import MlflowClient, mlflow_client
from components.tracking.registry import (
    ModelVersion,
    champion,
    check_rights,
    download_generator,
    verify,
    version_with_alias,
)

pytestmark = pytest.mark.usefixtures("mlflow_store")


@pytest.fixture
def client(mlflow_store: str) -> MlflowClient:
    assert mlflow_store
    return mlflow_client()


def version(client: MlflowClient, folder: Path, tags: dict[str, str] | None = None) -> ModelVersion:
    """Register a version whose files are in a folder."""
    if not client.search_registered_models("name='photos'"):
        client.create_registered_model("photos")
    made = client.create_model_version("photos", folder.as_uri(), tags=tags or {})
    return module.as_version(made)


def test_there_is_no_champion_without_a_model_or_the_alias(client: MlflowClient, tmp_path: Path) -> None:
    assert champion("photos") is None
    version(client, tmp_path)
    assert champion("photos") is None
    assert version_with_alias("photos", "previous") is None


def test_the_version_with_an_alias_is_returned_with_its_tags(client: MlflowClient, tmp_path: Path) -> None:
    for alias in ("previous", "champion"):
        made = version(client, tmp_path, {"weights_sha256": alias})
        client.set_registered_model_alias("photos", alias, made.version)
    found = champion("photos")
    assert found == ModelVersion(model="photos", version="2", run_id="", tags={"weights_sha256": "champion"})
    assert found.uri == "models:/photos/2"
    before = version_with_alias("photos", "previous")
    assert before is not None
    assert before.version == "1"


@pytest.mark.parametrize("exists", [True, False])
def test_denied_permission_means_no_champion_only_if_the_model_does_not_exist(
    exists: bool, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exists:
        client.create_registered_model("photos")

    def denied(*_: Any) -> None:
        raise MlflowException("Permission denied", error_code=module_code("PERMISSION_DENIED"))

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", denied)
    if exists:
        with pytest.raises(ServiceError, match=r"asking for the champion of photos failed .*permission is denied"):
            champion("photos")
    else:
        assert champion("photos") is None


def module_code(name: str) -> int:
    from mlflow.protos.databricks_pb2 import ErrorCode

    return ErrorCode.Value(name)


@pytest.mark.parametrize("exists", [True, False])
def test_check_rights_leaves_nothing_behind(exists: bool, client: MlflowClient) -> None:
    if exists:
        client.create_registered_model("photos")
    check_rights("photos")
    assert [(model.name, model.tags) for model in client.search_registered_models()] == [("photos", {})] * exists


def test_the_weights_of_a_version_are_downloaded(client: MlflowClient, tmp_path: Path) -> None:
    stored = tmp_path / "stored" / "artifacts" / "generator.safetensors"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"weights")
    made = version(client, tmp_path / "stored")
    (tmp_path / "fetched").mkdir()
    found = download_generator(made, tmp_path / "fetched")
    assert found.is_relative_to(tmp_path / "fetched")
    assert found.read_bytes() == b"weights"


def test_deleted_weights_raise_a_one_line_error(client: MlflowClient, tmp_path: Path) -> None:
    made = version(client, tmp_path / "stored")
    (tmp_path / "fetched").mkdir()
    with pytest.raises(ServiceError) as caught:
        download_generator(made, tmp_path / "fetched")
    assert str(caught.value).startswith("fetching the weights of models:/photos/1 failed at MLflow's sqlite:///")
    assert "restore it, or promote another version" in str(caught.value)
    assert "\n" not in str(caught.value)
    client.delete_registered_model("photos")
    with pytest.raises(ServiceError, match="the model or its file was deleted"):
        download_generator(made, tmp_path / "fetched")


def test_a_full_folder_of_temporary_files_is_no_fault_of_mlflow(
    client: MlflowClient, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "stored" / "artifacts" / "generator.safetensors"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(bytes(300_000))
    made = version(client, tmp_path / "stored")
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(
        StorageError, match=r"fetching models:/photos/1 failed: /.*safetensors cannot be written, .*: make room"
    ):
        verify(made)
    (small_disk / "fetched").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        download_generator(made, small_disk / "fetched")
