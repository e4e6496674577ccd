"""KFP component of the preflight step."""

from kfp import dsl

from components.container_images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def preflight(source: str, remote: str, checkpoints: str, ledger: str, volume: str, params: str) -> None:
    """Test everything that the run needs, and tag the pipeline's run in MLflow if nothing is missing."""
    from components.cli import task

    with task("preflight"):
        from components.config import Params, from_yaml
        from components.preflight.step import Places, checks, gpus_given
        from components.preflight.step import preflight as run
        from components.tracking.runs import PREFLIGHT_PASSED, tag_pipeline_run

        places = Places(source=source, remote=remote, checkpoints=checkpoints, ledger=ledger, volume=volume)
        run(checks(places, from_yaml(Params, params), gpus_given()))
        tag_pipeline_run(PREFLIGHT_PASSED)
