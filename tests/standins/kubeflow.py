"""A stand-in for the API server of Kubeflow Pipelines, which kfp's real client talks to over HTTP.

It keeps pipelines, versions, experiments, runs and recurring runs, and is as strict as it can be: every request and
every answer must be what the official models (kfp_server_api) describe, every uploaded pipeline what kfp's protocol
buffers describe, and a run is given exactly the inputs that its pipeline declares. What the real server does is taken
from its source: names that are taken, default and largest page size, page tokens bound to their filter and order,
times to the second, 1 to 10 runs at once, namespaces required with several users and refused with one, and recurring
runs that kill their runs when they are deleted unless told to leave them.
"""

import base64
import json
import os
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import kfp_server_api
import pytest
import yaml
from google.protobuf import json_format
from kfp import dsl
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.kubeflow import client, commands, logs, runs

Object = dict[str, Any]
QUICK = client.Patience(pause=0.005, poll=0.05)
connect = partial(client.connect, QUICK)
"""Connects to the server, asked again soon if it is busy."""
ALIVE = {"PENDING", "RUNNING", "CANCELING", "PAUSED"}
COLUMNS = {
    "runs": {
        "run_id", "display_name", "created_at", "finished_at", "description", "state", "storage_state",
        "experiment_id", "recurring_run_id", "namespace",
    },
    "recurring_runs": {"recurring_run_id", "display_name", "created_at", "updated_at", "description"},
    "experiments": {"experiment_id", "display_name", "created_at", "description"},
    "pipelines": {"pipeline_id", "display_name", "name", "created_at", "description"},
    "pipeline_versions": {"pipeline_version_id", "display_name", "name", "created_at", "description"},
}  # fmt: skip
PRIMITIVES: dict[str, type | tuple[type, ...]] = {
    "str": str, "int": int, "bool": bool, "float": (int, float), "object": (dict, list, str, int, float, bool),
    "datetime": str,
}  # fmt: skip


class Refused(Exception):  # noqa: N818 - an answer, no fault
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check(kind: str, value: Any, where: str = "") -> None:  # noqa: PLR0912
    """Refuse a value that is not what the official model of this kind describes."""
    if found := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            raise Refused(400, f"{where}: not a list")
        for index, each in enumerate(value):
            check(found[1], each, f"{where}[{index}]")
    elif found := re.fullmatch(r"dict\(str, (.*)\)", kind):
        if not isinstance(value, dict):
            raise Refused(400, f"{where}: not a mapping")
        for key, each in value.items():
            check(found[1], each, f"{where}.{key}")
    elif kind in PRIMITIVES:
        if not isinstance(value, PRIMITIVES[kind]) or (kind == "int" and isinstance(value, bool)):
            raise Refused(400, f"{where}: {value!r} is no {kind}")
        if kind == "datetime":
            datetime.fromisoformat(value)
    else:
        model = getattr(kfp_server_api.models, kind)
        if hasattr(model, "allowable_values"):
            if value not in model.allowable_values:
                raise Refused(400, f"{where}: {value!r} is none of {model.allowable_values}")
            return
        if not isinstance(value, dict):
            raise Refused(400, f"{where}: {value!r} is no {kind}")
        kinds = {model.attribute_map[name]: each for name, each in model.openapi_types.items()}
        for key, each in value.items():
            if key not in kinds:
                raise Refused(400, f"{where}: {kind} has no field {key}")
            check(kinds[key], each, f"{where}.{key}")


def required(body: Object, *fields: str) -> None:
    for field in fields:
        if not body.get(field):
            raise Refused(400, f"{field} is missing")


def parse_package(text: bytes) -> Object:
    """Return the pipeline in an uploaded package, which must be exactly what kfp writes."""
    documents = list(yaml.safe_load_all(text))
    if not 1 <= len(documents) <= 2:
        raise Refused(400, "a package has one or two documents")
    try:
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        if documents[1:]:
            json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise Refused(400, f"no pipeline: {error}") from error
    return dict(documents[0])


class Standin:
    """The server. Use it as `with standin() as server`; look at its attributes, and tell it how to fail."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Object]] = {name: {} for name in COLUMNS}
        self.requests: list[str] = []
        """Method and path of each request."""
        self.token: str | None = None
        """What requests must bring along; None lets everybody in."""
        self.multi_user = False
        self.now = 1_800_000_000
        """Time in seconds: it passes when a test says so, so that much happens within one second."""
        self.killed: list[str] = []
        """Runs that were alive when their recurring run was deleted, and went with it."""
        self.taken_status = 409
        """Answer to an upload whose name is taken; older servers say 500."""
        self.honours_orphan = True
        """Whether a deletion can leave the runs alone; older servers cannot."""
        self.dies_at: int | None = None
        """Number of the request from which on it is dead."""
        self.dies_before = True
        """Whether it dies before or after doing what that request asks; either way it does not answer."""
        self.before: Callable[[str], None] = lambda _: None
        """Called with method and path before a request is looked at."""
        self._faults: list[tuple[re.Pattern[str], int, str]] = []
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        self.url = ""

    # What tests tell it.

    def fail(self, status: int, times: int = 1, request: str = "", body: str | None = None) -> None:
        """Answer the next requests that match with an error, or hang at them when the status is 0."""
        message = body if body is not None else json.dumps({"error": "told to", "code": 2, "message": "told to fail"})
        self._faults += [(re.compile(request), status, message)] * times

    def tick(self) -> list[str]:
        """Let every enabled recurring run start a run, as far as its concurrency lets it."""
        started = []
        for recurring in list(self.tables["recurring_runs"].values()):
            alive = [run for run in self._runs_of(recurring) if run["state"] in ALIVE]
            if recurring["mode"] == "ENABLE" and len(alive) < int(recurring["max_concurrency"]):
                copied = ("pipeline_version_reference", "runtime_config", "service_account", "experiment_id")
                run = self._new_run({key: recurring[key] for key in copied if key in recurring})
                run |= {"recurring_run_id": recurring["recurring_run_id"], "display_name": recurring["display_name"]}
                started.append(run["run_id"])
        return started

    def finish(self, run: str, state: str = "SUCCEEDED") -> None:
        """End a run."""
        self.tables["runs"][run] |= {"state": state, "finished_at": self._time()}

    def schedules(self) -> dict[str, list[Object]]:
        """Return the recurring runs by their names."""
        found: dict[str, list[Object]] = {}
        for each in self.tables["recurring_runs"].values():
            found.setdefault(each["display_name"], []).append(each)
        return found

    def runs(self, *states: str) -> list[Object]:
        return [run for run in self.tables["runs"].values() if not states or run["state"] in states]

    # What requests do.

    def _time(self) -> str:
        return datetime.fromtimestamp(self.now, UTC).isoformat().replace("+00:00", "Z")

    def _runs_of(self, recurring: Object) -> list[Object]:
        mine = recurring["recurring_run_id"]
        return [run for run in self.tables["runs"].values() if run.get("recurring_run_id") == mine]

    def _get(self, table: str, key: str) -> Object:
        try:
            return self.tables[table][key]
        except KeyError:
            raise Refused(404, f"{table} {key} not found") from None

    def _store(self, table: str, key: str, row: Object) -> Object:
        row |= {key: str(uuid.uuid4()), "created_at": self._time()}
        self.tables[table][row[key]] = row
        return row

    def _namespace(self, body: Object) -> None:
        if self.multi_user and not body.get("namespace"):
            raise Refused(400, "a namespace is required with several users")

    def _unique(self, table: str, **values: str) -> None:
        for row in self.tables[table].values():
            if all(row.get(key) == value for key, value in values.items()):
                raise Refused(409, f"{table} {values} already exists")

    def create_experiment(self, body: Object) -> Object:
        required(body, "display_name")
        self._namespace(body)
        self._unique("experiments", display_name=body["display_name"])
        return self._store("experiments", "experiment_id", body | {"storage_state": "AVAILABLE"})

    def create_pipeline(self, body: Object) -> Object:
        required(body, "display_name")
        self._namespace(body)
        self._unique("pipelines", display_name=body["display_name"])
        return self._store("pipelines", "pipeline_id", body)

    def upload_version(self, query: dict[str, str], package: bytes) -> Object:
        required(query, "name", "pipelineid")
        if set(query) - {"name", "display_name", "pipelineid", "description"}:
            raise Refused(400, f"unknown query {query}")
        self._get("pipelines", query["pipelineid"])
        try:
            self._unique("pipeline_versions", display_name=query["name"], pipeline_id=query["pipelineid"])
        except Refused as error:
            raise Refused(self.taken_status, str(error)) from None
        row = {
            "pipeline_id": query["pipelineid"],
            "display_name": query["name"],
            "name": query["name"],
            "pipeline_spec": parse_package(package),
        }
        return self._store("pipeline_versions", "pipeline_version_id", row)

    def _check_job(self, body: Object) -> None:
        required(body, "display_name", "experiment_id", "pipeline_version_reference")
        self._get("experiments", body["experiment_id"])
        reference = body["pipeline_version_reference"]
        required(reference, "pipeline_id", "pipeline_version_id")
        version = self._get("pipeline_versions", reference["pipeline_version_id"])
        if version["pipeline_id"] != reference["pipeline_id"]:
            raise Refused(400, "the version is another pipeline's")
        given = body.get("runtime_config", {}).get("parameters", {})
        declared = version["pipeline_spec"]["root"].get("inputDefinitions", {}).get("parameters", {})
        if unknown := set(given) - set(declared):
            raise Refused(400, f"the pipeline has no inputs {sorted(unknown)}")
        for name, input_ in declared.items():
            if name not in given and "defaultValue" not in input_ and not input_.get("isOptional"):
                raise Refused(400, f"the input {name} is missing")
            if name in given and input_["parameterType"] == "STRING" and not isinstance(given[name], str):
                raise Refused(400, f"the input {name} is no string")

    def create_recurring_run(self, body: Object) -> Object:
        self._check_job(body)
        required(body, "trigger", "max_concurrency", "mode")
        if set(body) & {"recurring_run_id", "created_at", "updated_at", "status"}:
            raise Refused(400, "what the server itself decides was given")
        self._namespace(body)
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise Refused(400, "The max concurrency of the recurring run is out of range. Support 1-10")
        cron, period = body["trigger"].get("cron_schedule"), body["trigger"].get("periodic_schedule")
        if bool(cron) == bool(period):
            raise Refused(400, "one trigger is required")
        if cron and not re.fullmatch(r"(\S+ ){5}\S+", cron["cron"]):
            raise Refused(400, "Schedule cron is not a supported format")
        if period and int(period["interval_second"]) < 1:
            raise Refused(400, "Found invalid period schedule interval")
        status = "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"
        row = body | {"status": status, "updated_at": self._time()}
        return self._store("recurring_runs", "recurring_run_id", row)

    def change_mode(self, key: str, mode: str) -> Object:
        row = self._get("recurring_runs", key)
        row |= {"mode": mode, "status": f"{mode}D", "updated_at": self._time()}
        return {}

    def delete_recurring_run(self, key: str, query: dict[str, str]) -> Object:
        row = self._get("recurring_runs", key)
        policy = query.get("propagation_policy", "BACKGROUND")
        check("V2beta1DeletePropagationPolicy", policy)
        if policy != "ORPHAN" or not self.honours_orphan:
            for run in self._runs_of(row):
                if run["state"] in ALIVE:
                    self.killed.append(run["run_id"])
                    self.finish(run["run_id"], "FAILED")
        del self.tables["recurring_runs"][key]
        return {}

    def _new_run(self, body: Object) -> Object:
        return self._store("runs", "run_id", body | {"state": "PENDING", "storage_state": "AVAILABLE"})

    def create_run(self, body: Object) -> Object:
        self._check_job(body)
        return self._new_run(body)

    def list_table(self, table: str, query: dict[str, str], parent: str | None = None) -> Object:
        """Return a page."""
        if table != "pipeline_versions":
            if self.multi_user and not query.get("namespace"):
                raise Refused(400, "a namespace is required with several users")
            if not self.multi_user and query.get("namespace"):
                raise Refused(400, "In single-user mode, cannot filter by namespace.")
        field, _, direction = (query.get("sort_by") or "created_at").partition(" ")
        if field not in COLUMNS[table] or direction not in ("", "asc", "desc"):
            raise Refused(400, f"cannot sort by {query['sort_by']}")
        rows = [row for row in self.tables[table].values() if parent is None or row.get("pipeline_id") == parent]
        rows = [row for row in rows if self._matches(table, row, query.get("filter", ""))]
        key = {"pipeline_versions": "pipeline_version_id"}.get(table, f"{table[:-1]}_id")
        rows.sort(key=lambda row: (str(row.get(field, "")), row[key]), reverse=direction == "desc")
        asked = [query.get("sort_by", ""), query.get("filter", "")]
        if token := query.get("page_token"):
            start = json.loads(base64.b64decode(token))
            if start["asked"] != asked:
                raise Refused(400, "page token does not match the supplied sort by and/or filtering criteria")
            ids = [row[key] for row in rows]
            rows = rows[ids.index(start["id"]) :] if start["id"] in ids else []
        size = min(int(query.get("page_size") or 20) or 20, 200)
        page: Object = {"total_size": len(rows)}
        if rows:
            # The one field of the API whose name is not written like the others.
            page["recurringRuns" if table == "recurring_runs" else table] = rows[:size]
        if len(rows) > size:
            told = json.dumps({"id": rows[size][key], "asked": asked}).encode()
            page["next_page_token"] = base64.b64encode(told).decode()
        return page

    def _matches(self, table: str, row: Object, text: str) -> bool:
        if not text:
            return True
        filter_ = json.loads(text)
        check("V2beta1Filter", filter_, "filter")
        for predicate in filter_.get("predicates", []):
            required(predicate, "key", "operation")
            if predicate["key"] not in COLUMNS[table]:
                raise Refused(400, f"no support for filtering on unrecognized field {predicate['key']}")
            value = str(row.get(predicate["key"], "")).lower()
            if predicate["operation"] == "EQUALS":
                matches = value == predicate["string_value"].lower()
            elif predicate["operation"] == "IN":
                matches = value in [each.lower() for each in predicate["string_values"]["values"]]
            else:
                raise Refused(400, f"not made for {predicate['operation']}")
            if not matches:
                return False
        return True

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[str, Any]:
        """Do what a request asks; return the kind of the answer and the answer."""

        def given(kind: str) -> Object:
            found: Object = json.loads(body)
            check(kind, found, kind)
            return found

        def versions(pipeline: str) -> Object:
            self._get("pipelines", pipeline)
            return self.list_table("pipeline_versions", query, pipeline)

        v2 = "/apis/v2beta1/"
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            (f"GET {v2}healthz", "V2beta1GetHealthzResponse", lambda: {"multi_user": self.multi_user}),
            (
                f"GET {v2}experiments",
                "V2beta1ListExperimentsResponse",
                lambda: self.list_table("experiments", query),
            ),
            (f"GET {v2}pipelines", "V2beta1ListPipelinesResponse", lambda: self.list_table("pipelines", query)),
            (f"GET {v2}pipelines/(ID)/versions", "V2beta1ListPipelineVersionsResponse", versions),
            (
                f"GET {v2}recurringruns",
                "V2beta1ListRecurringRunsResponse",
                lambda: self.list_table("recurring_runs", query),
            ),
            (f"GET {v2}recurringruns/(ID)", "V2beta1RecurringRun", lambda key: self._get("recurring_runs", key)),
            (f"GET {v2}runs", "V2beta1ListRunsResponse", lambda: self.list_table("runs", query)),
            (f"GET {v2}runs/(ID)", "V2beta1Run", lambda key: self._get("runs", key)),
            (
                f"POST {v2}experiments",
                "V2beta1Experiment",
                lambda: self.create_experiment(given("V2beta1Experiment")),
            ),
            (f"POST {v2}pipelines", "V2beta1Pipeline", lambda: self.create_pipeline(given("V2beta1Pipeline"))),
            (
                f"POST {v2}pipelines/upload_version",
                "V2beta1PipelineVersion",
                lambda: self.upload_version(query, body),
            ),
            (
                f"POST {v2}recurringruns",
                "V2beta1RecurringRun",
                lambda: self.create_recurring_run(given("V2beta1RecurringRun")),
            ),
            (f"POST {v2}recurringruns/(ID):enable", "object", lambda key: self.change_mode(key, "ENABLE")),
            (f"POST {v2}recurringruns/(ID):disable", "object", lambda key: self.change_mode(key, "DISABLE")),
            (f"DELETE {v2}recurringruns/(ID)", "object", lambda key: self.delete_recurring_run(key, query)),
            (f"POST {v2}runs", "V2beta1Run", lambda: self.create_run(given("V2beta1Run"))),
        ]
        for pattern, kind, do in routes:
            if found := re.fullmatch(pattern.replace("(ID)", r"([\w.-]+)"), f"{method} {path}"):
                return kind, do(*found.groups())
        raise Refused(404, f"Not Found: {method} {path}")

    def handle(self, method: str, path: str, query: dict[str, str], body: bytes, token: str | None) -> Any:
        """Answer (status, content type, body), None to close the connection without an answer."""
        asked = f"{method} {path}"
        self.before(asked)
        with self._lock:
            self.requests.append(asked)
            dead = self.dies_at is not None and len(self.requests) >= self.dies_at
            if dead and (self.dies_before or len(self.requests) > (self.dies_at or 0)):
                return None
            fault = next((fault for fault in self._faults if fault[0].search(asked)), None)
            if fault:
                self._faults.remove(fault)
            else:
                answer = self._checked(method, path, query, body, token)
                return None if dead else answer
        if fault[1] == 0:
            self.stopped.wait()
            return None
        kind = "application/json" if fault[2].startswith("{") else "text/html"
        return fault[1], kind, fault[2].encode()

    def _let_in(self, token: str | None) -> None:
        if self.token and token != f"Bearer {self.token}":
            raise Refused(401, "Request header error: there is no valid token")

    def _checked(self, method: str, path: str, query: dict[str, str], body: bytes, token: str | None) -> Any:
        try:
            self._let_in(token)
            kind, answer = self.answer(method, path, query, body)
            check(kind, answer, "the answer")
        except Refused as error:
            told = {"error": str(error), "code": 3, "message": str(error)}
            return error.status, "application/json", json.dumps(told).encode()
        return 200, "application/json", json.dumps(answer).encode()


def _uploaded(body: bytes, content_type: str) -> bytes:
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    [part] = [
        part for part in message.iter_parts() if part.get_param("name", header="content-disposition") == "uploadfile"
    ]
    assert str(part.get_filename()).endswith((".yaml", ".yml"))
    return bytes(part.get_payload(decode=True))


def _handler(server: Standin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content_type = self.headers.get("Content-Type", "")
            if content_type.startswith("multipart/"):
                body = _uploaded(body, content_type)
            url = urlsplit(self.path)
            answer = server.handle(
                self.command, unquote(url.path), dict(parse_qsl(url.query)), body, self.headers.get("authorization")
            )
            if answer is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, kind, content = answer
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _do  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def standin(certificate: ssl.SSLContext | None = None) -> Iterator[Standin]:
    """Run a server on a free port of the loopback interface, encrypted when it is given a certificate."""
    server = Standin()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # type: ignore[method-assign] # who hangs up is no news
    if certificate:
        http.socket = certificate.wrap_socket(http.socket, server_side=True)
    server.url = f"http{'s' if certificate else ''}://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        http.shutdown()
        http.server_close()
        thread.join()


@contextmanager
def reachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """Run a server that this process's environment names, and be asked again soon where it is busy."""
    for name in [name for name in os.environ if name.startswith(("KFP_", "KF_"))]:
        monkeypatch.delenv(name)
    for module in (commands, logs, runs):
        monkeypatch.setattr(module, "connect", connect)
    with standin() as server:
        monkeypatch.setenv("KFP_HOST", server.url)
        yield server


@dsl.component(base_image="example:1", install_kfp_package=False)
def greet(name: str) -> str:
    return name


@dsl.pipeline(name="greeting")
def greeting(name: str, title: str = "") -> None:
    """A small pipeline, with an input that must be given and one that need not."""
    greet(name=name)
    greet(name=title)
