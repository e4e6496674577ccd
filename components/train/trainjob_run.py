"""Run a TrainJob to its end: create it or attach to the one that runs, show its log, return its error.

The name of a TrainJob identifies the training: a launcher that was killed or retried attaches to the training that it
started before. A launcher may end at any time; the TrainJob keeps running.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kubernetes import client, config  # type: ignore[import-untyped]
from kubernetes.config.config_exception import ConfigException  # type: ignore[import-untyped]
from urllib3.exceptions import LocationValueError

from bebygan.differences import differences
from bebygan.errors import ConfigError, ServiceError
from components.cli import stoppable
from components.config import flatten
from components.train.cluster_api import PATIENCE, ClusterApi, Patience, one_line
from components.train.trainjob import ASKED, TrainJobSpec, manifest
from components.train.trainjob_log import failure_of, log_of_node_zero

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _connect(namespace: str | None, patience: Patience) -> ClusterApi:
    """Connect to the cluster of this pod, or of the kubeconfig."""
    settings = client.Configuration()
    # The library reads the variable only once, when it is imported.
    kubeconfig = os.environ.get("KUBECONFIG")
    try:
        try:
            config.load_incluster_config(settings)
            own = _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.exists() else None
        except ConfigException:
            config.load_kube_config(kubeconfig, client_configuration=settings)
            own = config.list_kube_config_contexts(kubeconfig)[1]["context"].get("namespace")
    except (ConfigException, OSError, ValueError, LocationValueError) as error:
        raise ConfigError(
            f"no cluster to train on: this is not a pod, and the kubeconfig cannot be used ({one_line(error)}); "
            "set KUBECONFIG"
        ) from error
    # `ask` retries; urllib3 would try an address three times before it reports an error.
    settings.retries = False
    return ClusterApi(namespace or own or "default", settings.host, client.ApiClient(settings), patience)


def _condition(trainjob: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Return the condition Complete or Failed of a TrainJob, or None if it has not ended."""
    conditions = trainjob.get("status", {}).get("conditions", ())
    ended = [each for each in conditions if each["type"] in ("Complete", "Failed") and each["status"] == "True"]
    return ended[0] if ended else None


def _start(api: ClusterApi, spec: TrainJobSpec, log: Callable[[str], None]) -> str:
    """Create the TrainJob, or find the one that runs; return its uid."""
    body = manifest(spec)
    named = f"TrainJob {api.namespace}/{spec.name}"
    delete = f"kubectl -n {api.namespace} delete trainjob {spec.name}"
    while True:
        if made := api.create(body):
            log(f"{named} started; to stop it: {delete}")
            return str(made["metadata"]["uid"])
        found = api.get(spec.name)
        if found is None:
            time.sleep(api.patience.between_looks)
            continue
        uid = str(found["metadata"]["uid"])
        ended = _condition(found)
        if ended or "deletionTimestamp" in found["metadata"]:
            how = f"ended ({ended['reason']}: {one_line(ended['message'])})" if ended else "is being deleted"
            log(f"an earlier {named} {how}; starting it again")
            api.delete(spec.name, uid)
            continue
        asked, exists = (each["metadata"].get("annotations", {}).get(ASKED) for each in (body, found))
        if exists is None:
            raise ConfigError(f"{named} exists and is not of this pipeline: delete it, or choose another namespace")
        if asked != exists:
            running, wanted = (dict(flatten(json.loads(text))) for text in (exists, asked))
            raise ConfigError(
                f"{named} already runs the same training with other settings: "
                f"{', '.join(differences(running, wanted))}; wait until it ends, or stop it with {delete}"
            )
        log(f"{named} already runs; attached to it")
        return uid


def _wait(api: ClusterApi, name: str, uid: str, log: Callable[[str], None]) -> Mapping[str, str]:
    """Wait until the TrainJob ends; return its condition Complete or Failed."""
    suspended = False
    for found in api.states(name):
        if found is None or found["metadata"]["uid"] != uid:
            raise ServiceError(f"TrainJob {api.namespace}/{name} was deleted: run again to resume the training")
        if ended := _condition(found):
            return ended
        before, suspended = suspended, bool(found["spec"].get("suspend"))
        if suspended and not before:
            log(f"TrainJob {api.namespace}/{name} is suspended: it waits in a queue")
    raise AssertionError("states never end")


def run_trainjob(spec: TrainJobSpec, log: Callable[[str], None], patience: Patience = PATIENCE) -> None:
    """Run a training on other machines to its end, or attach to the running TrainJob of this name.

    A TrainJob that has ended is deleted and started again, and resumes from its last checkpoint: the caller checks for
    its result first.

    Args:
        spec: what to run.
        log: called from any thread with each event, and with each line of the log of node 0, once and in order.
        patience: how long to wait for the API server.

    Raises:
        Preempted: this process was asked to stop; the TrainJob keeps running.
        ServiceError: the API server denies the request or is unreachable, or the TrainJob was deleted.
        ConfigError: there is no cluster, the server rejects the TrainJob, the same training runs with other settings,
            or the training exceeded its time or memory limit.
        BebyganError: the one with whose exit code the training ended.
        RuntimeError: the training failed unexpectedly; the traceback is in the log.
    """
    api = _connect(spec.settings.namespace, patience)
    with stoppable(f"stopped on request; TrainJob {spec.name} keeps running, run again to attach to it"):
        uid = _start(api, spec, log)
        with log_of_node_zero(api, spec.name, log):
            ended = _wait(api, spec.name, uid, log)
        if ended["type"] == "Failed":
            raise failure_of(api, spec.name, ended)
    log(f"TrainJob {api.namespace}/{spec.name} is complete")
