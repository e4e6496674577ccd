"""The graph: ingest -> patches -> warmup -> train -> evaluate -> register.

ASCII only, and one string per group of parameters: Kubeflow stores and passes nothing else unharmed.
"""

from typing import NamedTuple

from kfp import dsl

from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.patches.component import patches
from components.register.component import register
from components.train.component import train
from components.warmup.component import warmup


class Outputs(NamedTuple):
    """What a run leaves behind: the folders that evaluate and register wrote."""

    evaluation: dsl.Artifact
    registration: dsl.Artifact


@dsl.pipeline(name="bebygan-retrain", description="Retrain Beby-GAN; replace the champion only by a better model.")
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
    ingested = ingest(
        source=source, source_version=source_version, code_version=code_version, remote=remote, params=ingest_params
    )
    version = ingested.outputs["Output"]
    dataset = ingested.outputs["dataset"]
    cut = patches(data_version=version, code_version=code_version, params=patches_params, dataset=dataset)
    warm = warmup(
        data_version=version,
        code_version=code_version,
        checkpoints=checkpoints,
        params=warmup_params,
        patches=cut.outputs["shards"],
    )
    trained = train(
        data_version=version,
        checkpoints=checkpoints,
        params=train_params,
        patches=cut.outputs["shards"],
        warmup=warm.outputs["generator"],
    )
    # Checkpoints make a repeated training short; the champion that a challenger meets is no input that caching sees.
    trained.set_caching_options(False)
    judged = evaluate(
        data_version=version,
        params=evaluate_params,
        dataset=dataset,
        warmup=warm.outputs["generator"],
        challenger=trained.outputs["challenger"],
    ).set_caching_options(False)
    registered = register(
        data_version=version,
        ledger=ledger,
        params=register_params,
        challenger=trained.outputs["challenger"],
        evaluation=judged.outputs["evaluation"],
    ).set_caching_options(False)
    return Outputs(evaluation=judged.outputs["evaluation"], registration=registered.outputs["registration"])
