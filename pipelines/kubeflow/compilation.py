"""Compile the pipeline to what Kubeflow reads."""

import tempfile
from pathlib import Path
from typing import Any

import yaml
from kfp.compiler import Compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from components.config import Params, load_params
from components.job import inputs_of
from pipelines.kubeflow.requests import CompiledPipeline
from pipelines.kubeflow.resources import Cluster
from pipelines.retrain import PIPELINE_NAME, retrain_on


def _compiled(pipeline: Any, **options: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        # The compiler chooses the format by the suffix.
        path = Path(folder) / "pipeline.yaml"
        Compiler().compile(pipeline, str(path), **options)
        return path.read_bytes()


def retrain_yaml(cluster: Cluster, params: Params) -> bytes:
    """Return the retraining pipeline for a cluster, the same bytes each time; these parameters are its defaults."""
    return _compiled(retrain_on(cluster), pipeline_parameters=inputs_of(params))


def compiled_retrain(cluster: Cluster) -> CompiledPipeline:
    """Compile the retraining pipeline with the parameters of params.yaml as defaults.

    Raises:
        ConfigError: params.yaml cannot be read or is wrong.
    """
    return CompiledPipeline(PIPELINE_NAME, retrain_yaml(cluster, load_params()))


def retrain_manifests(cluster: Cluster, params: Params, namespace: str) -> bytes:
    """Return the pipeline and this version of it as Kubernetes objects (pipelines.kubeflow.org/v2beta1)."""
    name = CompiledPipeline(PIPELINE_NAME, retrain_yaml(cluster, params)).version
    options = KubernetesManifestOptions(
        pipeline_name=PIPELINE_NAME, pipeline_version_name=name, namespace=namespace, include_pipeline_manifest=True
    )
    written = _compiled(
        retrain_on(cluster),
        pipeline_parameters=inputs_of(params),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    objects = list(yaml.safe_load_all(written))
    for each in objects:
        # The compiler gives every version the name of the pipeline, so that a list of versions shows no difference.
        if each["kind"] == "PipelineVersion":
            each["spec"]["displayName"] = name
    return yaml.safe_dump_all(objects, sort_keys=True).encode()
