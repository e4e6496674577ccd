"""The pipeline for a cluster, as it is compiled: every task, and what Kubernetes is told of it."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from bebygan.errors import ConfigError
from components.config import GROUPS, Params, from_yaml, load_params
from components.detect.component import decide
from components.job import Job
from components.train.trainjob import TrainJobSettings
from pipelines import cli
from pipelines.kubeflow.compilation import retrain_manifests, retrain_yaml
from pipelines.kubeflow.requests import CompiledPipeline
from pipelines.kubeflow.resources import TASKS, Cluster, TaskResources, amount, load_cluster, trainjob_yaml
from pipelines.retrain import PIPELINE_NAME, retrain_here

ROOT = Path(__file__).parents[3]
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-a-bucket",
    "AWS_ACCESS_KEY_ID": "a-name-of-a-key",
    "MLFLOW_TRACKING_PASSWORD": "a-password-of-mlflow",
    "MLFLOW_TRACKING_URI": "https://user:another-password@mlflow.invalid",
    "BEBYGAN_WEBHOOK_URL": "https://hooks.invalid/a-secret-path",
}
DATA = f"registry.invalid:5000/bebygan/data@sha256:{'d' * 64}"
TORCH = f"registry.invalid:5000/bebygan/torch:1.0@sha256:{'7' * 64}"
SHARED_MEMORY, TEMPORARY = "/dev/shm", "/tmp"  # noqa: S108 - of a pod
S3 = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
MLFLOW = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}


def settings(folder: Path, *changes: tuple[str, Any]) -> Path:
    """Write infra/cluster.yaml with pinned images, and with values by dotted name changed."""
    values = yaml.safe_load((ROOT / "infra/cluster.yaml").read_text())
    for name, value in (("images.data", DATA), ("images.torch", TORCH), *changes):
        *groups, last = name.split(".")
        place = values
        for group in groups:
            # The file's anchors make tasks share one mapping.
            place[group] = dict(place[group])
            place = place[group]
        place[last] = value
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def compile_pipeline(path: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", "compile", str(path), *options]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def cluster_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return settings(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def cluster(cluster_file: Path) -> Cluster:
    return load_cluster(cluster_file)


@pytest.fixture(scope="module")
def compiled(cluster_file: Path) -> bytes:
    """What the command writes, with secrets in its environment."""
    path = cluster_file.with_name("pipeline.yaml")
    done = compile_pipeline(path, "--cluster", str(cluster_file), PYTHONHASHSEED="1", **SECRETS)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    return path.read_bytes()


@pytest.fixture(scope="module")
def pipeline(compiled: bytes) -> dict[str, Any]:
    found: dict[str, Any] = next(yaml.safe_load_all(compiled))
    return found


@pytest.fixture(scope="module")
def platform(compiled: bytes) -> dict[str, Any]:
    return platform_of(compiled)


def platform_of(compiled: bytes) -> dict[str, Any]:
    _, document = yaml.safe_load_all(compiled)
    found: dict[str, Any] = document["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return found


def all_tasks(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every task that runs in a container, however deep it stands."""
    found: dict[str, dict[str, Any]] = {}

    def collect(dag: dict[str, Any]) -> None:
        for name, task in dag["tasks"].items():
            component = pipeline["components"][task["componentRef"]["name"]]
            if "dag" in component:
                collect(component["dag"])
            else:
                found[name] = task | {"executor": component["executorLabel"]}

    collect(pipeline["root"]["dag"])
    return found


def containers(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    executors = pipeline["deploymentSpec"]["executors"]
    return {name: executors[task["executor"]]["container"] for name, task in all_tasks(pipeline).items()}


def kubernetes(pipeline: dict[str, Any], platform: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: platform[task["executor"]] for name, task in all_tasks(pipeline).items()}


@dataclass(frozen=True)
class Given:
    """What each task of a compiled pipeline is given, by name, and what the settings say of it."""

    tasks: dict[str, dict[str, Any]]
    containers: dict[str, dict[str, Any]]
    kubernetes: dict[str, dict[str, Any]]
    steps: dict[str, TaskResources]


@pytest.fixture(scope="module")
def given(compiled: bytes, pipeline: dict[str, Any], cluster: Cluster) -> Given:
    tasks = all_tasks(pipeline)
    steps = {name: getattr(cluster.steps, name) for name in tasks}
    return Given(tasks, containers(pipeline), kubernetes(pipeline, platform_of(compiled)), steps)


def inner(pipeline: dict[str, Any], beginning: str) -> dict[str, Any]:
    [dag] = [each["dag"] for name, each in pipeline["components"].items() if name.startswith(beginning)]
    found: dict[str, Any] = dag["tasks"]
    return found


def test_the_tasks_are_those_that_the_settings_name(pipeline: dict[str, Any]) -> None:
    assert set(all_tasks(pipeline)) == set(TASKS)


def test_look_and_decide_come_first_and_preflight_and_the_steps_only_when_something_changed(
    pipeline: dict[str, Any], given: Given
) -> None:
    guarded = inner(pipeline, "comp-exit-handler")
    assert set(guarded) == {"look", "decide", "condition-2"}
    assert "dependentTasks" not in guarded["look"]
    assert guarded["decide"]["dependentTasks"] == ["look"]
    assert "decide" in guarded["condition-2"]["dependentTasks"]
    conditional = inner(pipeline, "comp-condition")
    assert set(conditional) == {"preflight", *GROUPS}
    assert "dependentTasks" not in conditional["preflight"]
    assert conditional["ingest"]["dependentTasks"] == ["preflight"]
    # A run that finds nothing to do starts no pod with a GPU.
    for name in ("look", "decide", "notify"):
        assert "accelerator" not in given.containers[name]["resources"]


def test_the_decision_is_a_word_beside_the_parameters_of_each_step(pipeline: dict[str, Any]) -> None:
    condition = inner(pipeline, "comp-exit-handler")["condition-2"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--decide-Output'] == 'train'"
    outputs = pipeline["components"]["comp-decide"]["outputDefinitions"]["parameters"]
    assert outputs == {name: {"parameterType": "STRING"} for name in ("Output", *GROUPS)}
    # The task returns them in this order.
    assert list(inspect.signature(decide.python_func).return_annotation._fields) == ["Output", *GROUPS]


def test_the_end_is_told_however_the_rest_ended(pipeline: dict[str, Any]) -> None:
    outer = pipeline["root"]["dag"]["tasks"]
    assert set(outer) == {"exit-handler-1", "notify"}
    assert outer["notify"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert outer["notify"]["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


def test_the_six_steps_hand_on_the_same_as_on_a_single_machine(pipeline: dict[str, Any]) -> None:
    job = Job(load_params(ROOT / "params.yaml"), "s3://photographs", "source-1", "code-1")
    local = retrain_here(job, remote="", checkpoints="", ledger="").pipeline_spec
    local = json_format.MessageToDict(local)["root"]["dag"]["tasks"]
    here = {name: task for name, task in inner(pipeline, "comp-condition").items() if name != "preflight"}

    def handed(tasks: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        for name, task in tasks.items():
            for input_, value in task["inputs"].get("artifacts", {}).items():
                yield name, input_, value["taskOutputArtifact"]["producerTask"]

    assert sorted(handed(here)) == sorted(handed(local))
    assert {name: set(task["inputs"]["parameters"]) for name, task in here.items()} == {
        name: set(task["inputs"]["parameters"]) for name, task in local.items()
    }


def test_every_task_runs_in_an_image_that_is_named_by_digest_and_knows_it(given: Given) -> None:
    for name, container in given.containers.items():
        image = DATA if name in ("look", "ingest", "patches") else TORCH
        assert container["image"] == image, name
        assert {"name": "BEBYGAN_IMAGE", "value": image} in container["env"], name
        assert "pip install" not in " ".join(container["command"]), name


def test_every_task_has_the_machine_that_the_settings_say(given: Given) -> None:
    told = given.kubernetes
    for name, container in given.containers.items():
        step, resources = given.steps[name], container["resources"]
        assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == step.cpu, name
        assert (resources["resourceMemoryRequest"], resources["resourceMemoryLimit"]) == step.memory, name
        assert amount(step.cpu[0]) <= amount(step.cpu[1])
        assert amount(step.memory[0]) <= amount(step.memory[1])
        accelerator = resources.get("accelerator", {})
        assert int(accelerator.get("resourceCount", 0)) == step.gpus, name
        assert accelerator.get("resourceType", step.gpu_type) == step.gpu_type
        # Preflight tries as many.
        asked = {"name": "BEBYGAN_GPUS", "value": str(step.gpus)}
        assert (asked in container["env"]) == bool(step.gpus), name
        assert told[name].get("nodeSelector", {}).get("labels", {}) == step.node_selector, name
        assert [entry["key"] for entry in told[name].get("tolerations", [])] == [
            taint.key for taint in step.tolerations
        ], name
        # A task on a machine with GPUs must put up with that machine's taint.
        assert not step.gpus or step.tolerations, name


def test_what_the_settings_say_of_machines_arrives(tmp_path: Path) -> None:
    taint = {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoExecute"}
    path = settings(
        tmp_path,
        ("steps.train.node_selector", {"gpu": "l4"}),
        ("steps.train.tolerations", [taint]),
        ("steps.train.gpu_type", "amd.com/gpu"),
        ("steps.preflight.gpus", 0),
    )
    compiled = retrain_yaml(load_cluster(path), load_params(ROOT / "params.yaml"))
    pipeline = next(yaml.safe_load_all(compiled))
    told = kubernetes(pipeline, platform_of(compiled))["train"]
    assert told["nodeSelector"] == {"labels": {"gpu": "l4"}}
    assert told["tolerations"] == [taint]
    assert "BEBYGAN_GPUS" not in str(containers(pipeline)["preflight"]["env"])
    asked = {name: each["resources"].get("accelerator") for name, each in containers(pipeline).items()}
    assert (asked["preflight"], asked["train"]["resourceType"]) == (None, "amd.com/gpu")
    assert asked["warmup"] == {
        "type": "nvidia.com/gpu", "count": "1", "resourceType": "nvidia.com/gpu", "resourceCount": "1",
    }  # fmt: skip


def test_torch_steps_have_shared_memory_within_their_memory(given: Given) -> None:
    for name, told in given.kubernetes.items():
        mounts = {mount["mountPath"]: mount for mount in told["emptyDirMounts"]}
        # What else is written to, beside a root filesystem that may be read-only.
        assert {TEMPORARY, "/app/workspace"} <= mounts.keys(), name
        step = given.steps[name]
        assert (SHARED_MEMORY in mounts) == (name in ("warmup", "train", "evaluate")), name
        if SHARED_MEMORY in mounts:
            assert mounts[SHARED_MEMORY]["medium"] == "Memory"
            assert amount(mounts[SHARED_MEMORY]["sizeLimit"]) < amount(step.memory[1])


def test_only_those_who_keep_checkpoints_and_preflight_mount_the_volume(given: Given, pipeline: dict[str, Any]) -> None:
    for name, told in given.kubernetes.items():
        mounts = [(mount["constant"], mount["mountPath"]) for mount in told.get("pvcMount", [])]
        assert mounts == ([("bebygan-volume", "/volume")] if name in ("preflight", "warmup", "train") else []), name
        # What MLflow did not take must outlive the pod, too.
        kept = {"name": "BEBYGAN_UNTRACKED", "value": "/volume/untracked"}
        assert (kept in given.containers[name]["env"]) == bool(mounts), name
    declared = pipeline["root"]["inputDefinitions"]["parameters"]["checkpoints"]
    assert declared["defaultValue"].startswith("/volume/")
    told = all_tasks(pipeline)["preflight"]["inputs"]["parameters"]["volume"]
    assert told == {"runtimeValue": {"constant": "/volume"}}


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_every_attempt_ends_and_retries_are_granted_for_longer_than_all_attempts_take(given: Given) -> None:
    for name, task in given.tasks.items():
        step = given.steps[name]
        limit = int(given.kubernetes[name]["activeDeadlineSeconds"])
        assert limit == step.hours * 3600, name
        policy = task["retryPolicy"]
        assert policy["maxRetryCount"] == step.retries, name
        between = sum(seconds(policy["backoffDuration"]) * policy["backoffFactor"] ** n for n in range(step.retries))
        assert seconds(policy["backoffMaxDuration"]) > (step.retries + 1) * limit + between, name


def test_a_task_without_retries_has_no_policy(tmp_path: Path) -> None:
    path = settings(tmp_path, ("steps.notify.retries", 0))
    pipeline = next(yaml.safe_load_all(retrain_yaml(load_cluster(path), load_params(ROOT / "params.yaml"))))
    assert "retryPolicy" not in all_tasks(pipeline)["notify"]


def test_every_task_runs_as_an_ordinary_user(given: Given) -> None:
    for name, told in given.kubernetes.items():
        assert told["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}, name


def test_every_task_knows_the_run_that_it_belongs_to(given: Given) -> None:
    run = {"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}
    for name, told in given.kubernetes.items():
        assert run in told["fieldPathAsEnv"], name


READ = {
    "preflight": S3 | MLFLOW,
    "look": S3,
    "decide": MLFLOW,
    "ingest": S3,
    "patches": set(),
    "warmup": S3 | MLFLOW,
    "train": S3 | MLFLOW,
    "evaluate": S3 | MLFLOW,
    "register": S3 | MLFLOW,
    "notify": MLFLOW | {"BEBYGAN_WEBHOOK_URL"},
}
SECRET_OF = {
    **dict.fromkeys(S3, "bebygan-s3"), **dict.fromkeys(MLFLOW, "bebygan-mlflow"),
    "BEBYGAN_WEBHOOK_URL": "bebygan-webhook",
}  # fmt: skip


def test_every_task_is_given_the_secrets_that_it_needs_by_reference_and_no_others(given: Given) -> None:
    for name, told in given.kubernetes.items():
        secrets, maps = told.get("secretAsEnv", []), told.get("configMapAsEnv", [])
        variables = {entry["envVar"]: (secret["secretName"], entry["secretKey"]) for secret in secrets
                     for entry in secret["keyToEnv"]}  # fmt: skip
        own = {"look": "ingest", "ingest": "ingest", "warmup": "training", "train": "training", "evaluate": "evaluate"}
        of = SECRET_OF | (dict.fromkeys(S3, f"bebygan-{own[name]}-s3") if name in own else {})
        if name not in ("preflight", "register"):
            of |= dict.fromkeys(MLFLOW, "bebygan-training-mlflow")
        assert variables == {variable: (of[variable], variable) for variable in READ[name]}, name
        # A pod whose secret is missing would wait without a word; preflight says what is missing.
        assert all(entry["optional"] for entry in [*secrets, *maps]), name
        addresses = {entry["envVar"] for map_ in maps for entry in map_["keyToEnv"]}
        assert ("AWS_ENDPOINT_URL" in addresses) == bool(S3 & variables.keys()), name
        assert ("MLFLOW_TRACKING_URI" in addresses) == bool(MLFLOW & variables.keys()), name
        assert ({"BEBYGAN_CONSOLE", "BEBYGAN_TRACKER"} <= addresses) == (name == "notify")
        assert "KFP_HOST" not in addresses
        assert {map_["configMapName"] for map_ in maps} <= {"bebygan"}, name


def test_caching_is_on_for_what_is_expensive_and_repeatable_alone(given: Given) -> None:
    cached = {name for name, task in given.tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"ingest", "patches", "warmup"} & given.tasks.keys()


def test_a_cached_task_is_told_the_images_the_data_and_its_parameters(pipeline: dict[str, Any]) -> None:
    tasks = all_tasks(pipeline)
    for name in ("ingest", "patches", "warmup"):
        parameters = tasks[name]["inputs"]["parameters"]
        assert parameters["code_version"] == {"runtimeValue": {"constant": f"{DATA} {TORCH}"}}
        assert parameters["params"] == {"componentInputParameter": f"pipelinechannel--decide-{name}"}
    assert tasks["ingest"]["inputs"]["parameters"]["source_version"] == {
        "componentInputParameter": "pipelinechannel--look-Output"
    }
    for name in ("patches", "warmup"):
        assert tasks[name]["inputs"]["parameters"]["data_version"] == {
            "taskOutputParameter": {"outputParameterKey": "Output", "producerTask": "ingest"}
        }


def test_an_uploaded_pipeline_runs_with_the_parameters_that_it_was_compiled_with(
    cluster_file: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = cluster_file.with_name("changed.yaml")
    assert cli.main(["compile", str(path), "--cluster", str(cluster_file), "--set", "train.iterations=77"]) == 0
    declared = next(yaml.safe_load_all(path.read_bytes()))["root"]["inputDefinitions"]["parameters"]
    wanted = load_params(ROOT / "params.yaml", ["train.iterations=77"])
    assert from_yaml(Params, declared["params"]["defaultValue"]) == wanted
    assert path.read_bytes() == retrain_yaml(cluster, wanted)
    # Dictionaries and lists would turn integers into floats on their way.
    assert {parameter["parameterType"] for parameter in declared.values()} == {"STRING"}
    assert [name for name, parameter in declared.items() if "defaultValue" not in parameter] == ["source"]


def test_compiling_again_gives_the_same_bytes(compiled: bytes, cluster_file: Path) -> None:
    path = cluster_file.with_name("again.yaml")
    assert compile_pipeline(path, "--cluster", str(cluster_file), PYTHONHASHSEED="2").returncode == 0
    assert path.read_bytes() == compiled


def test_what_is_compiled_is_ascii_and_names_neither_secrets_nor_this_machine(compiled: bytes) -> None:
    text = compiled.decode("ascii")
    for private in (*SECRETS.values(), str(ROOT), str(Path.home()), sys.prefix):
        assert private not in text


def test_kubeflow_reads_what_was_compiled(compiled: bytes, tmp_path: Path) -> None:
    from kfp.components import load_component_from_file

    (tmp_path / "pipeline.yaml").write_bytes(compiled)
    loaded = load_component_from_file(str(tmp_path / "pipeline.yaml"))
    assert loaded.name == "bebygan-retrain"
    assert loaded.platform_spec.platforms["kubernetes"]


def test_the_manifests_hold_the_same_pipeline_under_a_name_that_changes_with_it(
    compiled: bytes, cluster: Cluster, cluster_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = cluster_file.with_name("manifests.yaml")
    options = ("--cluster", str(cluster_file), "--manifests", "--namespace", "team")
    assert cli.main(["compile", str(path), *options]) == 0
    params = load_params(ROOT / "params.yaml")
    assert path.read_bytes() == retrain_manifests(cluster, params, "team")
    pipeline, version = yaml.safe_load_all(path.read_bytes())
    assert {each["apiVersion"] for each in (pipeline, version)} == {"pipelines.kubeflow.org/v2beta1"}
    assert [each["kind"] for each in (pipeline, version)] == ["Pipeline", "PipelineVersion"]
    assert {each["metadata"]["namespace"] for each in (pipeline, version)} == {"team"}
    specification, platforms = yaml.safe_load_all(compiled)
    assert version["spec"]["pipelineSpec"] == specification
    assert version["spec"]["platformSpec"] == platforms
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "bebygan-retrain"
    name = version["metadata"]["name"]
    assert name == version["spec"]["displayName"] == CompiledPipeline(PIPELINE_NAME, compiled).version
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name)
    other = load_params(ROOT / "params.yaml", ["train.seed=8"])
    assert name not in retrain_manifests(cluster, other, "team").decode()


def test_training_on_other_machines_leaves_a_small_task_that_watches(tmp_path: Path) -> None:
    taint = {"key": "spot", "operator": "Exists", "effect": "NoSchedule"}
    path = settings(
        tmp_path,
        ("training.where", "trainjob"),
        ("training.nodes", 3),
        ("steps.train.tolerations", [taint]),
        ("steps.train.gpus", 8),
        ("steps.preflight.gpus", 8),
    )
    cluster = load_cluster(path)
    compiled = retrain_yaml(cluster, load_params(ROOT / "params.yaml"))
    pipeline = next(yaml.safe_load_all(compiled))
    assert set(all_tasks(pipeline)) == set(TASKS) - {"train"} | {"train-on-nodes"}
    container = containers(pipeline)["train-on-nodes"]
    told = kubernetes(pipeline, platform_of(compiled))["train-on-nodes"]
    assert container["image"] == DATA
    assert "accelerator" not in container["resources"]
    assert amount(container["resources"]["resourceMemoryLimit"]) <= amount("1Gi")
    assert "tolerations" not in told
    assert "secretAsEnv" not in told
    assert [mount["mountPath"] for mount in told["pvcMount"]] == ["/volume"]
    task = all_tasks(pipeline)["train-on-nodes"]
    assert not task["cachingOptions"].get("enableCache")
    asked = from_yaml(TrainJobSettings, task["inputs"]["parameters"]["trainjob"]["runtimeValue"]["constant"])
    assert (asked.image, asked.nodes, asked.gpus, asked.memory) == (TORCH, 3, 8, cluster.steps.train.memory[1])
    assert {"name": "BEBYGAN_GPUS", "value": "8"} in containers(pipeline)["preflight"]["env"]
    assert containers(pipeline)["preflight"]["resources"]["accelerator"]["resourceCount"] == "8"
    assert asked.tolerations == (taint,)
    assert (asked.claim, asked.runtime) == ("bebygan-volume", "bebygan-train")
    assert (asked.s3_secret, asked.mlflow_secret) == ("bebygan-training-s3", "bebygan-training-mlflow")
    assert int(told["activeDeadlineSeconds"]) > asked.hours * 3600
    assert int(task["retryPolicy"]["maxRetryCount"]) == cluster.steps.train.retries
    evaluated = all_tasks(pipeline)["evaluate"]["inputs"]["artifacts"]["challenger"]["taskOutputArtifact"]
    assert evaluated["producerTask"] == "train-on-nodes"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps.train.memery", ["1Gi", "2Gi"], r"no parameter steps\.train\.memery; did you mean steps\.train\.memory"),
        ("steps.train.memory", ["3Gi", "2Gi"], r"steps\.train\.memory: the request 3Gi is more than the limit 2Gi"),
        ("steps.train.memory", ["3 gigs", "2Gi"], "'3 gigs' is not a Kubernetes quantity"),
        ("steps.trian", {}, r"no parameter steps\.trian; did you mean steps\.train"),
        ("steps.train.tolerations", [{"kee": "x"}], r"0\.kee; did you mean steps\.train\.tolerations\.0\.key"),
        ("steps.train.hours", 0, r"steps\.train\.hours"),
        ("steps.train.hours", 0.0001, r"steps\.train\.hours: must be at least one second"),
        ("steps.train.hours", -1, r"steps\.train\.hours"),
        ("steps.train.node_selector", {"a key": "x"}, r"steps\.train\.node_selector\.a key: String should match"),
        ("steps.train.node_selector", {"Upper.io/gpu": "x"}, r"node_selector\.Upper\.io/gpu: String should match"),
        ("steps.train.node_selector", {"a/b/c": "x"}, r"node_selector\.a/b/c: String should match"),
        ("steps.train.node_selector", {"/gpu": "x"}, r"node_selector\./gpu: String should match"),
        ("steps.train.node_selector", {"": "x"}, r"node_selector\.: String should match"),
        ("steps.train.node_selector", {"k" * 64: "x"}, r"node_selector\.k{64}: String should match"),
        ("steps.train.node_selector", {"gpu": "NVIDIA L4"}, r"node_selector\.gpu: .* \(got 'NVIDIA L4'\)"),
        ("steps.train.node_selector", {"gpu": "l4-"}, r"node_selector\.gpu: .* \(got 'l4-'\)"),
        ("steps.train.node_selector", {"gpu": "v" * 64}, r"node_selector\.gpu: String should match"),
        ("images.data", "two words", r"images\.data"),
        ("training.nodes", 2, r"a pod is one machine"),
        ("steps.train.gpus", 4, r"steps\.train\.gpus: a pod computes on one GPU"),
        ("steps.warmup.gpus", 2, r"steps\.warmup\.gpus: a pod computes on one GPU"),
        ("steps.train.gpus", 0, r"steps\.preflight\.gpus must be that of steps\.train, 0, or 0"),
        ("names.claim", "Not_A_Name", r"names\.claim"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_settings_is_said(name: str, value: Any, said: str, tmp_path: Path) -> None:
    path = settings(tmp_path, (name, value))
    with pytest.raises(ConfigError, match=said) as raised:
        load_cluster(path)
    assert str(path) in str(raised.value)


def test_node_selectors_that_kubernetes_takes_are_taken(tmp_path: Path) -> None:
    chosen = {
        "gpu": "", "cloud.example.com/gpu-type": "L4", "node.kubernetes.io/instance-type": "g6.x_1", "k" * 63: "v" * 63,
    }  # fmt: skip
    cluster = load_cluster(settings(tmp_path, ("steps.train.node_selector", chosen), ("steps.train.hours", 0.0002)))
    assert cluster.steps.train.node_selector == chosen
    assert cluster.steps.train.seconds == 1


def test_settings_that_are_not_there_and_a_misspelt_parameter_end_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    output = str(tmp_path / "pipeline.yaml")
    assert cli.main(["compile", output, "--cluster", str(tmp_path / "lost.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: cannot read the cluster's settings")
    assert cli.main(["compile", output, "--set", "train.iterashuns=1"]) == 2
    assert "did you mean train.iterations" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_image_without_digest_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = settings(tmp_path, ("images.data", "bebygan-data-python:latest"))
    assert cli.main(["compile", str(tmp_path / "pipeline.yaml"), "--cluster", str(path)]) == 0
    assert "names an image without digest" in capsys.readouterr().err


def test_compiling_onto_a_full_disk_ends_with_one_line(
    tmp_path: Path, cluster_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "fsync", full)
    assert cli.main(["compile", str(tmp_path / "pipeline.yaml"), "--cluster", str(cluster_file)]) == 6
    assert capsys.readouterr().err.startswith("error: cannot write")
    assert not list(tmp_path.iterdir())


def test_a_cluster_without_secrets_for_single_steps_gives_them_those_of_the_other_steps(
    cluster: Cluster,
) -> None:
    shared = replace(
        cluster,
        names=replace(cluster.names, ingest_s3_secret=None, evaluate_s3_secret=None),
        training=replace(cluster.training, s3_secret=None, mlflow_secret=None),
    )
    asked = from_yaml(TrainJobSettings, trainjob_yaml(shared))
    assert (asked.s3_secret, asked.mlflow_secret) == ("bebygan-s3", "bebygan-mlflow")
    told = retrain_yaml(shared, load_params(ROOT / "params.yaml")).decode()
    assert "bebygan-s3" in told
    own = ("bebygan-ingest", "bebygan-evaluate", "bebygan-training-s3", "bebygan-training-mlflow")
    assert not [name for name in own if name in told]
