"""The graph: ingest -> patches -> warmup -> train -> evaluate -> register.

Here the six steps are the pipeline. On a cluster they stand behind a preflight and a decision, and whatever comes of
them is told at the end.

ASCII only, and one string per group of parameters: Kubeflow stores and passes nothing else unharmed.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from kfp import dsl

from components.config import GROUPS
from components.detect.component import decide, look
from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.notify.component import notify
from components.patches.component import patches
from components.preflight.component import preflight
from components.register.component import register
from components.train.component import train
from components.train.launch_component import train_on_nodes
from components.warmup.component import warmup
from pipelines.kubeflow.resources import VOLUME, Cluster, Step, launcher, place, trainjob_yaml

PIPELINE = "bebygan-retrain"
CACHED = frozenset(("ingest", "patches", "warmup"))
"""Steps that are not repeated for the same inputs; the others meet the world, which caching does not see."""
DESCRIPTION = "Retrain Beby-GAN; replace the champion only by a better model."


class Outputs(NamedTuple):
    """The folders that a run made, or took from the cache."""

    dataset: dsl.Dataset
    shards: dsl.Dataset
    generator: dsl.Model
    challenger: dsl.Model
    evaluation: dsl.Artifact
    registration: dsl.Artifact


def add_steps(
    *,
    source: Any,
    source_version: Any,
    code_version: Any,
    remote: Any,
    checkpoints: Any,
    ledger: Any,
    params: Mapping[str, Any],
    trainer: Callable[..., dsl.PipelineTask] = train,
) -> dict[str, dsl.PipelineTask]:
    """Add the six steps to the pipeline that is being described.

    Args:
        source: an input or output of the pipeline, or a text, like all that follow; see `retrain`.
        source_version: see `retrain`.
        code_version: see `retrain`.
        remote: see `retrain`.
        checkpoints: see `retrain`.
        ledger: see `retrain`.
        params: YAML by the name of the group.
        trainer: makes the train task.

    Returns:
        The tasks by name.
    """
    ingested = ingest(
        source=source, source_version=source_version, code_version=code_version, remote=remote, params=params["ingest"]
    )
    version = ingested.outputs["Output"]
    dataset = ingested.outputs["dataset"]
    cut = patches(data_version=version, code_version=code_version, params=params["patches"], dataset=dataset)
    warm = warmup(
        data_version=version,
        code_version=code_version,
        checkpoints=checkpoints,
        params=params["warmup"],
        patches=cut.outputs["shards"],
    )
    trained = trainer(
        data_version=version,
        checkpoints=checkpoints,
        params=params["train"],
        patches=cut.outputs["shards"],
        warmup=warm.outputs["generator"],
    )
    # Checkpoints make a repeated training short; the champion that a challenger meets is no input that caching sees.
    trained.set_caching_options(False)
    judged = evaluate(
        data_version=version,
        params=params["evaluate"],
        dataset=dataset,
        warmup=warm.outputs["generator"],
        challenger=trained.outputs["challenger"],
    ).set_caching_options(False)
    registered = register(
        data_version=version,
        ledger=ledger,
        params=params["register"],
        challenger=trained.outputs["challenger"],
        evaluation=judged.outputs["evaluation"],
    ).set_caching_options(False)
    return {
        "ingest": ingested,
        "patches": cut,
        "warmup": warm,
        "train": trained,
        "evaluate": judged,
        "register": registered,
    }


@dsl.pipeline(name=PIPELINE, description=DESCRIPTION)
def retrain(
    source: str,
    source_version: str,
    code_version: str,
    remote: str,
    checkpoints: str,
    ledger: str,
    ingest_params: str,
    patches_params: str,
    warmup_params: str,
    train_params: str,
    evaluate_params: str,
    register_params: str,
) -> Outputs:
    """Retrain.

    Args:
        source: folder or s3:// prefix of photographs.
        source_version: identity of what lies there, so that caching sees new photographs.
        code_version: identity of the code or image, so that caching sees new code.
        remote: DVC remote that the data version is pushed to; empty to push nowhere.
        checkpoints: folder that survives a task, for resuming.
        ledger: record of all moves of the champion, folder or s3:// prefix; empty for none.
        ingest_params: the group as YAML, like the five below.
        patches_params: see ingest_params.
        warmup_params: see ingest_params.
        train_params: see ingest_params.
        evaluate_params: see ingest_params.
        register_params: see ingest_params.
    """
    params = {
        "ingest": ingest_params,
        "patches": patches_params,
        "warmup": warmup_params,
        "train": train_params,
        "evaluate": evaluate_params,
        "register": register_params,
    }
    tasks = add_steps(
        source=source,
        source_version=source_version,
        code_version=code_version,
        remote=remote,
        checkpoints=checkpoints,
        ledger=ledger,
        params=params,
    )
    return Outputs(
        dataset=tasks["ingest"].outputs["dataset"],
        shards=tasks["patches"].outputs["shards"],
        generator=tasks["warmup"].outputs["generator"],
        challenger=tasks["train"].outputs["challenger"],
        evaluation=tasks["evaluate"].outputs["evaluation"],
        registration=tasks["register"].outputs["registration"],
    )


def retrain_on(cluster: Cluster) -> Any:
    """Return the pipeline for a cluster.

    Notify stands outside and runs however the rest ended. Preflight tries what the run will need; look and decide find
    out whether there is anything new; only then the six steps run.

    Args:
        cluster: what each task is given; it becomes part of the pipeline.
    """
    steps = cluster.steps
    elsewhere = cluster.training.where == "trainjob"
    trainer = partial(train_on_nodes, trainjob=trainjob_yaml(cluster)) if elsewhere else train

    @dsl.pipeline(name=PIPELINE, description=DESCRIPTION)
    def pipeline(
        source: str,
        ingest_params: str,
        patches_params: str,
        warmup_params: str,
        train_params: str,
        evaluate_params: str,
        register_params: str,
        remote: str = "",
        ledger: str = "",
        checkpoints: str = f"{VOLUME}/checkpoints",
        force: str = "auto",
        reason: str = "",
    ) -> None:
        """Retrain when there is anything new.

        Args:
            source: s3:// prefix of photographs, or a folder that tasks see.
            ingest_params: the group as YAML, like the five below.
            patches_params: see ingest_params.
            warmup_params: see ingest_params.
            train_params: see ingest_params.
            evaluate_params: see ingest_params.
            register_params: see ingest_params.
            remote: DVC remote that the data version is pushed to; empty to push nowhere.
            ledger: record of all moves of the champion, s3:// prefix; empty for none.
            checkpoints: folder or s3:// prefix that survives a task, for resuming.
            force: auto trains when there is anything new, always in any case.
            reason: why this run was started; it is logged.
        """
        inputs = {
            "ingest_params": ingest_params,
            "patches_params": patches_params,
            "warmup_params": warmup_params,
            "train_params": train_params,
            "evaluate_params": evaluate_params,
            "register_params": register_params,
        }
        code_version = cluster.images.version

        def placed(task: dsl.PipelineTask, name: str, *, cached: bool = False) -> dsl.PipelineTask:
            launches = elsewhere and name == "train"
            step: Step = getattr(steps, name)
            place(task, "launch" if launches else name, cluster, launcher(step) if launches else step)
            return task.set_caching_options(cached)

        told = placed(notify(evaluate_params=evaluate_params), "notify")
        with dsl.ExitHandler(told, name="retraining"):
            tried = placed(
                preflight(
                    source=source,
                    remote=remote,
                    checkpoints=checkpoints,
                    ledger=ledger,
                    volume=VOLUME,
                    gpus=steps.preflight.gpus,
                    **inputs,
                ),
                "preflight",
            )
            seen = placed(look(source=source).after(tried), "look")
            decided = placed(
                decide(
                    source=source,
                    source_version=seen.output,
                    code_version=code_version,
                    force=force,
                    reason=reason,
                    **inputs,
                ),
                "decide",
            )
            with dsl.If(decided.output == "train", name="anything-new"):
                tasks = add_steps(
                    source=source,
                    source_version=seen.output,
                    code_version=code_version,
                    remote=remote,
                    checkpoints=checkpoints,
                    ledger=ledger,
                    params={group: inputs[f"{group}_params"] for group in GROUPS},
                    trainer=trainer,
                )
                for name, task in tasks.items():
                    placed(task, name, cached=name in CACHED)

    return pipeline
