"""KFP component of the warm-up step."""

from kfp import dsl

from components.container_images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def warmup(
    data_version: str,
    code_version: str,
    checkpoints: str,
    params: str,
    patches: dsl.Input[dsl.Dataset],
    generator: dsl.Output[dsl.Model],
) -> None:
    """Train or import the PSNR-oriented generator. `code_version` is an input for KFP's cache alone."""
    from components.cli import task

    with task("warmup", generator.path):
        from pathlib import Path

        from components.config import WarmupParams, from_yaml
        from components.training import tracked_training
        from components.warmup.step import warm_up

        group, shards = from_yaml(WarmupParams, params), Path(patches.path)
        with tracked_training("warmup", group, data_version, shards) as track:
            warm_up(shards, Path(generator.path), checkpoints, params=group, track=track)
