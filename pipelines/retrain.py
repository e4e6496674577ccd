"""The graph: ingest -> patches -> warmup -> train -> evaluate -> register.

On one machine these six steps are the pipeline. On a cluster, look and decide come first and end the run when nothing
changed; else preflight and the six steps follow. Notify runs at the end, however the rest ended.

ASCII only, and one line of YAML for parameters: Kubeflow stores and passes nothing else unharmed.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from kfp import dsl

from components.config import GROUPS
from components.detect.component import decide, look
from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.job import Job, groups_of
from components.notify.component import notify
from components.patches.component import patches
from components.preflight.component import preflight
from components.register.component import register
from components.train.component import train
from components.train.launch_component import train_on_nodes
from components.warmup.component import warmup
from pipelines.kubeflow.resources import VOLUME, Cluster, place, trainjob_yaml

PIPELINE_NAME = "bebygan-retrain"
CACHED = frozenset(("ingest", "patches", "warmup"))
"""Steps that are not repeated for the same inputs. The results of the others depend on the current champion too, or
take little time: a repeated training resumes from its last checkpoint."""
DESCRIPTION = "Retrain Beby-GAN; replace the champion only by a better model."


class Outputs(NamedTuple):
    """The folders that a run made, or took from the cache."""

    dataset: dsl.Dataset
    docs: dsl.Artifact
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
    """Add the six steps to the pipeline that is being described. All arguments may be values or outputs of tasks.

    Args:
        source: folder or s3:// prefix of photographs.
        source_version: identity of what lies there, so that caching sees new photographs.
        code_version: identity of the code or image, so that caching sees new code.
        remote: DVC remote that the data version is pushed to; empty to push nowhere.
        checkpoints: folder or s3:// prefix that survives a task, for resuming.
        ledger: record of all moves of the champion, folder or s3:// prefix; empty for none.
        params: YAML by the name of the group. Each step is given its own group only, so that a change of another group
            does not invalidate its cache.
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
    judged = evaluate(
        data_version=version,
        ledger=ledger,
        remote=remote,
        params=params["evaluate"],
        dataset=dataset,
        docs=ingested.outputs["docs"],
        warmup=warm.outputs["generator"],
        challenger=trained.outputs["challenger"],
    )
    registered = register(
        data_version=version,
        ledger=ledger,
        params=params["register"],
        challenger=trained.outputs["challenger"],
        evaluation=judged.outputs["evaluation"],
    )
    tasks = dict(zip(GROUPS, (ingested, cut, warm, trained, judged, registered), strict=True))
    for name, task in tasks.items():
        task.set_caching_options(name in CACHED)
    return tasks


def retrain_here(job: Job, *, remote: str, checkpoints: str, ledger: str) -> Any:
    """Return the pipeline for one machine: the six steps of a job, without inputs. See `add_steps`."""

    @dsl.pipeline(name=PIPELINE_NAME, description=DESCRIPTION)
    def pipeline() -> Outputs:
        tasks = add_steps(
            source=job.source,
            source_version=job.source_version,
            code_version=job.code_version,
            remote=remote,
            checkpoints=checkpoints,
            ledger=ledger,
            params=groups_of(job.params_of_steps),
        )
        return Outputs(
            dataset=tasks["ingest"].outputs["dataset"],
            docs=tasks["ingest"].outputs["docs"],
            shards=tasks["patches"].outputs["shards"],
            generator=tasks["warmup"].outputs["generator"],
            challenger=tasks["train"].outputs["challenger"],
            evaluation=tasks["evaluate"].outputs["evaluation"],
            registration=tasks["register"].outputs["registration"],
        )

    return pipeline


def retrain_on(cluster: Cluster) -> Any:
    """Return the pipeline for a cluster.

    Args:
        cluster: what each task is given; it becomes part of the pipeline.
    """
    trainer = train
    if cluster.training.where == "trainjob":
        trainer = partial(train_on_nodes, trainjob=trainjob_yaml(cluster))

    @dsl.pipeline(name=PIPELINE_NAME, description=DESCRIPTION)
    def pipeline(
        source: str,
        params: str,
        remote: str = "",
        ledger: str = "",
        checkpoints: str = f"{VOLUME}/checkpoints",
        force: str = "auto",
        reason: str = "",
    ) -> None:
        """Retrain when anything changed since the champion was made.

        Args:
            source: s3:// prefix of photographs, or a folder that tasks see.
            params: all parameters as one line of YAML.
            remote: DVC remote that the data version is pushed to; empty to push nowhere.
            ledger: record of all moves of the champion, s3:// prefix; empty for none.
            checkpoints: folder or s3:// prefix that survives a task, for resuming.
            force: "auto" trains if anything changed, "always" trains always.
            reason: why this run was started; it is logged.
        """
        notified = notify(params=params)
        with dsl.ExitHandler(notified, name="retraining"):
            looked = look(source=source)
            decided = decide(
                source=source,
                source_version=looked.output,
                code_version=cluster.images.version,
                force=force,
                reason=reason,
                params=params,
            )
            with dsl.If(decided.outputs["Output"] == "train", name="anything-new"):
                checked = preflight(
                    source=source, remote=remote, checkpoints=checkpoints, ledger=ledger, volume=VOLUME, params=params
                )
                steps = add_steps(
                    source=source,
                    source_version=looked.output,
                    code_version=cluster.images.version,
                    remote=remote,
                    checkpoints=checkpoints,
                    ledger=ledger,
                    params=decided.outputs,
                    trainer=trainer,
                )
                steps["ingest"].after(checked)
        tasks = {"notify": notified, "look": looked, "decide": decided, "preflight": checked, **steps}
        for name, task in tasks.items():
            place(task.set_caching_options(name in CACHED), name, cluster)

    return pipeline
