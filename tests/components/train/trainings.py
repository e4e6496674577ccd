"""A training on a simulated cluster."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import yaml

from components.config import from_yaml
from components.train.cluster_api import Patience
from components.train.trainjob import TrainJobSettings, TrainJobSpec, trainjob_name
from components.train.trainjob_run import run_trainjob
from tests.standins.kubernetes import Refused

IMPATIENT = Patience(between_looks=0.05)
NAME = trainjob_name("a training")
SETTINGS = """
namespace: null
runtime: bebygan-train
image: registry.invalid/torch@sha256:1234
nodes: 1
gpus: 0
gpu_type: nvidia.com/gpu
cpu: "2"
memory: 8Gi
shared_memory: 2Gi
hours: 1.5
node_selector: {}
tolerations: []
claim: bebygan-volume
service_account: bebygan-training
config_map: bebygan
s3_secret: bebygan-s3
mlflow_secret: bebygan-mlflow
"""


def settings(**changes: object) -> TrainJobSettings:
    return from_yaml(TrainJobSettings, yaml.safe_dump(yaml.safe_load(SETTINGS) | changes))


def spec(script: str = "true", lineage: dict[str, str] | None = None, **changes: object) -> TrainJobSpec:
    return TrainJobSpec(
        name=NAME, settings=settings(**changes), command=("sh", "-c", script),
        environment={"BEBYGAN_IMAGE": "registry.invalid/torch@sha256:1234"}, lineage=lineage or {},
    )  # fmt: skip


class Watcher(threading.Thread):
    """Runs a training in a thread while the test acts as the cluster."""

    def __init__(self, wanted: TrainJobSpec, **patience: float) -> None:
        super().__init__(daemon=True)
        self.wanted = wanted
        self.patience = replace(IMPATIENT, **patience)  # type: ignore[arg-type]
        self.lines: list[str] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            run_trainjob(self.wanted, self.lines.append, self.patience)
        except BaseException as error:  # noqa: BLE001 - for the test to see
            self.error = error

    def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, (self.lines, self.error)
            time.sleep(0.01)

    def finish(self) -> list[str]:
        self.join(60)
        assert not self.is_alive()
        if self.error:
            raise self.error
        return self.lines


def forbidden(verb: str, resource: str) -> Refused:
    return Refused(403, "Forbidden", f'User "system:serviceaccount:team:x" cannot {verb} resource "{resource}"')
