"""KFP component of training on other machines."""

# ruff: noqa: PLC0415, PLR0917 - a Kubeflow component imports inside its body and takes its inputs by position.
# mypy: disallow-untyped-decorators=False

from kfp import dsl

from components.container_images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def train_on_nodes(
    data_version: str,
    checkpoints: str,
    params: str,
    trainjob: str,
    patches: dsl.Input[dsl.Dataset],
    warmup: dsl.Input[dsl.Model],
    challenger: dsl.Output[dsl.Model],
) -> None:
    """Train Beby-GAN from the warm-up generator, on other machines."""
    from pathlib import Path

    from bebygan.settings import GanSettings
    from components.cli import task
    from components.config import from_yaml
    from components.progress import say
    from components.train.launch import launch
    from components.train.trainjob import TrainJobSettings

    with task("train"):
        say(f"photographs {data_version}")
        settings = from_yaml(TrainJobSettings, trainjob)
        folders = (Path(patches.path), Path(warmup.path), Path(challenger.path))
        group = from_yaml(GanSettings, params)
        launch(*folders, checkpoints, params=group, settings=settings, data_version=data_version)
