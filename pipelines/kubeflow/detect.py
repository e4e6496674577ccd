"""The change detector: look -> decide -> start. Cheap, so that it can run often where a training runs rarely.

Where it fails notify tells so: nobody would notice that nothing is started any more.

ASCII only, like all that Kubeflow stores.
"""

from typing import Any

from kfp import dsl, kubernetes

from components.detect.component import decide, look
from components.notify.component import notify
from components.notify.step import DETECTOR
from components.start.component import start
from pipelines.kubeflow.resources import VOLUME, Cluster, place

DETECT = "bebygan-detect"
GIVEN_ACCESS = "access-ml-pipeline"
"""Pods with it are given a token for Kubeflow Pipelines, by the PodDefault of this name in the namespace."""


def detect_on(cluster: Cluster) -> Any:
    """Return the pipeline for a cluster.

    Args:
        cluster: what each task is given. Its images must be those of the retraining pipeline that is started: they are
            the code that the champion's is compared with.
    """

    def placed(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
        # Starting asks the server a few questions, like looking.
        place(task, name, cluster, getattr(cluster.steps, "look" if name == "start" else name))
        return task.set_caching_options(False)

    @dsl.pipeline(  # type: ignore[untyped-decorator]
        name=DETECT, description="Start a retraining when photographs, code or parameters changed."
    )
    def pipeline(  # noqa: PLR0917
        source: str,
        experiment: str,
        service_account: str,
        ingest_params: str,
        patches_params: str,
        warmup_params: str,
        train_params: str,
        evaluate_params: str,
        register_params: str,
        version: str = "",
        remote: str = "",
        ledger: str = "",
        checkpoints: str = f"{VOLUME}/checkpoints",
    ) -> None:
        """Start a retraining when there is anything new.

        Args:
            source: s3:// prefix of photographs, or a folder that tasks see.
            experiment: Kubeflow's experiment for the retraining.
            service_account: of the retraining's pods.
            ingest_params: the group as YAML, like the five below.
            patches_params: see ingest_params.
            warmup_params: see ingest_params.
            train_params: see ingest_params.
            evaluate_params: see ingest_params.
            register_params: see ingest_params.
            version: name of the version of the retraining pipeline to start; empty for the newest one.
            remote: DVC remote that the data version is pushed to; empty to push nowhere.
            ledger: record of all moves of the champion, s3:// prefix; empty for none.
            checkpoints: folder or s3:// prefix that survives a task, for resuming.
        """
        inputs = {
            "ingest_params": ingest_params,
            "patches_params": patches_params,
            "warmup_params": warmup_params,
            "train_params": train_params,
            "evaluate_params": evaluate_params,
            "register_params": register_params,
        }
        told = placed(notify(pipeline=DETECTOR, evaluate_params=evaluate_params), "notify")
        with dsl.ExitHandler(told, name="detecting"):
            seen = placed(look(source=source), "look")
            decided = placed(
                decide(
                    source=source,
                    source_version=seen.output,
                    code_version=cluster.images.version,
                    force="auto",
                    reason="",
                    open_run=False,
                    **inputs,
                ),
                "decide",
            )
            with dsl.If(decided.output == "train", name="anything-new"):
                started = placed(
                    start(
                        source=source,
                        remote=remote,
                        checkpoints=checkpoints,
                        ledger=ledger,
                        experiment=experiment,
                        version=version,
                        service_account=service_account,
                        reason=f"the change detector {dsl.PIPELINE_JOB_ID_PLACEHOLDER} found something new",
                        **inputs,
                    ),
                    "start",
                )
                given = {"KFP_HOST": "KFP_HOST"}
                kubernetes.add_pod_label(started, GIVEN_ACCESS, "true")
                kubernetes.use_field_path_as_env(started, "KFP_NAMESPACE", "metadata.namespace")
                kubernetes.use_config_map_as_env(started, cluster.names.config_map, given, optional=True)

    return pipeline
