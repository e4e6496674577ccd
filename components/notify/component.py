"""Kubeflow face of the notify step, which runs at the end of a pipeline, however it ended."""

from kfp import dsl

from components.container_images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def notify(evaluate_params: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """End the pipeline's run in MLflow and tell the webhook how it ended."""
    from components.cli import task

    with task("notify"):
        from components.config import EvaluateParams, from_yaml
        from components.notify.step import Ending
        from components.notify.step import notify as run

        model = from_yaml(EvaluateParams, evaluate_params).model_name
        run(Ending(state=status.state, error=status.error_message or "", model=model))
