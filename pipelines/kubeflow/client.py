"""Kubeflow Pipelines' API, as far as schedules and submitted runs need it, through kfp's client.

KFP_HOST names the server (else KF_PIPELINES_ENDPOINT, else its address inside a cluster). The token is KFP_TOKEN, or
stands in the file that KF_PIPELINES_SA_TOKEN_PATH names, where Kubernetes renews it. KFP_NAMESPACE is your profile on
a server with several users (in a pod of that namespace it is known), SSL_CERT_FILE a certificate authority of your own.

Every request is answered or given up within a minute. kfp takes seconds to import: only `connect` does.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bebygan.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from kfp.client import Client

INSIDE_A_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
_TOKEN_FILE = Path("/var/run/secrets/kubeflow/pipelines/token")
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_ALIVE = ("RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "CANCELING", "PAUSED")
_PAGE = 200
"""The most that a server puts on one page."""
_PATIENCE = (4, 10)
"""Seconds to connect, and to wait for an answer; urllib3 asks four times where asking again does no harm."""
_PATIENCE_FOR_CHANGES = (4, 45)
_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts when a server is busy."""
_ADVICE = {
    400: "correct what it names",
    401: "the token is missing, unknown or expired: renew KFP_TOKEN or what KF_PIPELINES_SA_TOKEN_PATH names",
    403: "let this account do that in this namespace, or choose another one by KFP_NAMESPACE",
    404: "it is not there (any more); see the names, KFP_HOST and KFP_NAMESPACE",
    409: "something else of this name is there; choose another name",
    429: "the server is busy; try again later",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurringRun:
    """A schedule as the server keeps it. It cannot be changed, only enabled, disabled and deleted."""

    id: str
    name: str
    description: str
    enabled: bool
    created_at: datetime
    """To the second: two of them can be equal."""
    trigger: str
    """Cron expression, or "every N s"."""
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task of a run, or one of the nodes that Kubeflow makes of a task."""

    id: str
    name: str
    state: str
    error: str
    started_at: datetime | None
    children: tuple[str, ...]
    """Argo's ids of the nodes that come after it, be they its own or the next task's. Its own id is not told."""

    @property
    def alive(self) -> bool:
        """Return whether it may still do something."""
        return self.state in _ALIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of a pipeline."""

    id: str
    name: str
    state: str
    error: str
    created_at: datetime
    finished_at: datetime | None
    pipeline_id: str
    parameters: Mapping[str, Any]
    tasks: tuple[Task, ...]

    @property
    def alive(self) -> bool:
        """Return whether it may still do something."""
        return self.state in _ALIVE


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def _said(body: str | bytes | None) -> str:
    """Return the message in an error's body."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        told = json.loads(text)
    except ValueError:
        return _one_line(text)
    if not isinstance(told, dict):
        return _one_line(text)
    return _one_line(next((told[key] for key in ("message", "error_message", "error") if told.get(key)), text))


def _reason(error: BaseException) -> str:
    """Say the operating system's reason, if there is one behind an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return _one_line(cause.strerror)
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, ConnectionError):
            return _one_line(cause)
        # urllib3 keeps some causes among the arguments.
        inner = next((each for each in cause.args if isinstance(each, BaseException)), None)
        cause = cause.__cause__ or cause.__context__ or inner
    return _one_line(error)


@contextmanager
def _errors(doing: str, host: str) -> Iterator[None]:
    from kfp_server_api import ApiException  # type: ignore[import-untyped]  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        yield
    except ApiException as error:
        advice = _ADVICE.get(error.status, "see its log (deployment ml-pipeline) and try again")
        raise ServiceError(
            f"{doing} failed at Kubeflow's {host} ({error.status} {_said(error.body) or error.reason}): {advice}"
        ) from error
    except (HTTPError, OSError) as error:
        reason = _reason(error)
        advice = (
            "its certificate is not trusted: name its authority by SSL_CERT_FILE"
            if "certificate" in reason.lower()
            else "see that it runs and can be reached, or correct KFP_HOST"
        )
        raise ServiceError(f"{doing} failed at Kubeflow's {host} ({reason}): {advice}") from error


def status_of(error: ServiceError) -> int:
    """Return the HTTP status behind an error, 0 where there is none."""
    return int(getattr(error.__cause__, "status", 0) or 0)


def _filter(**equals: str | tuple[str, ...]) -> str:
    """Write a filter in the API's language; a tuple stands for any of its members."""
    predicates: list[dict[str, Any]] = [
        {"operation": "IN", "key": key, "string_values": {"values": list(value)}}
        if isinstance(value, tuple)
        else {"operation": "EQUALS", "key": key, "string_value": value}
        for key, value in equals.items()
    ]
    return json.dumps({"predicates": predicates})


def _recurring_run(found: Any) -> RecurringRun:
    trigger = found.trigger
    cron = trigger and trigger.cron_schedule and trigger.cron_schedule.cron
    interval = trigger and trigger.periodic_schedule and trigger.periodic_schedule.interval_second
    return RecurringRun(
        id=found.recurring_run_id,
        name=found.display_name,
        description=found.description or "",
        enabled=found.mode == "ENABLE",
        created_at=found.created_at,
        trigger=cron or f"every {interval} s",
        parameters=dict((found.runtime_config and found.runtime_config.parameters) or {}),
    )


def _run(found: Any) -> Run:
    details = (found.run_details and found.run_details.task_details) or []
    return Run(
        id=found.run_id,
        name=found.display_name,
        state=found.state or _ALIVE[0],
        error=_one_line((found.error and found.error.message) or ""),
        created_at=found.created_at,
        finished_at=found.finished_at,
        pipeline_id=(found.pipeline_version_reference and found.pipeline_version_reference.pipeline_id) or "",
        parameters=dict((found.runtime_config and found.runtime_config.parameters) or {}),
        tasks=tuple(
            Task(
                id=task.task_id or "",
                name=task.display_name or "",
                state=task.state or _ALIVE[0],
                error=_one_line((task.error and task.error.message) or ""),
                started_at=task.start_time,
                children=tuple(child.pod_name for child in task.child_tasks or () if child.pod_name),
            )
            for task in details
        ),
    )


class Kubeflow:
    """A server of Kubeflow Pipelines, and one namespace of it. Every method raises ServiceError, in one line."""

    def __init__(self, client: "Client", host: str) -> None:
        self.host = host
        self._client = client
        self.namespace = self._own_namespace()

    def _own_namespace(self) -> str:
        health = self._ask("asking whether it is well", self._client.healthzs.healthz_service_get_healthz)
        if not health.multi_user:
            return ""
        if namespace := os.environ.get("KFP_NAMESPACE"):
            return namespace
        if _NAMESPACE_FILE.is_file():
            return _NAMESPACE_FILE.read_text().strip()
        raise ConfigError(f"Kubeflow's {self.host} has several users: say by KFP_NAMESPACE which profile is yours")

    def _ask(self, doing: str, call: Any, *arguments: Any, change: bool = False, **named: Any) -> Any:
        """Call the API. What may have been done already is not asked for again, unless it was turned away."""
        from kfp_server_api import ApiException  # noqa: PLC0415

        again = (429,) if change else (429, 500, 502, 503, 504)
        # urllib3 sends a deletion again, like a question.
        patience = _PATIENCE_FOR_CHANGES if change and "_delete_" not in call.__name__ else _PATIENCE
        with _errors(doing, self.host):
            for pause in (*_PAUSES, None):
                try:
                    answer, _, headers = getattr(call.__self__, f"{call.__name__}_with_http_info")(
                        *arguments, _request_timeout=patience, **named
                    )
                except ApiException as error:
                    if pause is None or error.status not in again:
                        raise
                    time.sleep(pause)
                else:
                    break
        if "json" not in headers.get("Content-Type", ""):
            raise ServiceError(
                f"{doing} failed at Kubeflow's {self.host} (it did not answer as Kubeflow Pipelines does, a login page "
                "perhaps): correct KFP_HOST, or give a token by KFP_TOKEN"
            )
        return answer

    def _pages(self, doing: str, call: Any, field: str, *arguments: Any, **named: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = self._ask(doing, call, *arguments, page_size=_PAGE, page_token=token, **named)
            yield from getattr(page, field) or ()
            token = page.next_page_token or ""
            if not token:
                return

    def _found_or_made(self, find: Callable[[], str | None], make: Callable[[], str]) -> str:
        """Look, then make; when somebody else was quicker, look again."""
        if found := find():
            return found
        try:
            return make()
        except ServiceError as error:
            # Upload answers 500 for a name that is taken.
            if status_of(error) in (409, 500) and (found := find()):
                return found
            raise

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, made when it is missing."""

        def find() -> str | None:
            found = self._pages(
                f"looking for the experiment {name}",
                self._client.experiments.experiment_service_list_experiments,
                "experiments",
                filter=_filter(display_name=name),
                namespace=self.namespace,
            )
            return next((each.experiment_id for each in found if each.display_name == name), None)

        def make() -> str:
            body = self._client.api_models.V2beta1Experiment(display_name=name, namespace=self.namespace or None)
            create = self._client.experiments.experiment_service_create_experiment
            return str(self._ask(f"making the experiment {name}", create, body, change=True).experiment_id)

        return self._found_or_made(find, make)

    def find_pipeline(self, name: str) -> str | None:
        """Return the id of a pipeline, or None."""
        found = self._pages(
            f"looking for the pipeline {name}",
            self._client.pipelines.pipeline_service_list_pipelines,
            "pipelines",
            filter=_filter(display_name=name),
            namespace=self.namespace,
        )
        return next((each.pipeline_id for each in found if each.display_name == name), None)

    def pipeline(self, name: str) -> str:
        """Return the id of a pipeline, made without versions when it is missing."""

        def make() -> str:
            body = self._client.api_models.V2beta1Pipeline(
                name=name, display_name=name, namespace=self.namespace or None
            )
            create = self._client.pipelines.pipeline_service_create_pipeline
            return str(self._ask(f"making the pipeline {name}", create, body, change=True).pipeline_id)

        return self._found_or_made(lambda: self.find_pipeline(name), make)

    def find_version(self, pipeline_id: str, name: str | None = None) -> str | None:
        """Return the id of the version of a name, or of the newest one; None when there is none."""
        chosen = {"filter": _filter(display_name=name)} if name else {"sort_by": "created_at desc"}
        found = self._pages(
            f"looking for the pipeline's version {name or ''}".rstrip(),
            self._client.pipelines.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            pipeline_id,
            **chosen,
        )
        return next((each.pipeline_version_id for each in found if name in (None, each.display_name)), None)

    def version(self, pipeline_id: str, name: str, package: Path) -> str:
        """Return the id of a version of a pipeline, uploaded when it is missing.

        Args:
            pipeline_id: the pipeline.
            name: names its content, so that equal names mean equal pipelines.
            package: compiled pipeline, a file that ends with .yaml.
        """

        def upload() -> str:
            call = self._client.pipeline_uploads.upload_pipeline_version
            made = self._ask(f"uploading {name}", call, str(package), change=True, name=name, pipelineid=pipeline_id)
            return str(made.pipeline_version_id)

        return self._found_or_made(lambda: self.find_version(pipeline_id, name), upload)

    def recurring_runs(self) -> list[RecurringRun]:
        """Return all recurring runs of the namespace."""
        found = self._pages(
            "listing the schedules",
            self._client.recurring_runs.recurring_run_service_list_recurring_runs,
            "recurring_runs",
            namespace=self.namespace,
        )
        return [_recurring_run(each) for each in found]

    def create_recurring_run(
        self,
        *,
        name: str,
        description: str,
        experiment_id: str,
        pipeline_id: str,
        version_id: str,
        parameters: Mapping[str, str],
        cron: str | None,
        interval: int | None,
        concurrency: int,
        catchup: bool,
        service_account: str,
    ) -> str:
        """Make a recurring run, disabled, and return its id.

        Args:
            name: for people; need not be unique.
            description: for us.
            experiment_id: where its runs are listed.
            pipeline_id: of the pipeline that it runs.
            version_id: of the version of that pipeline.
            parameters: inputs of the pipeline.
            cron: six fields, or None with an interval.
            interval: seconds between two runs, or None with cron.
            concurrency: the most runs at once, 1 to 10.
            catchup: whether slots that were missed are made up for.
            service_account: of the runs' pods.
        """
        models = self._client.api_models
        trigger = (
            models.V2beta1Trigger(cron_schedule=models.V2beta1CronSchedule(cron=cron))
            if cron
            else models.V2beta1Trigger(periodic_schedule=models.V2beta1PeriodicSchedule(interval_second=str(interval)))
        )
        body = models.V2beta1RecurringRun(
            display_name=name,
            description=description,
            experiment_id=experiment_id,
            namespace=self.namespace or None,
            mode="DISABLE",
            trigger=trigger,
            max_concurrency=str(concurrency),
            no_catchup=not catchup,
            pipeline_version_reference=models.V2beta1PipelineVersionReference(
                pipeline_id=pipeline_id, pipeline_version_id=version_id
            ),
            runtime_config=models.V2beta1RuntimeConfig(parameters=dict(parameters)),
            service_account=service_account,
        )
        create = self._client.recurring_runs.recurring_run_service_create_recurring_run
        return str(self._ask(f"making the schedule {name}", create, body, change=True).recurring_run_id)

    def copy_recurring_run(self, recurring_run: str, description: str) -> str:
        """Make a disabled copy of a recurring run with another description, and return its id."""
        runs = self._client.recurring_runs
        copy = self._ask("asking for a schedule", runs.recurring_run_service_get_recurring_run, recurring_run)
        copy.description = description
        copy.mode = "DISABLE"
        for field in ("recurring_run_id", "created_at", "updated_at", "status", "error"):
            setattr(copy, field, None)
        create = runs.recurring_run_service_create_recurring_run
        return str(self._ask(f"copying the schedule {copy.display_name}", create, copy, change=True).recurring_run_id)

    def _unless_gone(self, doing: str, call: Any, recurring_run: str, **named: Any) -> None:
        try:
            self._ask(doing, call, recurring_run, change=True, **named)
        except ServiceError as error:
            if status_of(error) != 404:
                raise

    def enable(self, recurring_run: str) -> None:
        """Let a recurring run start runs; one that is gone stays so."""
        self._unless_gone(
            "enabling a schedule", self._client.recurring_runs.recurring_run_service_enable_recurring_run, recurring_run
        )

    def disable(self, recurring_run: str) -> None:
        """Let a recurring run start no more runs; those under way go on."""
        call = self._client.recurring_runs.recurring_run_service_disable_recurring_run
        self._unless_gone("disabling a schedule", call, recurring_run)

    def delete(self, recurring_run: str) -> None:
        """Delete a recurring run. An older server also kills its runs: see that none is alive."""
        self._unless_gone(
            "deleting a schedule",
            self._client.recurring_runs.recurring_run_service_delete_recurring_run,
            recurring_run,
            propagation_policy="ORPHAN",
        )

    def alive_runs(self, recurring_run: str | None = None) -> list[Run]:
        """Return the runs that have not ended, of one recurring run or of the namespace, oldest first."""
        chosen = {"recurring_run_id": recurring_run} if recurring_run else {}
        return list(self._runs("created_at asc", filter=_filter(state=_ALIVE, **chosen)))

    def runs(self) -> Iterator[Run]:
        """Yield all runs of the namespace, newest first."""
        return self._runs("created_at desc")

    def _runs(self, order: str, **named: Any) -> Iterator[Run]:
        call = self._client.runs.run_service_list_runs
        for each in self._pages("listing the runs", call, "runs", namespace=self.namespace, sort_by=order, **named):
            yield _run(each)

    def create_run(
        self,
        *,
        name: str,
        description: str,
        experiment_id: str,
        pipeline_id: str,
        version_id: str,
        parameters: Mapping[str, str],
        service_account: str,
    ) -> str:
        """Start a run and return its id."""
        models = self._client.api_models
        body = models.V2beta1Run(
            display_name=name,
            description=description,
            experiment_id=experiment_id,
            pipeline_version_reference=models.V2beta1PipelineVersionReference(
                pipeline_id=pipeline_id, pipeline_version_id=version_id
            ),
            runtime_config=models.V2beta1RuntimeConfig(parameters=dict(parameters)),
            service_account=service_account,
        )
        create = self._client.runs.run_service_create_run
        return str(self._ask(f"starting {name}", create, body, change=True).run_id)

    def terminate(self, run: str) -> None:
        """Stop a run; one that has ended stays as it is."""
        try:
            self._ask("stopping a run", self._client.runs.run_service_terminate_run, run, change=True)
        except ServiceError:
            if self.run(run).alive:
                raise

    def run(self, run: str) -> Run:
        """Return a run with its tasks."""
        return _run(self._ask(f"asking for the run {run}", self._client.runs.run_service_get_run, run))

    def log(self, run: str, pod: str) -> str | None:
        """Return what a pod's container printed, from the pod or from the archive; None when neither is there.

        The server reads it for us at an address that the generated client does not know.
        """
        api = self._client.runs.run_service_get_run.__self__.api_client
        try:
            with _errors(f"reading the log of {pod}", self.host):
                answer = api.call_api(
                    "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log",
                    "GET",
                    {"run_id": run, "node_id": pod},
                    auth_settings=["Bearer"],
                    response_type=None,
                    _preload_content=False,
                    _request_timeout=_PATIENCE,
                )
                return str(answer.data.decode(errors="replace"))
        except ServiceError as error:
            # The server says 500 where there is neither pod nor archive.
            if status_of(error) in (400, 404, 500):
                return None
            raise


def connect() -> Kubeflow:
    """Connect to the server that the environment names.

    Raises:
        ConfigError: the server has several users and none was named, or a file that is named is not there.
        ServiceError: it cannot be reached, or does not let us in.
    """
    # First, or inside a task, where kfp imports less by itself, its client's imports go round in a circle.
    import kfp.dsl.component_factory  # noqa: F401, PLC0415
    from kfp.client import Client  # noqa: PLC0415
    from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials  # noqa: PLC0415

    host = os.environ.get("KFP_HOST") or os.environ.get("KF_PIPELINES_ENDPOINT") or INSIDE_A_CLUSTER
    host = (host if "://" in host else f"https://{host}").rstrip("/")
    token = os.environ.get("KFP_TOKEN")
    file = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") or _TOKEN_FILE)
    if not token and "KF_PIPELINES_SA_TOKEN_PATH" in os.environ and not file.is_file():
        raise ConfigError(f"there is no token in {file}, which KF_PIPELINES_SA_TOKEN_PATH names")
    authority = os.environ.get("SSL_CERT_FILE")
    if authority and not Path(authority).is_file():
        raise ConfigError(f"there is no certificate in {authority}, which SSL_CERT_FILE names")
    credentials = ServiceAccountTokenVolumeCredentials(str(file)) if not token and file.is_file() else None
    # It warns of each attempt, and in the end we say the same in one line.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # That it speaks to servers from 2.0 on.
        warnings.simplefilter("ignore", FutureWarning)
        client = Client(
            host=host,
            existing_token=token or None,
            credentials=credentials,
            ssl_ca_cert=authority,
            # Without one it asks for the server's health without a time limit. We name it in every request ourselves.
            namespace="unused",
        )
    return Kubeflow(client, host)
