import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bebygan.errors import BebyganError, ConfigError
from components.train.trainjob import manifest, trainjob_name
from tests.components.train.trainings import NAME, settings, spec
from tests.standins.kubernetes import faults_of
from tests.standins.trainer import RUNTIME, job_of

GPUS = {
    "nodes": 2, "gpus": 4, "node_selector": {"pool": "spot"},
    "tolerations": [{"key": "spot", "operator": "Exists", "tolerationSeconds": 60}],
}  # fmt: skip


def test_the_name_is_derived_from_the_identity() -> None:
    assert trainjob_name("a", "b") == trainjob_name("a", "b")
    assert len({trainjob_name("a", "b"), trainjob_name("ab"), trainjob_name("b", "a"), trainjob_name("a")}) == 4
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", NAME)
    assert len(f"{NAME}-node-0-999-abcde") <= 63


@pytest.mark.parametrize("changes", [{}, GPUS])
def test_trainer_and_kubernetes_accept_the_manifest(changes: dict[str, Any]) -> None:
    body = manifest(spec(lineage={"KFP_RUN_ID": "run 1"}, **changes))
    assert faults_of("TrainJob", body) == []
    job = job_of(yaml.safe_load(RUNTIME.read_text()), body)
    kubernetes_validate.validate(job, "1.34", strict=True)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == changes.get("gpus")
    assert pod.get("nodeSelector") == changes.get("node_selector")
    assert pod.get("tolerations", []) == changes.get("tolerations", [])
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert {"name": "volume", "persistentVolumeClaim": {"claimName": "bebygan-volume"}} in pod["volumes"]


def test_the_manifest_references_secrets_and_does_not_contain_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-a-bucket")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-password-of-mlflow")
    body = manifest(spec())
    assert "a-secret-of-a-bucket" not in str(body)
    assert "a-password-of-mlflow" not in str(body)
    sources = {each["name"]: each["valueFrom"] for each in body["spec"]["trainer"]["env"] if "valueFrom" in each}
    assert sources["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"]["name"] == "bebygan-s3"
    assert sources["MLFLOW_TRACKING_PASSWORD"]["secretKeyRef"]["name"] == "bebygan-mlflow"
    assert sources["MLFLOW_TRACKING_URI"]["configMapKeyRef"]["name"] == "bebygan"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": 1}, r"there is no parameter gpu; did you mean gpus\?"),
        ({"nodes": 0}, "parameter nodes must be at least 1, got 0"),
        ({"memory": "8 GB"}, r"parameter memory must match .*, got '8 GB'"),
        ({"hours": 0}, r"parameter hours: must be at least one second .*"),
        ({"hours": 0.0001}, r"parameter hours: must be at least one second .*"),
        ({"image": ""}, r"parameter image must match .*, got ''"),
        ({"node_selector": {"no key": "x"}}, r"parameter node_selector\.no key: .*"),
        ({"node_selector": {"pool": "no value"}}, r"parameter node_selector\.pool: .*"),
    ],
)
def test_invalid_settings_raise_an_error(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**change)


def test_trainer_accepts_the_runtime_and_its_pods_are_restricted() -> None:
    runtime = yaml.safe_load(RUNTIME.read_text())
    assert faults_of("TrainingRuntime", runtime) == []
    [replicated] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", **replicated["template"]}
    job["metadata"] = {**job["metadata"], "name": "node"}
    kubernetes_validate.validate(job, "1.34", strict=True)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    # Required by the podFailurePolicy of a Job.
    assert (pod["restartPolicy"], job["spec"]["podReplacementPolicy"], job["spec"]["backoffLimit"]) == (
        "Never", "Failed", 0,
    )  # fmt: skip


def test_the_runtime_knows_the_exit_code_of_every_error() -> None:
    codes = {kind.exit_code for kind in BebyganError.__subclasses__()}
    runtime = yaml.safe_load(RUNTIME.read_text())
    [replicated] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    rules = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
    assert {code for rule in rules[1:] for code in rule["onExitCodes"]["values"]} == codes - {4, 6}
