"""Kubeflow face of the start step."""

from kfp import dsl

from components.container_images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def start(
    source: str,
    remote: str,
    checkpoints: str,
    ledger: str,
    experiment: str,
    version: str,
    service_account: str,
    reason: str,
    ingest_params: str,
    patches_params: str,
    warmup_params: str,
    train_params: str,
    evaluate_params: str,
    register_params: str,
) -> str:
    """Start the retraining pipeline, unless a run of the same inputs has not ended; returns the run's id."""
    from components.cli import task
    from components.start.step import start as run

    with task("start"):
        inputs = {
            "source": source,
            "remote": remote,
            "checkpoints": checkpoints,
            "ledger": ledger,
            "ingest_params": ingest_params,
            "patches_params": patches_params,
            "warmup_params": warmup_params,
            "train_params": train_params,
            "evaluate_params": evaluate_params,
            "register_params": register_params,
        }
        return run(inputs, experiment=experiment, version=version, service_account=service_account, reason=reason)
