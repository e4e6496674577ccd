import ast
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from kfp.compiler import Compiler

from components.config import GROUPS, load_params
from components.container_images import DATA_IMAGE, TORCH_IMAGE
from components.job import Job, groups_of
from pipelines.retrain import retrain_here

ROOT = Path(__file__).parents[2]
CACHED = {"ingest", "patches", "warmup"}


def job(*assignments: str) -> Job:
    return Job(load_params(ROOT / "params.yaml", assignments), "Fotos für {uns}: $1", "source-1", "code-1")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Job], dict[str, Any]]:
    """Returns the pipeline of a single machine for a job, as Kubeflow reads it."""
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"

    def compiled(which: Job) -> dict[str, Any]:
        Compiler().compile(retrain_here(which, remote="r", checkpoints="c", ledger="l"), str(path))
        found: dict[str, Any] = yaml.safe_load(path.read_text())
        return found

    return compiled


@pytest.fixture(scope="module")
def graph(compiled: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
    return compiled(job())


@pytest.fixture(scope="module")
def stages() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return found


def tasks(graph: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = graph["root"]["dag"]["tasks"]
    return found


def executor(graph: dict[str, Any], task: str) -> dict[str, Any]:
    component = graph["components"][tasks(graph)[task]["componentRef"]["name"]]
    found: dict[str, Any] = graph["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    return found


def edges_of_kubeflow(graph: dict[str, Any]) -> set[tuple[str, str]]:
    """Which task reads a folder that which task wrote."""
    return {
        (artifact["taskOutputArtifact"]["producerTask"], name)
        for name, task in tasks(graph).items()
        for artifact in task["inputs"].get("artifacts", {}).values()
    }


def edges_of_dvc(stages: dict[str, dict[str, Any]]) -> set[tuple[str, str]]:
    writer = {out: name for name, stage in stages.items() for out in stage["outs"]}
    return {(writer[path], name) for name, stage in stages.items() for path in stage["deps"] if path in writer}


def test_dvc_and_kubeflow_have_the_same_steps(graph: dict[str, Any], stages: dict[str, dict[str, Any]]) -> None:
    assert set(tasks(graph)) == set(stages) == set(GROUPS)


def test_dvc_and_kubeflow_have_the_same_edges(graph: dict[str, Any], stages: dict[str, dict[str, Any]]) -> None:
    assert edges_of_kubeflow(graph) == edges_of_dvc(stages)
    assert edges_of_dvc(stages) == {
        ("ingest", "patches"),
        ("patches", "warmup"),
        ("patches", "train"),
        ("warmup", "train"),
        ("ingest", "evaluate"),
        ("warmup", "evaluate"),
        ("train", "evaluate"),
        ("train", "register"),
        ("evaluate", "register"),
    }


def test_a_step_is_given_its_own_parameters_in_both(graph: dict[str, Any], stages: dict[str, dict[str, Any]]) -> None:
    groups = groups_of(job().params)
    for name, task in tasks(graph).items():
        assert task["inputs"]["parameters"]["params"] == {"runtimeValue": {"constant": groups[name]}}
        # The warm-up delivers what the training starts from.
        assert stages[name]["params"] == [name, *(["train.start"] if name == "warmup" else [])]


def test_a_change_of_one_group_changes_the_inputs_of_its_step_alone(
    graph: dict[str, Any], compiled: Callable[[Job], dict[str, Any]]
) -> None:
    """So that the cache still knows the results of the other steps."""
    for assignment in ("ingest.minimum_side=200", "patches.step=64", "train.seed=7", "evaluate.crop=256"):
        other = tasks(compiled(job(assignment)))
        changed = {name for name, task in tasks(graph).items() if task["inputs"] != other[name]["inputs"]}
        assert changed == {assignment.partition(".")[0]}


def test_a_source_of_any_name_reaches_ingest(graph: dict[str, Any]) -> None:
    source = tasks(graph)["ingest"]["inputs"]["parameters"]["source"]
    assert source == {"runtimeValue": {"constant": "Fotos für {uns}: $1"}}


def _code_of(step: str) -> set[str]:
    """Folders and files below the project that the command of a step imports."""
    modules = grimp.build_graph("bebygan", "components").find_upstream_modules(f"components.{step}.__main__")
    parts = {tuple(module.split(".")[:2]) for module in modules if module.startswith("components.")}
    paths = {Path(*part) for part in parts}
    return {"bebygan", *(str(path if (ROOT / path).is_dir() else path.with_suffix(".py")) for path in paths)}


def test_a_stage_runs_its_step_and_depends_on_its_code(stages: dict[str, dict[str, Any]]) -> None:
    for name, stage in stages.items():
        python, module, step, *options = shlex.split(stage["cmd"])
        assert (python, module, step) == ("python", "-m", f"components.{name}")
        assert _code_of(name) <= set(stage["deps"])
        values = [value for value in options if not value.startswith("--") and not value.startswith("workspace/")]
        assert set(values) <= {*stage["deps"], *stage["outs"]}
        assert set(stage["outs"]) <= set(values)


def test_what_is_expensive_and_repeatable_is_cached_and_what_meets_the_world_is_not(graph: dict[str, Any]) -> None:
    cached = {name for name, task in tasks(graph).items() if task["cachingOptions"].get("enableCache")}
    assert cached == CACHED


def test_a_cached_step_is_told_the_versions_of_its_code_and_data(graph: dict[str, Any]) -> None:
    for name in CACHED:
        parameters = tasks(graph)[name]["inputs"]["parameters"]
        assert parameters["code_version"] == {"runtimeValue": {"constant": "code-1"}}
        assert {"source_version", "data_version"} & parameters.keys()


def test_every_step_is_told_the_data_version_that_ingest_returned(graph: dict[str, Any]) -> None:
    version = {"taskOutputParameter": {"outputParameterKey": "Output", "producerTask": "ingest"}}
    for name, task in tasks(graph).items():
        if name != "ingest":
            assert task["inputs"]["parameters"]["data_version"] == version


def test_training_images_are_given_to_training_steps_alone(graph: dict[str, Any]) -> None:
    images = {name: executor(graph, name)["image"] for name in GROUPS}
    data = {"ingest", "patches"}
    assert images == {name: DATA_IMAGE if name in data else TORCH_IMAGE for name in GROUPS}


def test_nothing_is_installed_when_a_task_starts(graph: dict[str, Any]) -> None:
    for name in GROUPS:
        assert "pip install" not in " ".join(executor(graph, name)["command"])


def test_a_run_tells_the_folder_that_each_step_made(graph: dict[str, Any]) -> None:
    outputs = graph["root"]["dag"]["outputs"]["artifacts"]
    assert {output["artifactSelectors"][0]["producerSubtask"] for output in outputs.values()} == set(GROUPS)


def test_kubeflow_shows_figures_and_report_of_evaluate(graph: dict[str, Any]) -> None:
    made = graph["components"]["comp-evaluate"]["outputDefinitions"]
    kinds = {name: output["artifactType"]["schemaTitle"] for name, output in made["artifacts"].items()}
    assert kinds == {"evaluation": "system.Artifact", "metrics": "system.Metrics", "report": "system.HTML"}
    # The verdict is a parameter.
    assert made["parameters"] == {"Output": {"parameterType": "STRING"}}


COMPONENTS = [
    (path.relative_to(ROOT).as_posix(), node)
    for path in sorted((ROOT / "components").glob("*/*component.py"))
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef)
]


@pytest.mark.parametrize(("path", "component"), COMPONENTS, ids=[each.name for _, each in COMPONENTS])
def test_a_kfp_component_is_thin(path: str, component: ast.FunctionDef) -> None:
    """Imports, the frame of a task, and one call of the step: nothing else, and nothing that decides."""
    _, *body = component.body
    assert (body[-1].end_lineno or 0) - body[0].lineno + 1 <= 25
    nodes = list(ast.walk(component))
    deciding = (ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.Lambda, ast.FunctionDef, ast.ClassDef)
    assert [node for node in nodes if isinstance(node, deciding)] == [component]
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    own = path.rpartition("/")[0].replace("/", ".")
    steps = {f"components.{path.parent.name}." for path in (ROOT / "components").glob("*/component.py")}
    others = {module for module in imported if module.startswith(tuple(steps)) and not module.startswith(f"{own}.")}
    assert not others
    others = {module for module in imported if not module.startswith("components.")}
    assert others <= {"pathlib", "bebygan.settings"}
    assert not [node for node in nodes if isinstance(node, ast.Import)]


def test_every_step_has_a_kfp_component() -> None:
    named = {component.name for _, component in COMPONENTS}
    assert named >= {*GROUPS, "preflight", "look", "decide", "notify", "train_on_nodes"}
