"""Client of the Kubeflow Pipelines API for schedules and runs.

KFP_HOST names the server (else KF_PIPELINES_ENDPOINT, else its address in a cluster). The token is KFP_TOKEN, or the
content of the file that KF_PIPELINES_SA_TOKEN_PATH names, which Kubernetes renews. KFP_NAMESPACE is your profile on a
server with several users; a pod reads it from its own namespace. SSL_CERT_FILE is the server's certificate authority if
it is your own.

This uses `kfp_server_api`, the generated client below kfp's, because kfp's own client sets no time limit for a request.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import kfp_server_api as api  # type: ignore[import-untyped]
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_before_delay, wait_exponential
from urllib3.exceptions import HTTPError

from bebygan.errors import ConfigError, ServiceError
from pipelines.kubeflow.requests import CompiledPipeline, DeclaredSchedule, RunRequest

INSIDE_A_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""File with the name of a pod's own namespace."""
RUN_LABEL = "pipeline/runid"
"""Label with which Kubeflow marks every pod of a run."""
TASK_LABEL = "bebygan/task"
"""Label of the pod that does a task's work; its value is the task's name."""
_TOKEN_FILE = Path("/var/run/secrets/kubeflow/pipelines/token")
_ALIVE = ("RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "CANCELING", "PAUSED")
_PAGE = 200
"""The largest page that a server returns."""
_ADVICE = {
    400: "correct what it names",
    401: "the token is missing, unknown or expired: renew KFP_TOKEN or the file in KF_PIPELINES_SA_TOKEN_PATH",
    403: "allow this account to do that in this namespace, or choose another namespace by KFP_NAMESPACE",
    404: "it does not exist (any more); check the names, KFP_HOST and KFP_NAMESPACE",
    409: "the name is taken; choose another name",
    429: "the server is busy; try again later",
}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Time limits and intervals, in seconds."""

    request: float = 58.0
    """Limit of one request with all its attempts."""
    pause: float = 1.0
    """From the first to the second of five attempts if the server is busy; doubles with each attempt."""
    poll: float = 10.0
    """Interval at which a run is watched."""
    outage: float = 600.0
    """Limit of an outage while a run is watched, as when the server is upgraded or moves to another node."""


@dataclass(frozen=True, kw_only=True)
class RecurringRun:
    """A recurring run on the server. It can only be enabled, disabled and deleted."""

    id: str
    name: str
    description: str
    enabled: bool
    created_at: datetime
    """In whole seconds, so two recurring runs can have the same time."""
    trigger: str
    """Cron expression, or "every N s"."""
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A task of a run, or a node that Kubeflow adds."""

    name: str
    state: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a pipeline."""

    id: str
    name: str
    state: str
    error: str
    created_at: datetime
    tasks: tuple[Task, ...]

    @property
    def alive(self) -> bool:
        """Whether the run has not ended."""
        return self.state in _ALIVE


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def _message(error: api.ApiException) -> str:
    """Return the server's message, else its whole answer."""
    try:
        return _one_line(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return _one_line(error.body or error.reason)


def reason_of(error: BaseException) -> str:
    """Return the operating system's reason for a failed connection, else the error's message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, OSError) and (cause.strerror or isinstance(cause, ConnectionError)):
            return _one_line(cause.strerror or cause)
        # urllib3 keeps some causes among the arguments.
        inner = next((each for each in cause.args if isinstance(each, BaseException)), None)
        cause = cause.__cause__ or cause.__context__ or inner
    return _one_line(error)


def _cause_and_advice(error: Exception) -> str:
    if isinstance(error, api.ApiException):
        advice = _ADVICE.get(error.status, "see the log of its deployment ml-pipeline and try again")
        return f"({error.status} {_message(error)}): {advice}"
    cause = reason_of(error)
    if "certificate" in cause.lower():
        return f"({cause}): its certificate is not trusted: name its authority by SSL_CERT_FILE"
    return f"({cause}): check that it runs and is reachable, or correct KFP_HOST"


def status_of(error: BaseException) -> int:
    """Return the HTTP status behind an error, or 0 for an error without an answer."""
    return int(getattr(error.__cause__, "status", 0) or 0)


def _filter(**equals: str | tuple[str, ...]) -> str:
    """Return a filter in the API's language; a tuple matches any of its members."""
    predicates = [
        {"operation": "IN", "key": key, "string_values": {"values": value}}
        if isinstance(value, tuple)
        else {"operation": "EQUALS", "key": key, "string_value": value}
        for key, value in equals.items()
    ]
    return json.dumps({"predicates": predicates}) if predicates else ""


def _parse_recurring_run(found: Any) -> RecurringRun:
    trigger = found.trigger or api.V2beta1Trigger()
    cron, periodic = trigger.cron_schedule, trigger.periodic_schedule
    return RecurringRun(
        id=found.recurring_run_id,
        name=found.display_name,
        description=found.description or "",
        enabled=found.mode == "ENABLE",
        created_at=found.created_at,
        trigger=cron.cron if cron else f"every {periodic and periodic.interval_second} s",
        parameters=(found.runtime_config and found.runtime_config.parameters) or {},
    )


def _parse_run(found: Any) -> Run:
    def error(part: Any) -> str:
        return _one_line((part.error and part.error.message) or "")

    return Run(
        id=found.run_id,
        name=found.display_name,
        state=found.state or _ALIVE[0],
        error=error(found),
        created_at=found.created_at,
        tasks=tuple(
            Task(task.display_name or "", task.state or _ALIVE[0], error(task))
            for task in (found.run_details and found.run_details.task_details) or ()
        ),
    )


class Kubeflow:
    """A namespace on a server of Kubeflow Pipelines. Every method raises ServiceError with a message of one line."""

    def __init__(self, connection: api.ApiClient, patience: Patience) -> None:
        self.host: str = connection.configuration.host
        self.patience = patience
        self._connection = connection
        self._schedules = api.RecurringRunServiceApi(connection)
        self._run_service = api.RunServiceApi(connection)
        self._ids: dict[tuple[str, ...], str] = {}
        self.namespace = self._own_namespace()

    def _own_namespace(self) -> str:
        health = self._ask("the health check", api.HealthzServiceApi(self._connection).healthz_service_get_healthz)
        if not health.multi_user:
            return ""
        if namespace := os.environ.get("KFP_NAMESPACE"):
            return namespace
        if NAMESPACE_FILE.is_file():
            return NAMESPACE_FILE.read_text().strip()
        raise ConfigError(f"Kubeflow's {self.host} has several users: set KFP_NAMESPACE to your profile")

    def _ask(self, doing: str, call: Callable[..., Any], *arguments: Any, repeatable: bool = True, **named: Any) -> Any:
        """Call the API, again if the server is busy. Repeat a request that is not repeatable only after status 429."""
        busy = (429, 500, 502, 503, 504) if repeatable else (429,)
        started = time.monotonic()

        def attempt() -> Any:
            # urllib3 makes four attempts to connect, and four attempts at a repeatable request.
            left = max(self.patience.request - (time.monotonic() - started), 1.0)
            timeout = (left / 16, left * (3 / 16 if repeatable else 3 / 4))
            return call(*arguments, _request_timeout=timeout, **named)

        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, api.ApiException) and error.status in busy),
            wait=wait_exponential(self.patience.pause),
            stop=stop_after_attempt(5) | stop_before_delay(self.patience.request),
            reraise=True,
        )
        try:
            answer = retrying(attempt)
        except (api.ApiException, HTTPError, OSError) as error:
            raise ServiceError(f"{doing} failed at Kubeflow's {self.host} {_cause_and_advice(error)}") from error
        if "json" not in self._connection.last_response.getheader("Content-Type", ""):
            raise ServiceError(
                f"{doing} failed at Kubeflow's {self.host} (the answer is not from Kubeflow Pipelines, perhaps a "
                "login page): correct KFP_HOST, or set KFP_TOKEN"
            )
        return answer

    def _pages(self, doing: str, call: Callable[..., Any], field: str, **named: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = self._ask(doing, call, page_size=_PAGE, page_token=token, **named)
            yield from getattr(page, field) or ()
            token = page.next_page_token or ""
            if not token:
                return

    def _ensure(self, kind: str, name: str, find: Callable[..., Any], create: Callable[..., Any]) -> str:
        """Return the id of the object with this name. Create it if neither we nor another client has."""
        text, id_ = kind.replace("_", " "), f"{kind}_id"

        def found() -> str | None:
            pages = self._pages(f"listing the {text}s", find, f"{kind}s", filter=_filter(display_name=name))
            return next((getattr(each, id_) for each in pages if each.display_name == name), None)

        id_of = self._ids.get((kind, name)) or found()
        if not id_of:
            try:
                id_of = str(getattr(self._ask(f"creating the {text} {name}", create, repeatable=False), id_))
            except ServiceError as error:
                # The server answers 500 to an upload whose name is taken.
                if status_of(error) not in (409, 500) or not (id_of := found()):
                    raise
        self._ids[kind, name] = id_of
        return id_of

    def experiment(self, name: str) -> str:
        """Return the id of an experiment; create it if it does not exist."""
        service = api.ExperimentServiceApi(self._connection)
        body = api.V2beta1Experiment(display_name=name, namespace=self.namespace or None)
        find = partial(service.experiment_service_list_experiments, namespace=self.namespace)
        return self._ensure("experiment", name, find, partial(service.experiment_service_create_experiment, body))

    def upload(self, pipeline: CompiledPipeline) -> tuple[str, str]:
        """Return the ids of a pipeline and of its version; create them if they do not exist."""
        service, name = api.PipelineServiceApi(self._connection), pipeline.name
        body = api.V2beta1Pipeline(name=name, display_name=name, namespace=self.namespace or None)
        find = partial(service.pipeline_service_list_pipelines, namespace=self.namespace)
        pipeline_id = self._ensure("pipeline", name, find, partial(service.pipeline_service_create_pipeline, body))
        find = partial(service.pipeline_service_list_pipeline_versions, pipeline_id)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pipeline.yaml"
            file.write_bytes(pipeline.content)
            upload = api.PipelineUploadServiceApi(self._connection).upload_pipeline_version
            create = partial(upload, str(file), name=pipeline.version, pipelineid=pipeline_id)
            return pipeline_id, self._ensure("pipeline_version", pipeline.version, find, create)

    def _fields(self, request: RunRequest, description: str) -> dict[str, Any]:
        """Return the fields that runs and recurring runs have in common."""
        pipeline_id, version_id = self.upload(request.pipeline)
        return {
            "display_name": request.name,
            "description": description,
            "experiment_id": self.experiment(request.experiment),
            "pipeline_version_reference": api.V2beta1PipelineVersionReference(
                pipeline_id=pipeline_id, pipeline_version_id=version_id
            ),
            "runtime_config": api.V2beta1RuntimeConfig(parameters=dict(request.parameters)),
            "service_account": request.service_account,
        }

    def recurring_runs(self) -> list[RecurringRun]:
        """Return all recurring runs of the namespace."""
        call = self._schedules.recurring_run_service_list_recurring_runs
        found = self._pages("listing the schedules", call, "recurring_runs", namespace=self.namespace)
        return [_parse_recurring_run(each) for each in found]

    def create_recurring_run(self, schedule: DeclaredSchedule, description: str) -> str:
        """Create a recurring run, disabled, and return its id."""
        cron, interval = schedule.cron, schedule.interval
        body = api.V2beta1RecurringRun(
            **self._fields(schedule, description),
            namespace=self.namespace or None,
            mode="DISABLE",
            trigger=api.V2beta1Trigger(
                cron_schedule=api.V2beta1CronSchedule(cron=cron) if cron else None,
                periodic_schedule=api.V2beta1PeriodicSchedule(interval_second=str(interval)) if interval else None,
            ),
            max_concurrency=str(schedule.concurrency),
            no_catchup=not schedule.catchup,
        )
        return self._create_recurring_run(body)

    def _create_recurring_run(self, body: Any) -> str:
        create = self._schedules.recurring_run_service_create_recurring_run
        made = self._ask(f"creating the schedule {body.display_name}", create, body, repeatable=False)
        return str(made.recurring_run_id)

    def copy_recurring_run(self, recurring_run: str, description: str) -> str:
        """Create a disabled copy of a recurring run with another description, and return its id."""
        body = self._ask("reading a schedule", self._schedules.recurring_run_service_get_recurring_run, recurring_run)
        body.description, body.mode = description, "DISABLE"
        for field in ("recurring_run_id", "created_at", "updated_at", "status", "error"):
            setattr(body, field, None)
        return self._create_recurring_run(body)

    def change(self, kind: Literal["enable", "disable", "delete"], recurring_run: str) -> None:
        """Enable, disable or delete a recurring run if it exists; its active runs continue.

        An older server kills the active runs of a recurring run when it deletes it: check `alive_runs` first.
        """
        call = getattr(self._schedules, f"recurring_run_service_{kind}_recurring_run")
        options = {"propagation_policy": "ORPHAN"} if kind == "delete" else {}
        try:
            self._ask(f"{kind[:-1]}ing a schedule", call, recurring_run, repeatable=kind == "delete", **options)
        except ServiceError as error:
            if status_of(error) != 404:
                raise

    def runs(self, **equals: str | tuple[str, ...]) -> Iterator[Run]:
        """Yield the namespace's runs whose fields have these values, or one value of a tuple; newest first."""
        call = self._run_service.run_service_list_runs
        named = {"namespace": self.namespace, "sort_by": "created_at desc", "filter": _filter(**equals)}
        return map(_parse_run, self._pages("listing the runs", call, "runs", **named))

    def alive_runs(self, recurring_run: str) -> list[Run]:
        """Return the active runs of a recurring run."""
        return list(self.runs(recurring_run_id=recurring_run, state=_ALIVE))

    def create_run(self, request: RunRequest, description: str) -> str:
        """Start a run and return its id."""
        body = api.V2beta1Run(**self._fields(request, description))
        call = self._run_service.run_service_create_run
        return str(self._ask(f"starting {request.name}", call, body, repeatable=False).run_id)

    def run(self, run: str) -> Run:
        """Return a run with its tasks."""
        return _parse_run(self._ask(f"reading the run {run}", self._run_service.run_service_get_run, run))

    def page(self, run: str) -> str:
        """Return the address of a run's web page, below BEBYGAN_CONSOLE if that is set."""
        return f"{os.environ.get('BEBYGAN_CONSOLE') or self.host}/#/runs/details/{run}"


def connect(patience: Patience = Patience()) -> Kubeflow:
    """Connect to the server that the environment names.

    Raises:
        ConfigError: KFP_NAMESPACE is not set and the server has several users, or a file in a variable does not exist.
        ServiceError: the server is unreachable or rejects the request.
    """
    host = os.environ.get("KFP_HOST") or os.environ.get("KF_PIPELINES_ENDPOINT") or INSIDE_A_CLUSTER
    token, authority = os.environ.get("KFP_TOKEN"), os.environ.get("SSL_CERT_FILE")
    file = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") or _TOKEN_FILE)
    if not token and "KF_PIPELINES_SA_TOKEN_PATH" in os.environ and not file.is_file():
        raise ConfigError(f"there is no token in {file}, which KF_PIPELINES_SA_TOKEN_PATH names")
    if authority and not Path(authority).is_file():
        raise ConfigError(f"there is no certificate in {authority}, which SSL_CERT_FILE names")
    # urllib3 warns about each failed attempt; we report only the last one.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    settings = api.Configuration(host=(host if "://" in host else f"https://{host}").rstrip("/"))
    settings.ssl_ca_cert = authority
    if token or file.is_file():

        def renew(settings: Any) -> None:
            settings.api_key["authorization"] = token or file.read_text().strip()

        renew(settings)
        settings.api_key_prefix["authorization"] = "Bearer"
        # The client calls this before each request.
        settings.refresh_api_key_hook = renew
    return Kubeflow(api.ApiClient(settings), patience)
