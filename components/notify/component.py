"""KFP component of the notify step, which runs at the end of a pipeline, however it ended."""

from kfp import dsl

from components.container_images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def notify(params: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """End the pipeline's run in MLflow and post the result to the webhook."""
    from components.cli import task

    with task("notify"):
        from components.notify.step import Ending, model_of
        from components.notify.step import notify as run

        run(Ending(state=status.state, error=status.error_message or "", model=model_of(params)))
