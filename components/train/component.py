"""KFP component of the train step."""

from kfp import dsl

from components.container_images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def train(
    data_version: str,
    checkpoints: str,
    params: str,
    patches: dsl.Input[dsl.Dataset],
    warmup: dsl.Input[dsl.Model],
    challenger: dsl.Output[dsl.Model],
) -> None:
    """Train Beby-GAN from the warm-up generator."""
    from components.cli import task

    with task("train"):
        from pathlib import Path

        from bebygan.settings import GanSettings
        from components.config import from_yaml
        from components.train.step import train as run
        from components.training import tracked_training

        group = from_yaml(GanSettings, params)
        folders = (Path(patches.path), Path(warmup.path), Path(challenger.path))
        with tracked_training("train", group, data_version, folders[0]) as track:
            run(*folders, checkpoints, params=group, track=track)
