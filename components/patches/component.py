"""KFP component of the patches step."""

from kfp import dsl

from components.container_images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def patches(
    data_version: str, code_version: str, params: str, dataset: dsl.Input[dsl.Dataset], shards: dsl.Output[dsl.Dataset]
) -> None:
    """Make training patches. `code_version` is an input for KFP's cache alone."""
    from components.cli import task

    with task("patches", shards.path):
        from pathlib import Path

        from components.config import PatchesParams, from_yaml
        from components.patches.step import make_patches, tell

        folders = (Path(dataset.path), Path(shards.path))
        tell(make_patches(*folders, from_yaml(PatchesParams, params), data_version), *folders)
