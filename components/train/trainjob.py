"""Training on other machines: a TrainJob (Kubeflow Trainer v2) that is started once, watched, and whose log is ours.

A TrainJob's name comes from what is trained. Whoever asks for the same training again, because his pod was lost or
because a task is retried, finds the one that runs and goes on watching it. A process that watches may die at any time;
the TrainJob runs on.

What the watching process may do: create, get, watch and delete trainjobs.trainer.kubeflow.org, list and get pods, get
pods/log, all in one namespace.
"""

import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

from kubernetes import client, config, watch  # type: ignore[import-untyped]
from kubernetes.client.exceptions import ApiException  # type: ignore[import-untyped]
from kubernetes.config.config_exception import ConfigException  # type: ignore[import-untyped]
from pydantic import Field
from urllib3.exceptions import HTTPError, LocationValueError

from bebygan.differences import differences
from bebygan.errors import BebyganError, ConfigError, Preempted, ServiceError
from components.cli import stoppable
from components.config import Count, Group, flatten

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RESOURCE = f"{PLURAL}.{GROUP}"
ASKED = "bebygan/asked"
"""Annotation of a TrainJob: what was asked for, as JSON."""
CONTAINER = "node"
"""Name that Trainer gives to the job, and we to its container, that trains."""

_INDEX = "batch.kubernetes.io/job-completion-index"
"""Label of a pod: which node it is."""
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_SECONDS_TO_ANSWER = 30.0
"""For how long the first request is tried, so that a wrong address is known soon."""
_SECONDS_OF_ABSENCE = 1800.0
"""For how long an API server that has answered once may be away."""
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_OF_WATCHING = 240
_SECONDS_OF_SILENCE = 60.0
"""A log that says nothing for so long is asked for again: its connection may be dead."""
_SECONDS_READ_AGAIN = 5
"""Lines of both output streams are not stored strictly in the order of their times."""
_SECONDS_WITHOUT_A_POD = 120.0
_LAST_LINES = 200
"""Of a log, in which the error line of a training is looked for: torchrun says more after it."""
_TRIES_AT_THE_END = 5
"""For the rest of the log of a training that has ended."""
_BUSY = {408, 429, 500, 502, 503, 504}
_OUT_OF_MEMORY = 137
_ECHOES = (Preempted.exit_code, 128 + signal.SIGTERM)
"""Exit codes of nodes that were stopped because another had failed."""
_log = logging.getLogger(__name__)
T = TypeVar("T")
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|[KMGT]i?)?$")]


class TrainJobSettings(Group):
    """Where and on what a training runs."""

    namespace: str | None
    """Of the TrainJob; none takes that of the pod or the kubeconfig."""
    runtime: str
    """TrainingRuntime of the same namespace (infra/kubernetes/components/trainer/training-runtime.yaml)."""
    image: Annotated[str, Field(min_length=1)]
    """Image that trains, by digest."""
    nodes: Count
    """Pods, each on a machine of its own when it takes all GPUs of one."""
    gpus: Annotated[int, Field(ge=0)]
    """GPUs, and processes, of each node; 0 trains in one process on the CPU."""
    gpu_type: str
    """Name of the resource, such as nvidia.com/gpu."""
    cpu: Quantity
    """Of each node, requested and at most."""
    memory: Quantity
    """Of each node, requested and at most, /dev/shm included."""
    shared_memory: Quantity
    """Size of /dev/shm."""
    hours: Annotated[float, Field(gt=0)]
    """After which the training is stopped, time in which it waits for a place included. It can go on later."""
    node_selector: dict[str, str]
    """Labels of the machines to run on."""
    tolerations: tuple[dict[str, str | int], ...]
    """Taints to put up with, as Kubernetes writes them."""
    claim: str
    """PersistentVolumeClaim that is mounted at /volume; many nodes need ReadWriteMany."""
    service_account: str
    """Of the pods that train. It needs no rights."""
    config_map: str
    """Holds MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION; what it lacks is not set."""
    s3_secret: str
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; may be missing."""
    mlflow_secret: str
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; may be missing."""


@dataclass(frozen=True, kw_only=True)
class TrainJobSpec:
    """One training: the same name, the same training."""

    name: str
    settings: TrainJobSettings
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """Of the container; no secrets."""
    lineage: Mapping[str, str]
    """Of the container too: which run asked for the training. It differs between runs that ask for the same one."""


def trainjob_name(*identity: str) -> str:
    """Return the name of a training: the same for the same identity, another for another.

    At most 30 characters long: JobSet appends 17 to it for a pod, and 63 is the end.
    """
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return f"bebygan-train-{digest[:16]}"


def _references(settings: TrainJobSettings) -> Iterator[dict[str, Any]]:
    """Yield the environment that stands in config maps and secrets."""
    found: dict[str, dict[str, tuple[str, ...]]] = {
        "configMapKeyRef": {
            settings.config_map: ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"),
        },
        "secretKeyRef": {
            settings.s3_secret: ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            settings.mlflow_secret: ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
        },
    }
    for kind, sources in found.items():
        for source, names in sources.items():
            for name in names:
                yield {"name": name, "valueFrom": {kind: {"name": source, "key": name, "optional": True}}}


def _body(spec: TrainJobSpec) -> dict[str, Any]:
    settings = spec.settings
    resources: dict[str, str | int] = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus:
        resources[settings.gpu_type] = settings.gpus
    values = {**spec.environment, **spec.lineage}
    environment = [{"name": name, "value": value} for name, value in sorted(values.items())]
    pod: dict[str, Any] = {
        "serviceAccountName": settings.service_account,
        "volumes": [
            {"name": "volume", "persistentVolumeClaim": {"claimName": settings.claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
        ],
    }
    # An empty one would take the place of what the runtime says.
    if settings.node_selector:
        pod["nodeSelector"] = settings.node_selector
    if settings.tolerations:
        pod["tolerations"] = list(settings.tolerations)
    job = {"name": CONTAINER, "template": {"spec": {"template": {"spec": pod}}}}
    return {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": settings.runtime},
        "activeDeadlineSeconds": round(settings.hours * 3600),
        "trainer": {
            "image": settings.image,
            "command": list(spec.command),
            "env": [*environment, *_references(settings)],
            "numNodes": settings.nodes,
            "numProcPerNode": max(1, settings.gpus),
            # Both: where requests are missing, Trainer starts one process whatever is asked for.
            "resourcesPerNode": {"requests": resources, "limits": resources},
        },
        "runtimePatches": [
            {"manager": "bebygan/launcher", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
        ],
    }


def manifest(spec: TrainJobSpec) -> dict[str, Any]:
    """Return the TrainJob as the API server takes it."""
    # Not the lineage: runs that differ in nothing else share a training.
    asked = {**spec.settings.model_dump(mode="json"), "command": spec.command, "environment": dict(spec.environment)}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": spec.name,
            "labels": {"app.kubernetes.io/part-of": "bebygan", "app.kubernetes.io/name": "bebygan-training"},
            "annotations": {ASKED: json.dumps(asked, sort_keys=True)},
        },
        "spec": _body(spec),
    }


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:500]


def _server_says(error: ApiException) -> str:
    try:
        return _one_line(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return _one_line(error.reason)


@dataclass(frozen=True)
class _Api:
    """What is asked of the API server, patiently: a server that is away or busy is asked again."""

    namespace: str
    host: str
    custom: client.CustomObjectsApi = field(repr=False)
    core: client.CoreV1Api = field(repr=False)

    def ask(self, verb: str, resource: str, call: Callable[[], T], seconds: float | None = None) -> T:
        """Return what `call` returns; ask again for so many seconds, by default those of an absence.

        Raises:
            ApiException: not found, or conflict.
            ConfigError: the server refuses what is asked for.
            ServiceError: the server refuses us, is none of Kubernetes, or has not answered in that time.
        """
        seconds = _SECONDS_OF_ABSENCE if seconds is None else seconds
        started, wait, warned = time.monotonic(), 0.5, False
        while True:
            try:
                answer = call()
            except ApiException as error:
                if error.status in (404, 409):
                    raise
                reason = f"{error.status} {_server_says(error)}"
                if error.status not in _BUSY:
                    self.refuse(verb, resource, error)
                    raise ServiceError(self._is_another(reason)) from error
            except (HTTPError, OSError) as error:
                reason = _one_line(error)
            else:
                if isinstance(answer, str):
                    raise ServiceError(self._is_another("a page"))
                return answer
            if time.monotonic() - started + wait > seconds:
                raise ServiceError(
                    f"Kubernetes' API server {self.host} does not answer ({reason}): see that it runs and can be "
                    "reached, then run again; a TrainJob that was started goes on meanwhile"
                )
            if not warned:
                _log.warning("warning: %s does not answer (%s); trying on", self.host, reason)
                warned = True
            time.sleep(wait)
            wait = min(2 * wait, 15.0)

    def _is_another(self, answer: str) -> str:
        return (
            f"{self.host} does not answer as Kubernetes' API server does ({answer}): correct its address in the "
            "kubeconfig"
        )

    def refuse(self, verb: str, resource: str, error: ApiException) -> None:
        """Raise what says what to do about a refusal, if it is one."""
        says = _server_says(error)
        if not error.status:
            # The client's way to tell of TLS.
            raise ServiceError(
                f"{self.host} is not trusted or does not speak TLS ({says}): correct its address, or name the "
                "certificate of its CA in the kubeconfig"
            ) from error
        if error.status == 401:
            raise ServiceError(f"{self.host} does not know us ({says}): renew the token") from error
        if error.status == 403 and "admission webhook" not in says and "exceeded quota" not in says:
            raise ServiceError(
                f"may not {verb} {resource} in namespace {self.namespace}: let a Role of the ServiceAccount allow it "
                f"({says})"
            ) from error
        if error.status in (400, 403, 422):
            raise ConfigError(f"{self.host} refuses to {verb} the TrainJob: {says}") from error

    def create(self, body: Mapping[str, Any], seconds: float | None) -> dict[str, Any] | None:
        """Return the TrainJob, or None when one of this name exists."""
        try:
            made: dict[str, Any] = self.ask(
                "create",
                RESOURCE,
                lambda: self.custom.create_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, body, _request_timeout=(5, 30)
                ),
                seconds,
            )
        except ApiException as error:
            if error.status == 409:
                return None
            raise ServiceError(
                f"{self.host} has no {RESOURCE}/{VERSION} in namespace {self.namespace} ({_server_says(error)}): "
                "install Kubeflow Trainer v2, or correct the namespace"
            ) from error
        return made

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the TrainJob, or None when there is none."""
        try:
            found: dict[str, Any] = self.ask(
                "get",
                RESOURCE,
                lambda: self.custom.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=(5, 30)
                ),
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def delete(self, name: str, uid: str) -> None:
        """Delete this TrainJob, not a newer one of the same name, and wait until it is gone with its pods."""
        options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid), propagation_policy="Foreground")
        try:
            self.ask(
                "delete",
                RESOURCE,
                lambda: self.custom.delete_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, name, body=options, _request_timeout=(5, 30)
                ),
            )
        except ApiException as error:
            if error.status not in (404, 409):
                raise
        started = time.monotonic()
        while (found := self.get(name)) and found["metadata"]["uid"] == uid:
            if time.monotonic() - started > _SECONDS_OF_ABSENCE:
                raise ServiceError(f"TrainJob {self.namespace}/{name} does not go away: see what holds its pods")
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def states(self, name: str) -> Iterator[dict[str, Any] | None]:
        """Yield the TrainJob now and after each change, for ever; None when there is none."""
        while True:
            found = self.get(name)
            yield found
            if found is not None:
                yield from self._changes(name, found["metadata"]["resourceVersion"])
            # Where watching does not work at all, looking does.
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _changes(self, name: str, since: str) -> Iterator[dict[str, Any] | None]:
        """Yield changes until the server or the line ends the watch; what was missed, a look will tell."""
        try:
            for event in watch.Watch().stream(
                self.custom.list_namespaced_custom_object,
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                field_selector=f"metadata.name={name}",
                resource_version=since,
                timeout_seconds=_SECONDS_OF_WATCHING,
                _request_timeout=(5, _SECONDS_OF_WATCHING + 30),
            ):
                yield None if event["type"] == "DELETED" else event["object"]
        except ApiException as error:
            self.refuse("watch", RESOURCE, error)
        except (HTTPError, OSError, ValueError):
            return

    def pods(self, name: str) -> list[client.V1Pod]:
        """Return a TrainJob's pods, the oldest first."""
        labels = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={CONTAINER}"
        found = self.ask(
            "list",
            "pods",
            lambda: self.core.list_namespaced_pod(self.namespace, label_selector=labels, _request_timeout=(5, 30)),
        )
        return sorted(found.items, key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name))

    def log(self, pod: str, since: datetime | None, *, follow: bool, last: int | None = None) -> Iterator[str]:
        """Yield the lines of a pod's log, or the last ones, each after its time, until the log or the line ends.

        Raises:
            ApiException: the pod is gone, or has not started.
            HTTPError, OSError: the line broke.
        """
        query = [("container", CONTAINER), ("timestamps", "true"), ("follow", str(follow).lower())]
        if since is not None:
            # The generated method knows only how many seconds ago, by a clock that need not be the node's.
            query.append(("sinceTime", since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
        if last is not None:
            query.append(("tailLines", str(last)))
        answer, *_ = self.core.api_client.call_api(
            f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log",
            "GET",
            query_params=query,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=(5, _SECONDS_OF_SILENCE),
        )
        rest = b""
        try:
            for piece in answer.stream(amt=None, decode_content=False):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
        finally:
            answer.close()
        # Where a followed log ends in mid-line, the line will come again; one that broke does not get here.
        if rest and not follow:
            yield rest.decode(errors="replace")


def _connect(namespace: str | None) -> _Api:
    """Find the cluster: that of the pod we run in, else that of the kubeconfig."""
    settings = client.Configuration()
    # The library would keep what the variable said when it was imported.
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
            f"no cluster to train on: this is no pod, and the kubeconfig cannot be used ({_one_line(error)}); "
            "set KUBECONFIG"
        ) from error
    # Ours: urllib3 would try a dead address three times before it says so.
    settings.retries = False
    connection = client.ApiClient(settings)
    return _Api(
        namespace or own or "default", settings.host, client.CustomObjectsApi(connection), client.CoreV1Api(connection)
    )


def _ending(trainjob: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Return the condition with which a TrainJob ended, or None while it has not."""
    conditions = trainjob.get("status", {}).get("conditions", ())
    ended = [each for each in conditions if each["type"] in ("Complete", "Failed") and each["status"] == "True"]
    return ended[0] if ended else None


def _time_of(line: str) -> datetime | None:
    """Return when a line of a log was written; a node's own complaints have no time."""
    try:
        return datetime.fromisoformat(line.partition(" ")[0])
    except ValueError:
        return None


def _start(api: _Api, spec: TrainJobSpec, log: Callable[[str], None]) -> str:
    """Create the TrainJob, or find the one that runs; return its uid."""
    body = manifest(spec)
    named = f"TrainJob {api.namespace}/{spec.name}"
    seconds: float | None = _SECONDS_TO_ANSWER
    while True:
        if made := api.create(body, seconds):
            log(f"{named} started; kubectl -n {api.namespace} delete trainjob {spec.name} would end it")
            return str(made["metadata"]["uid"])
        seconds = None
        found = api.get(spec.name)
        if found is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            continue
        uid = str(found["metadata"]["uid"])
        ended = _ending(found)
        if ended or "deletionTimestamp" in found["metadata"]:
            how = f"ended ({ended['reason']}: {_one_line(ended['message'])})" if ended else "is being deleted"
            log(f"an earlier {named} {how}; starting it again")
            api.delete(spec.name, uid)
            continue
        asked, exists = (each["metadata"].get("annotations", {}).get(ASKED) for each in (body, found))
        if exists is None:
            raise ConfigError(f"{named} exists and is not of this pipeline: delete it, or choose another namespace")
        if asked != exists:
            running, wanted = (dict(flatten(json.loads(text))) for text in (exists, asked))
            changed = ", ".join(differences(running, wanted))
            raise ConfigError(
                f"{named} trains the same already, otherwise: {changed}; wait for its end, or end "
                f"it with kubectl -n {api.namespace} delete trainjob {spec.name}"
            )
        log(f"{named} runs already; going on with it")
        return uid


@dataclass
class _Read:
    """How far a pod's log was read."""

    newest: datetime | None = None
    recent: Counter[tuple[datetime, str]] = field(default_factory=Counter)
    """Lines that will come again when the log is asked for again."""

    def since(self) -> datetime | None:
        """From which time on to ask again."""
        return self.newest - timedelta(seconds=_SECONDS_READ_AGAIN) if self.newest else None

    def add(self, when: datetime, text: str) -> None:
        """Remember a line, and once a second forget those that are too old to come again."""
        if self.newest is None or when >= self.newest + timedelta(seconds=1):
            oldest = when - timedelta(seconds=_SECONDS_READ_AGAIN + 2)
            self.recent = Counter({line: count for line, count in self.recent.items() if line[0] >= oldest})
        self.newest = max(self.newest or when, when)
        self.recent[when, text] += 1


def _copy_log(api: _Api, pod: str, read: _Read, log: Callable[[str], None], *, follow: bool) -> bool:
    """Hand on the lines of a pod's log that were not yet; return whether its end was reached."""
    again = Counter(read.recent)
    try:
        for line in api.log(pod, read.since(), follow=follow):
            when, text = _time_of(line), line.partition(" ")[2]
            if when is None:
                log(line)
            elif again[when, text]:
                again[when, text] -= 1
            else:
                read.add(when, text)
                log(text)
    except (HTTPError, OSError):
        return False
    except ApiException as error:
        if error.status in (401, 403):
            api.refuse("get", "pods/log", error)
        return bool(error.status == 404)
    return True


def _trouble(pod: client.V1Pod) -> str | None:
    """Say why a pod does not start, if it says so itself."""
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"finds no place ({condition.reason}: {_one_line(condition.message)})"
    for status in pod.status.container_statuses or ():
        waiting = status.state and status.state.waiting
        if waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return f"does not start ({waiting.reason}: {_one_line(waiting.message)})"
    return None


def _follow(api: _Api, name: str, log: Callable[[str], None], ended: threading.Event) -> None:
    """Hand on the log of node 0, of one pod after the other, until the TrainJob has ended and all was read.

    Say of the pods of all nodes why they do not start: the others wait for them.
    """
    reads: dict[str, _Read] = {}
    done: set[str] = set()
    told: dict[str, str] = {}
    tries, started = _TRIES_AT_THE_END, time.monotonic()
    while tries:
        # Before the look: what ended by now has written all that it will.
        last = ended.is_set()
        unread = False
        pods = api.pods(name)
        if not pods and time.monotonic() - started > _SECONDS_WITHOUT_A_POD and not told:
            told[name] = f"no pod yet: kubectl -n {api.namespace} describe trainjob,jobset {name} says why"
            log(told[name])
        for pod in pods:
            key, pod_name, phase = pod.metadata.uid, pod.metadata.name, pod.status.phase
            if key in done:
                continue
            if phase == "Pending":
                trouble = _trouble(pod)
                if trouble and told.get(key) != trouble:
                    log(f"pod {pod_name} {trouble}")
                    told[key] = trouble
                continue
            if pod.metadata.labels[_INDEX] != "0":
                continue
            finished = phase in ("Succeeded", "Failed")
            if key not in reads:
                log(f"log of pod {pod_name}:")
            whole = _copy_log(api, pod_name, reads.setdefault(key, _Read()), log, follow=not finished and not last)
            if whole and finished:
                done.add(key)
            unread = unread or not whole
        if last and not unread:
            return
        tries -= last
        time.sleep(_SECONDS_BETWEEN_LOOKS) if last else ended.wait(_SECONDS_BETWEEN_LOOKS)


@contextmanager
def _log_of_node_zero(api: _Api, name: str, log: Callable[[str], None]) -> Iterator[None]:
    """Hand on the log of node 0 while the body waits, and what is left of it after."""
    ended = threading.Event()

    def follow() -> None:
        try:
            _follow(api, name, log, ended)
        except (BebyganError, ApiException) as error:
            # Training goes on without a word of it; that is better than none.
            log(f"the log cannot be shown: {_one_line(error)}")

    # A thread that hangs on a dead line must not keep the process.
    reader = threading.Thread(target=follow, name="log of node 0", daemon=True)
    reader.start()
    yield
    ended.set()
    reader.join(2 * _SECONDS_OF_SILENCE)


def _wait(api: _Api, name: str, uid: str, log: Callable[[str], None]) -> Mapping[str, str]:
    """Return the condition with which the TrainJob ended."""
    suspended = False
    for found in api.states(name):
        if found is None or found["metadata"]["uid"] != uid:
            raise ServiceError(f"somebody deleted TrainJob {api.namespace}/{name}: run again; it goes on where it was")
        if ended := _ending(found):
            return ended
        before, suspended = suspended, bool(found["spec"].get("suspend"))
        if suspended and not before:
            log(f"TrainJob {api.namespace}/{name} is suspended: it waits in a queue")
    raise AssertionError("states never end")


def _failed_container(pods: list[client.V1Pod]) -> tuple[str, int, str] | None:
    """Return pod, exit code and reason of the container that failed first, and not as the echo of another."""
    failed = [
        (end.exit_code in _ECHOES, end.finished_at, pod.metadata.name, end.exit_code, end.reason or "Error")
        for pod in pods
        for status in pod.status.container_statuses or ()
        # Of one that was lost with its machine only that is known: 137 is made up, and there is no time.
        if status.name == CONTAINER and (end := status.state and status.state.terminated) and end.exit_code
        if end.finished_at
    ]
    return min(failed)[2:] if failed else None


def _last_words(api: _Api, pod: str) -> str:
    """Return the error line of a pod's log, or its last line."""
    try:
        lines = [line.partition(" ")[2] for line in api.log(pod, None, follow=False, last=_LAST_LINES)]
    except (ApiException, HTTPError, OSError) as error:
        return f"its log cannot be read ({_one_line(error)})"
    said = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()] or [""]
    return _one_line(said[-1].removeprefix("error: "))


def _failure(api: _Api, name: str, ended: Mapping[str, str]) -> Exception:
    """Return what a failed TrainJob means, with what the container that failed said last."""
    hint = f"kubectl -n {api.namespace} describe trainjob {name}"
    what = f"TrainJob {api.namespace}/{name} failed ({ended['reason']}: {_one_line(ended['message'])})"
    if ended["reason"] == "DeadlineExceeded":
        return ConfigError(f"{what}: it took longer than its hours; allow more and run again, it goes on where it was")
    container = _failed_container(api.pods(name))
    if container is None:
        return ServiceError(f"{what}; {hint} says more")
    pod, code, reason = container
    what = f"{what}; pod {pod} ended with exit code {code}: {_last_words(api, pod)}; {hint} says more"
    if reason == "OOMKilled" or code == _OUT_OF_MEMORY:
        return ConfigError(f"{what}; it took more memory than it may: allow more, or lower train.batch")
    kinds = {kind.exit_code: kind for kind in BebyganError.__subclasses__()}
    return kinds[code](what) if code in kinds else RuntimeError(what)


def run_trainjob(spec: TrainJobSpec, log: Callable[[str], None]) -> None:
    """Run a training on other machines to its end.

    A TrainJob of this name that runs is gone on with. One that has ended is deleted and started again: look for its
    result first. Its training goes on from its checkpoints.

    Args:
        spec: what to run.
        log: is given what happens, and each line of node 0's log once, in order, from whatever thread.

    Raises:
        Preempted: this process was asked to stop; the TrainJob runs on.
        ServiceError: the API server refuses or is away, or the TrainJob was deleted.
        ConfigError: there is no cluster, the server refuses what is asked for, the same training runs with other
            settings, or the training took longer or more memory than it may.
        BebyganError: the one with whose exit code the training ended.
        RuntimeError: the training met a bug; its traceback is in the log.
    """
    api = _connect(spec.settings.namespace)
    with stoppable(f"stopped on request; TrainJob {spec.name} goes on, and running again goes on with it"):
        uid = _start(api, spec, log)
        with _log_of_node_zero(api, spec.name, log):
            ended = _wait(api, spec.name, uid, log)
        if ended["type"] == "Failed":
            raise _failure(api, spec.name, ended)
    log(f"TrainJob {api.namespace}/{spec.name} is complete")
