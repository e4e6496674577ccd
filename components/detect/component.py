"""KFP components: look at the photographs, then decide."""

from typing import NamedTuple

from kfp import dsl

from components.container_images import DATA_IMAGE, TORCH_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def look(source: str) -> str:
    """Return the version of the photographs at a source."""
    from components.cli import task

    with task("look"):
        from components.stores.source import source_version

        return source_version(source)


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def decide(source: str, source_version: str, code_version: str, force: str, reason: str, params: str) -> NamedTuple(  # type: ignore[valid-type] # KFP evaluates it in the task, where this module is not imported
    "Decided",
    [
        # KFP's local runner evaluates a condition on an output of this name only.
        ("Output", str),
        ("ingest", str),
        ("patches", str),
        ("warmup", str),
        ("train", str),
        ("evaluate", str),
        ("register", str),
    ],
):
    """Return "train" or "skip" and each step's parameters; open the run in MLflow that is the parent of the steps'."""
    from components.cli import task

    with task("decide"):
        from components.config import Params, from_yaml
        from components.detect.step import begin
        from components.identify import start_of
        from components.job import Job, groups_of

        parsed = from_yaml(Params, params)
        job = Job(parsed, source, source_version, code_version, start_of(parsed))
        action = begin(job, force=force, asked_because=reason)
        return action, *groups_of(job.params_of_steps).values()
