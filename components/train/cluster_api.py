"""Requests to the Kubernetes API server about one TrainJob and its pods, repeated while it is unreachable or busy.

After a start, the server answers 403 until it has loaded its RBAC rules: a request that was allowed before is repeated
for `Patience.refusal` seconds.

Required permissions, all in one namespace: create, get, watch and delete trainjobs.trainer.kubeflow.org, list and get
pods, get pods/log.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from kubernetes import client, watch  # type: ignore[import-untyped]
from kubernetes.client.exceptions import ApiException  # type: ignore[import-untyped]
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_exponential
from urllib3.exceptions import HTTPError

from bebygan.errors import ConfigError, ServiceError
from components.train.trainjob import CONTAINER, GROUP, PLURAL, VERSION

RESOURCE = f"{PLURAL}.{GROUP}"
_TIMEOUT = (5, 30)
"""Seconds to connect and to answer."""
_BUSY = {408, 429, 500, 502, 503, 504}
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds."""

    first_answer: float = 30.0
    """Until the first answer: a wrong address fails soon."""
    absence: float = 1800.0
    """For a server that has answered before and is unreachable."""
    refusal: float = 60.0
    """For a server that answers 403 to a request that it has allowed before."""
    between_looks: float = 2.0
    first_pod: float = 120.0
    """Before a hint about a missing first pod."""
    watching: int = 240
    """Duration of one watch."""
    silence: float = 60.0
    """A log without a new line for this long is requested again: its connection may be dead."""


PATIENCE = Patience()


class _Unreachable(Exception):  # noqa: N818 - the reason for a retry
    """The server is unreachable, is busy, or is loading its rules."""


def one_line(text: object) -> str:
    """Return a text without line breaks, at most 500 characters."""
    return " ".join(str(text).split())[:500]


def _message(error: ApiException) -> str:
    try:
        return one_line(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return one_line(error.reason)


def _by_rbac(error: ApiException) -> bool:
    """Return whether missing permissions are the reason, not an admission webhook or a quota."""
    message = _message(error)
    return bool(error.status == 403) and "admission webhook" not in message and "exceeded quota" not in message


@dataclass(frozen=True)
class ClusterApi:
    """The API server, for one namespace."""

    namespace: str
    host: str
    connection: client.ApiClient = field(repr=False)
    patience: Patience
    _allowed: set[str] = field(default_factory=set)
    """Kinds of requests that have succeeded."""
    _refused: dict[str, float] = field(default_factory=dict)
    """Since when the server refuses a kind of request."""

    def ask(self, kind: str, call: Callable[[], T]) -> T:
        """Return the result of `call`, repeated while the server is unreachable.

        Args:
            kind: verb and resource, such as "list pods".
            call: sends one request.

        Raises:
            ApiException: not found, conflict, or a pod that has not started.
            ConfigError: the server rejects the TrainJob.
            ServiceError: the request is not permitted, the host is not a Kubernetes API server, or it does not answer.
        """

        def attempt() -> T:
            try:
                answer = call()
            except ApiException as error:
                if error.status in (404, 409) or (error.status == 400 and "pods/log" in kind):
                    self.allow(kind)
                    raise
                if self.passing(kind, error):
                    raise _Unreachable(f"{error.status} {_message(error)}") from error
                raise self._fault(kind, error) from error
            except (HTTPError, OSError) as error:
                raise _Unreachable(one_line(error)) from error
            if isinstance(answer, str):
                raise self._no_kubernetes("a page")
            self.allow(kind)
            return answer

        def warn(state: RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome:
                _log.warning("warning: %s does not answer (%s); trying again", self.host, state.outcome.exception())

        retrying = Retrying(
            retry=retry_if_exception_type(_Unreachable),
            stop=stop_before_delay(self.patience.absence if self._allowed else self.patience.first_answer),
            wait=wait_exponential(0.5, max=15),
            before_sleep=warn,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except _Unreachable as error:
            raise ServiceError(
                f"Kubernetes' API server {self.host} does not answer ({error}): check that it runs and is reachable, "
                "then run again; a TrainJob that was started keeps running"
            ) from error

    def allow(self, kind: str) -> None:
        """Record that the server allows a kind of request."""
        self._allowed.add(kind)
        self._refused.pop(kind, None)

    def passing(self, kind: str, error: ApiException) -> bool:
        """Return whether a later request of this kind may succeed."""
        if not _by_rbac(error):
            return error.status in _BUSY
        since = self._refused.setdefault(kind, time.monotonic())
        return kind in self._allowed and time.monotonic() - since < self.patience.refusal

    def _no_kubernetes(self, answer: str) -> ServiceError:
        return ServiceError(
            f"{self.host} is no Kubernetes API server (it answers {answer}): correct its address in the kubeconfig"
        )

    def _fault(self, kind: str, error: ApiException) -> Exception:
        """Return the error that explains an answer."""
        message = _message(error)
        if not error.status:
            # The client reports TLS errors without a status.
            return ServiceError(
                f"{self.host} is not trusted or does not speak TLS ({message}): correct its address, or name the "
                "certificate of its CA in the kubeconfig"
            )
        if error.status == 401:
            return ServiceError(f"{self.host} does not accept our token ({message}): renew it")
        if _by_rbac(error):
            return ServiceError(
                f"may not {kind} in namespace {self.namespace}: let a Role of the ServiceAccount allow it ({message})"
            )
        if error.status in (400, 403, 422):
            return ConfigError(f"{self.host} refuses to {kind.partition(' ')[0]} the TrainJob: {message}")
        return self._no_kubernetes(f"{error.status} {message}")

    def _trainjob(self, verb: str, *arguments: object, none_for: set[int], **options: object) -> dict[str, Any] | None:
        """Return the TrainJob of the answer, or None for a status in `none_for`."""
        method = getattr(client.CustomObjectsApi(self.connection), f"{verb}_namespaced_custom_object")
        place = (GROUP, VERSION, self.namespace, PLURAL)
        try:
            found: dict[str, Any] = self.ask(
                f"{verb} {RESOURCE}", lambda: method(*place, *arguments, **options, _request_timeout=_TIMEOUT)
            )
        except ApiException as error:
            if error.status in none_for:
                return None
            raise ServiceError(
                f"{self.host} has no {RESOURCE}/{VERSION} in namespace {self.namespace} ({_message(error)}): "
                "install Kubeflow Trainer v2, or correct the namespace"
            ) from error
        return found

    def create(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the created TrainJob, or None if one of this name exists."""
        return self._trainjob("create", body, none_for={409})

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the TrainJob, or None if there is none."""
        return self._trainjob("get", name, none_for={404})

    def delete(self, name: str, uid: str) -> None:
        """Delete the TrainJob with this uid and wait until it and its pods are gone."""
        options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid), propagation_policy="Foreground")
        self._trainjob("delete", name, body=options, none_for={404, 409})
        started = time.monotonic()
        while (found := self.get(name)) and found["metadata"]["uid"] == uid:
            if time.monotonic() - started > self.patience.absence:
                raise ServiceError(f"TrainJob {self.namespace}/{name} is not deleted: find what keeps its pods")
            time.sleep(self.patience.between_looks)

    def states(self, name: str) -> Iterator[dict[str, Any] | None]:
        """Yield the TrainJob, or None while it does not exist, now and after each change, without end."""
        while True:
            found = self.get(name)
            yield found
            if found is not None:
                yield from self._changes(name)
            time.sleep(self.patience.between_looks)

    def _changes(self, name: str) -> Iterator[dict[str, Any] | None]:
        """Yield the TrainJob and its changes until the watch ends; `states` finds what this misses."""
        kind = f"watch {RESOURCE}"
        try:
            # Without a resource version, which may be too old for the server, the watch starts with the current state.
            for event in watch.Watch().stream(
                client.CustomObjectsApi(self.connection).list_namespaced_custom_object,
                *(GROUP, VERSION, self.namespace, PLURAL),
                field_selector=f"metadata.name={name}",
                timeout_seconds=self.patience.watching,
                _request_timeout=(5, self.patience.watching + 30),
            ):
                self.allow(kind)
                yield None if event["type"] == "DELETED" else event["object"]
        except ApiException as error:
            if error.status in (0, 400, 401, 403, 422) and not self.passing(kind, error):
                raise self._fault(kind, error) from error
        except (HTTPError, OSError, ValueError):
            return

    def pods(self, name: str) -> list[client.V1Pod]:
        """Return the pods of a TrainJob, the oldest first."""
        labels = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={CONTAINER}"
        core = client.CoreV1Api(self.connection)
        found = self.ask(
            "list pods",
            lambda: core.list_namespaced_pod(self.namespace, label_selector=labels, _request_timeout=_TIMEOUT),
        )
        return sorted(found.items, key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name))

    def log(self, pod: str, since: datetime | None, *, follow: bool, last: int | None = None) -> Iterator[str]:
        """Yield the lines of a pod's log, each with its time in front, until the log ends or the connection breaks.

        Args:
            pod: its name.
            since: skip older lines.
            follow: wait for new lines.
            last: yield only this number of lines at the end.

        Raises:
            ApiException: the pod is gone, or has not started.
            ServiceError: see `ask`.
            HTTPError, OSError: the connection broke.
        """
        query = [("container", CONTAINER), ("timestamps", "true"), ("follow", str(follow).lower())]
        if since is not None:
            # The generated method accepts only an age in seconds, which depends on the clock of the node.
            query.append(("sinceTime", since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
        if last is not None:
            query.append(("tailLines", str(last)))
        answer, *_ = self.ask(
            "get pods/log",
            lambda: self.connection.call_api(
                f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log",
                "GET",
                query_params=query,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=(5, self.patience.silence),
            ),
        )
        rest = b""
        try:
            for piece in answer.stream(amt=None, decode_content=False):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
        finally:
            answer.close()
        # The caller requests a followed log again if it ends in the middle of a line.
        if rest and not follow:
            yield rest.decode(errors="replace")
