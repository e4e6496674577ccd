"""Kubeflow faces: look at the photographs, then decide."""

from kfp import dsl

from components.container_images import DATA_IMAGE, TORCH_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def look(source: str) -> str:
    """Return the version of what lies at a source, before it is taken in."""
    from components.cli import task

    with task("look"):
        from components.stores.source import source_version

        return source_version(source)


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def decide(
    source: str,
    source_version: str,
    code_version: str,
    force: str,
    reason: str,
    ingest_params: str,
    patches_params: str,
    warmup_params: str,
    train_params: str,
    evaluate_params: str,
    register_params: str,
) -> str:
    """Return "train" or "skip"; open the run in MLflow that is the parent of the runs of the steps."""
    from components.cli import task

    with task("decide"):
        from components.detect.step import begin
        from components.job import Job, params_of

        groups = {
            "ingest": ingest_params,
            "patches": patches_params,
            "warmup": warmup_params,
            "train": train_params,
            "evaluate": evaluate_params,
            "register": register_params,
        }
        job = Job(params_of(groups), source, source_version, code_version)
        return begin(job, force=force, asked_because=reason)
