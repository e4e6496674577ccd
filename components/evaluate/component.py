"""KFP component of the evaluate step."""

from kfp import dsl

from components.container_images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def evaluate(
    data_version: str,
    params: str,
    dataset: dsl.Input[dsl.Dataset],
    warmup: dsl.Input[dsl.Model],
    challenger: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
) -> str:
    """Compare the challenger with the other candidates and return the verdict."""
    from components.cli import task

    with task("evaluate"):
        from pathlib import Path

        from components.config import EvaluateParams, from_yaml
        from components.evaluate.step import evaluate as run
        from components.tracking.runs import step_run

        group = from_yaml(EvaluateParams, params)
        folders = (Path(folder.path) for folder in (dataset, warmup, challenger, evaluation))
        with step_run("evaluate", group, data_version) as tracked:
            return run(*folders, params=group, run=tracked)
