"""Signed versions, and what refuses those that are not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bebygan.errors import ConfigError, WeightsError
from bebygan.files import sha256_of
from bebygan.registered_model import digests
from components.artifacts import Registration
from components.tracking.client import mlflow_client
from components.tracking.registry import champion, download_generator, verify
from components.tracking.signatures import SIGNING_KEY, VERIFYING_KEY, check_keys
from tests.components.register.test_damaged_model import flip


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two pairs of keys, of which the first is configured."""
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (tmp_path / f"{name}.pem").write_bytes(private)
        (tmp_path / f"{name}.pub").write_bytes(public)
    monkeypatch.setenv(SIGNING_KEY, str(tmp_path / "ours.pem"))
    monkeypatch.setenv(VERIFYING_KEY, str(tmp_path / "ours.pub"))
    return tmp_path


def fetch(folder: Path) -> Path:
    version = champion("tests")
    assert version is not None
    verify(version)
    folder.mkdir(exist_ok=True)
    return download_generator(version, folder)


def test_a_signed_version_is_verified_with_all_its_files_before_it_is_used(
    keys: Path, registered: Callable[..., Registration], challenger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(challenger, "promote")
    assert sha256_of(fetch(keys / "fetched")) == sha256_of(challenger / "generator.safetensors")
    folder = Path(mlflow.artifacts.download_artifacts("models:/tests@champion"))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder), "--signature"]
    command += [str(folder / "model.sig"), "--public_key", str(keys / "ours.pub")]
    assert subprocess.run(command, capture_output=True, check=False, env=dict(os.environ)).returncode == 0
    stored = next((keys / "mlartifacts").rglob("MLmodel")).parent
    for name in ("MLmodel", "artifacts/generator.safetensors", "code/bebygan/loading.py", "requirements.txt"):
        flip(stored / name)
        # Whoever can replace files may be able to change the digests in the registry.
        for tag, digest in digests(stored).items():
            mlflow_client().set_model_version_tag("tests", "1", tag, digest)
        with pytest.raises(WeightsError, match=r"of models:/tests/1 does not verify .*Hash mismatch"):
            fetch(keys / "fetched")
        flip(stored / name)
    for tag, digest in digests(stored).items():
        mlflow_client().set_model_version_tag("tests", "1", tag, digest)
    (stored / "pickled.pkl").write_bytes(b"")
    with pytest.raises(
        WeightsError, match=r"does not verify with the key .*ours\.pub \(Signature mismatch: .*Extra files"
    ):
        fetch(keys / "fetched")
    (stored / "pickled.pkl").unlink()
    fetch(keys / "fetched")
    monkeypatch.setenv(VERIFYING_KEY, str(keys / "theirs.pub"))
    with pytest.raises(
        WeightsError, match=r"the signature of models:/tests/1 does not verify with the key .*theirs\.pub"
    ):
        fetch(keys / "fetched")
    (stored / "model.sig").write_text("{}")
    with pytest.raises(WeightsError, match="the signature of models:/tests/1 does not verify"):
        fetch(keys / "fetched")


def test_a_version_without_signature_is_refused_where_a_key_verifies_and_used_elsewhere(
    keys: Path, registered: Callable[..., Registration], challenger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv(SIGNING_KEY)
        patch.delenv(VERIFYING_KEY)
        registered(challenger, "promote")
        fetch(keys / "fetched")
    with pytest.raises(
        WeightsError, match="models:/tests/1 is not signed, and BEBYGAN_VERIFYING_KEY asks for signatures"
    ):
        fetch(keys / "fetched")


def test_a_key_that_cannot_be_used_is_named(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_keys() == "those of BEBYGAN_SIGNING_KEY and BEBYGAN_VERIFYING_KEY can be used"
    for name, reason in (
        ("lost.pem", "No such file or directory"),
        ("ours.pub", "it holds no key of an elliptic curve"),
    ):
        monkeypatch.setenv(SIGNING_KEY, str(keys / name))
        with pytest.raises(ConfigError, match=rf"BEBYGAN_SIGNING_KEY names .*{name}, which cannot be used \({reason}"):
            check_keys()
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    with pytest.raises(ConfigError, match=r"needs the package model-signing: pip install bebygan\[signing\]"):
        check_keys()
