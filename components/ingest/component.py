"""KFP component of the ingest step."""

from kfp import dsl

from components.container_images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def ingest(
    source: str,
    source_version: str,
    code_version: str,
    remote: str,
    params: str,
    dataset: dsl.Output[dsl.Dataset],
    docs: dsl.Output[dsl.Artifact],
) -> str:
    """Make a dataset and return its data version. The version of the code is an input for KFP's cache alone."""
    from components.cli import task

    with task("ingest", dataset.path, docs.path):
        from pathlib import Path

        from components.config import IngestParams, from_yaml
        from components.ingest.step import ingest as run
        from components.ingest.step import tell

        folders = (Path(dataset.path), Path(docs.path))
        report = run(source, *folders, from_yaml(IngestParams, params), remote or None, expected=source_version)
        tell(report, *folders)
        return report.data_version
