"""Kubeflow face of the preflight step."""

from kfp import dsl

from components.container_images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def preflight(
    source: str,
    remote: str,
    checkpoints: str,
    ledger: str,
    volume: str,
    gpus: int,
    ingest_params: str,
    patches_params: str,
    warmup_params: str,
    train_params: str,
    evaluate_params: str,
    register_params: str,
) -> None:
    """Try what the run will need."""
    from components.cli import task

    with task("preflight"):
        from components.job import params_of
        from components.preflight.step import Places, checks
        from components.preflight.step import preflight as run

        groups = {
            "ingest": ingest_params,
            "patches": patches_params,
            "warmup": warmup_params,
            "train": train_params,
            "evaluate": evaluate_params,
            "register": register_params,
        }
        places = Places(source=source, remote=remote, checkpoints=checkpoints, ledger=ledger, volume=volume)
        run(checks(places, params_of(groups), gpus))
