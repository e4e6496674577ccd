"""KFP component of the register step."""

from kfp import dsl

from components.container_images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def register(
    data_version: str,
    ledger: str,
    params: str,
    challenger: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
) -> None:
    """Register the challenger with its verdict, and make it champion if the verdict is to promote it."""
    from components.cli import task

    with task("register"):
        from pathlib import Path

        from components.config import RegisterParams, from_yaml
        from components.register.step import register as run
        from components.tracking.runs import step_run

        group = from_yaml(RegisterParams, params)
        folders = (Path(folder.path) for folder in (challenger, evaluation, registration))
        with step_run("register", group, data_version) as tracked:
            run(*folders, params=group, run=tracked, ledger=ledger, expected=data_version)
