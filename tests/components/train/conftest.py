from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standins.kubernetes import ApiServer
from tests.standins.trainer import Controllers


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server that the kubeconfig of this process names, without controllers."""
    with ApiServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "kubeconfig")))
        yield running


@pytest.fixture
def controllers(server: ApiServer, tmp_path: Path) -> Iterator[Controllers]:
    """Trainer, JobSet and Job controllers that run pods as processes."""
    with Controllers(server, tmp_path) as running:
        yield running
