"""A stand-in for a Kubernetes API server with Kubeflow Trainer, which the real `kubernetes` client talks to over HTTP.

It keeps TrainJobs and pods in one namespace, with resource versions, watches and logs that can be followed, and
rejects what the real server rejects: a missing token, unknown fields, invalid names, a missing runtime. On request it
answers with errors, breaks its connections, is unreachable, or restarts and answers 403 until its RBAC rules are
loaded. `tests.standins.trainer` plays the controllers.
"""

import copy
import json
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jsonschema
import yaml

Object = dict[str, Any]
NAMESPACE = "team"
TOKEN = "a-token"
TRAINJOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SCHEMA = json.loads((Path(__file__).parent / "trainer-2.3.0.schema.json").read_text())
LABELS = {
    "set": "jobset.sigs.k8s.io/jobset-name",
    "job": "jobset.sigs.k8s.io/replicatedjob-name",
    "index": "batch.kubernetes.io/job-completion-index",
}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def faults_of(kind: str, value: Object) -> list[str]:
    """What Kubeflow Trainer's API has against an object."""
    reference = {"$ref": f"#/$defs/TrainerV1alpha1{kind}", "$defs": SCHEMA["$defs"]}
    found = jsonschema.Draft202012Validator(reference).iter_errors(value)
    return [f"{fault.json_path}: {fault.message}" for fault in found]


class Refused(Exception):  # noqa: N818 - an answer, no fault
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason

    def body(self) -> Object:
        return {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.status, "reason": self.reason,
            "message": str(self),
        }  # fmt: skip


@dataclass
class Pod:
    """One pod; its server's lock guards it."""

    server: "ApiServer"
    manifest: Object
    lines: list[tuple[str, str]] = field(default_factory=list)
    rest: str = ""
    """What it printed after its last line."""

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def ended(self) -> bool:
        return self.manifest["status"]["phase"] in ("Succeeded", "Failed")

    def say(self, text: str) -> None:
        """Write a line into the log, as the kubelet keeps it: with nine digits of a second."""
        moment = time.time_ns()
        second = datetime.fromtimestamp(moment // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        with self.server.changed:
            self.lines.append((f"{second}.{moment % 10**9:09}Z", text))
            self.server.changed.notify_all()

    def run(self) -> None:
        self._set({"phase": "Running", "containerStatuses": [self._container({"running": {"startedAt": now()}})]})

    def end(self, code: int, reason: str | None = None) -> None:
        terminated = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "finishedAt": now()}
        if reason == "ContainerStatusUnknown":
            # As the kubelet says it of a container that it does not find any more.
            terminated["finishedAt"] = None
        phase = "Failed" if code else "Succeeded"
        self._set({"phase": phase, "containerStatuses": [self._container({"terminated": terminated})]})

    def condition(self, kind: str, status: str, reason: str, message: str) -> None:
        with self.server.changed:
            said = {"type": kind, "status": status, "reason": reason, "message": message}
            self.manifest["status"].setdefault("conditions", []).append(said)

    def vanish(self) -> None:
        with self.server.changed:
            self.server.pods.remove(self)
            self.server.changed.notify_all()

    def _container(self, state: Object) -> Object:
        image = {"image": "bebygan-torch-python", "imageID": ""}
        return {"name": "node", "ready": "running" in state, "restartCount": 0, "state": state, **image}

    def _set(self, status: Object) -> None:
        with self.server.changed:
            self.manifest["status"].update(status)
            self.server.changed.notify_all()


@dataclass
class Fault:
    """An answer to the next requests of a kind, in place of the right one."""

    method: str
    path: re.Pattern[str]
    answer: Refused
    times: int


class ApiServer:
    """The server. Use it as a context manager; `kubeconfig` tells clients where it is."""

    def __init__(self, certificate: ssl.SSLContext | None = None) -> None:
        self.certificate = certificate
        self.changed = threading.Condition(threading.RLock())
        self.trainjobs: dict[str, Object] = {}
        self.pods: list[Pod] = []
        self.runtimes = {"bebygan-train"}
        self.installed = True
        self.on_create: Callable[[Object], object] = bool
        self.on_delete: Callable[[str], object] = bool
        self.requests: list[tuple[str, str]] = []
        self.created: list[Object] = []
        self.broken_lines = 0
        self.rules_loaded = 0.0
        """Until this time, by the monotonic clock, every request is answered with 403."""
        self._version = 1
        self._events: list[tuple[int, str, Object]] = []
        self._faults: list[Fault] = []
        self._breaks = 0
        self._run_pods = 0
        self._connections: set[socket.socket] = set()
        self._http: ThreadingHTTPServer | None = None
        self.port = 0

    def __enter__(self) -> "ApiServer":
        self.come_back()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()

    def kubeconfig(self, path: Path, scheme: str = "http") -> Path:
        server = {"server": f"{scheme}://127.0.0.1:{self.port}"}
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": server}], "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        return path

    def go_away(self) -> None:
        """Refuse connections and break those that are open."""
        assert self._http
        self._http.shutdown()
        self._http.server_close()
        self.break_lines()
        with self.changed:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def come_back(self) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._http.daemon_threads = True
        if self.certificate:
            self._http.socket = self.certificate.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.go_away()
        try:
            yield
        finally:
            self.come_back()

    def restart(self, seconds: float) -> None:
        """Break all connections, and answer 403 for some seconds, as the RBAC caches load after a start."""
        with self.away():
            self.rules_loaded = time.monotonic() + seconds

    def break_lines(self) -> None:
        """Break every watch and every log that is being followed, in the middle of a line."""
        with self.changed:
            self._breaks += 1
            self.changed.notify_all()

    def fail(self, method: str, path: str, answer: Refused, times: int = 1_000_000) -> None:
        with self.changed:
            self._faults.append(Fault(method, re.compile(path), answer, times))

    def add_pod(self, trainjob: str, index: int = 0) -> Pod:
        """A pod of a TrainJob's node, pending."""
        with self.changed:
            labels = {LABELS["set"]: trainjob, LABELS["job"]: "node", LABELS["index"]: str(index)}
            metadata = {
                "name": f"{trainjob}-node-0-{index}-{uuid.uuid4().hex[:5]}", "namespace": NAMESPACE, "labels": labels,
                "uid": str(uuid.uuid4()), "creationTimestamp": now(),
            }  # fmt: skip
            containers = [{"name": "node", "image": "bebygan-torch-python"}]
            pod = Pod(self, {"metadata": metadata, "spec": {"containers": containers}, "status": {"phase": "Pending"}})
            self.pods.append(pod)
            self.changed.notify_all()
            return pod

    def add_run_pod(self, run: str, task: str | None, *lines: str, phase: str = "Running") -> Pod:
        """Add a pod of a run of Kubeflow Pipelines; without a task it is one of Kubeflow's own."""
        labels = {"pipeline/runid": run} | ({"bebygan/task": task} if task else {})
        # A pod's time has whole seconds; a test does not wait for them.
        self._run_pods += 1
        metadata = {
            "name": f"bebygan-retrain-x7k2p-{'impl' if task else 'driver'}-{self._run_pods}", "namespace": NAMESPACE,
            "labels": labels, "uid": str(uuid.uuid4()), "creationTimestamp": f"2026-11-22T12:00:{self._run_pods:02}Z",
        }  # fmt: skip
        with self.changed:
            spec = {"containers": [{"name": "main", "image": "example:1"}]}
            pod = Pod(self, {"metadata": metadata, "spec": spec, "status": {"phase": phase}})
            self.pods.append(pod)
        for line in lines:
            pod.say(line)
        return pod

    def end(self, name: str, kind: str, reason: str, message: str) -> None:
        """Give a TrainJob the condition with which it ends."""
        said = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
        with self.changed:
            self.trainjobs[name].setdefault("status", {}).setdefault("conditions", []).append(said)
            self._happened("MODIFIED", self.trainjobs[name])

    def change(self, name: str, **spec: object) -> None:
        with self.changed:
            self.trainjobs[name]["spec"].update(spec)
            self._happened("MODIFIED", self.trainjobs[name])

    def forget_history(self) -> None:
        """Forget the events that watches of earlier versions need."""
        with self.changed:
            self._version += 10
            self._events = []

    def delete(self, name: str) -> None:
        with self.changed:
            self._happened("DELETED", self.trainjobs.pop(name))
        self.on_delete(name)

    def wait_until(self, holds: Callable[[], object], seconds: float = 60) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, seconds)

    def _happened(self, event: str, trainjob: Object) -> None:
        self._version += 1
        trainjob["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, event, copy.deepcopy(trainjob)))
        self.changed.notify_all()

    # What requests ask for, called with the lock held.

    def fault(self, method: str, path: str) -> Refused | None:
        for fault in self._faults:
            if fault.method == method and fault.path.search(path):
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                return fault.answer
        return None

    def accept(self, body: Object) -> Object:
        """Take a TrainJob in, as the API server and Trainer's webhook do."""
        if not self.installed:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if body.get("apiVersion") != "trainer.kubeflow.org/v1alpha1" or body.get("kind") != "TrainJob":
            raise Refused(400, "BadRequest", "the object provided is unrecognized")
        name = body["metadata"]["name"]
        faults = faults_of("TrainJob", body)
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(f"{name}-node-0-9-abcde") > 63:
            faults.append(f"metadata.name: {name}")
        patches = body["spec"].get("runtimePatches", [])
        faults += [f"manager: {patch['manager']}" for patch in patches if not re.fullmatch(r".+/.+", patch["manager"])]
        if faults:
            raise Refused(422, "Invalid", f"TrainJob.trainer.kubeflow.org {name!r} is invalid: {faults[0]}")
        runtime = body["spec"]["runtimeRef"]
        if runtime["kind"] != "TrainingRuntime" or runtime["name"] not in self.runtimes:
            hook = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request'
            raise Refused(403, "Forbidden", f"{hook}: TrainingRuntime {runtime['name']!r} not found")
        if name in self.trainjobs:
            raise Refused(409, "AlreadyExists", f"trainjobs.trainer.kubeflow.org {name!r} already exists")
        made = copy.deepcopy(body)
        made["metadata"] |= {"namespace": NAMESPACE, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
        for patch in made["spec"].get("runtimePatches", []):
            patch["time"] = now()
        self.trainjobs[name] = made
        self.created.append(made)
        self._happened("ADDED", made)
        return made

    def trainjob(self, name: str) -> Object:
        if name not in self.trainjobs:
            raise Refused(404, "NotFound", f"trainjobs.trainer.kubeflow.org {name!r} not found")
        return self.trainjobs[name]

    def pod(self, name: str) -> Pod:
        for pod in self.pods:
            if pod.name == name:
                return pod
        raise Refused(404, "NotFound", f"pods {name!r} not found")

    def changes(self, name: str, start: str | None, seconds: float) -> Iterator[Object]:
        """The events of a watch; called without the lock. Without a version the present state is the first one."""
        deadline, breaks = time.monotonic() + seconds, self._breaks
        with self.changed:
            since = self._version if start is None else int(start)
            present = copy.deepcopy(self.trainjobs.get(name)) if start is None else None
        if present:
            yield {"type": "ADDED", "object": present}
        oldest = self._events[0][0] if self._events else self._version
        if since < oldest - 1:
            expired = Refused(410, "Expired", f"too old resource version: {since} ({self._version})")
            yield {"type": "ERROR", "object": expired.body()}
            return
        while True:
            with self.changed:
                news = [each for each in self._events if each[0] > since and each[2]["metadata"]["name"] == name]
                if not news:
                    self.changed.wait(max(0.0, deadline - time.monotonic()))
                if breaks != self._breaks:
                    raise ConnectionResetError
            for version, event, trainjob in news:
                since = version
                yield {"type": event, "object": trainjob}
            if time.monotonic() >= deadline:
                return

    def log(self, pod: Pod, query: dict[str, str]) -> Iterator[str]:
        """The lines of a log; called without the lock."""
        breaks, sent = self._breaks, max(0, len(pod.lines) - int(query.get("tailLines", 10**9)))
        since = query.get("sinceTime", "")
        while True:
            with self.changed:
                follow = query.get("follow") == "true" and not pod.ended and pod in self.pods
                if follow and len(pod.lines) == sent and breaks == self._breaks:
                    self.changed.wait(0.5)
                fresh = pod.lines[sent:]
                broken = breaks != self._breaks and query.get("follow") == "true"
            for moment, text in fresh:
                if moment >= since:
                    line = f"{moment} {text}\n" if query.get("timestamps") == "true" else f"{text}\n"
                    yield line[: len(line) // 2] if broken else line
                if broken:
                    break
            if broken:
                self.broken_lines += 1
                raise ConnectionResetError
            sent += len(fresh)
            if not follow and not fresh:
                yield pod.rest
                return


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with server.changed:
                server._connections.add(self.connection)

        def finish(self) -> None:
            with server.changed:
                server._connections.discard(self.connection)
            try:
                super().finish()
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_DELETE(self) -> None:
            self._answer("DELETE")

        def _answer(self, method: str) -> None:
            url = urlsplit(self.path)
            query = dict(parse_qsl(url.query))
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            action = "WATCH" if query.get("watch") in ("true", "True") else method
            try:
                with server.changed:
                    server.requests.append((action, url.path))
                    server.changed.notify_all()
                    answer = self._result(action, url.path, query, body)
                if isinstance(answer, dict):
                    self._send(200, answer)
                else:
                    self._stream(answer)
                if action == "POST":
                    server.on_create(answer)
                if action == "DELETE":
                    server.on_delete(url.path.rpartition("/")[2])
            except Refused as refused:
                self._send(refused.status, refused.body())
            except OSError:
                self.close_connection = True

        def _result(self, action: str, path: str, query: dict[str, str], body: Any) -> Any:
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            if (scheme.lower(), token) != ("bearer", TOKEN):
                raise Refused(401, "Unauthorized", "Unauthorized")
            if refused := server.fault(action, path):
                raise refused
            if time.monotonic() < server.rules_loaded:
                raise Refused(403, "Forbidden", f'User "x" cannot {action} {path}: RBAC: role.rbac "x" not found')
            start, _, rest = path.partition(f"/namespaces/{NAMESPACE}/")
            if f"{start}/namespaces/{NAMESPACE}/{rest.split('/')[0]}" not in (TRAINJOBS, PODS):
                raise Refused(404, "NotFound", f"the server could not find the requested resource {path}")
            kind, *names = rest.split("/")
            self._known(query, kind, names)
            if kind == "trainjobs":
                return self._trainjobs(action, names, query, body)
            if not names:
                wanted = dict(each.split("=") for each in query["labelSelector"].split(","))
                found = [
                    pod.manifest for pod in server.pods if wanted.items() <= pod.manifest["metadata"]["labels"].items()
                ]
                return copy.deepcopy({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found})
            pod = server.pod(names[0])
            if pod.manifest["status"]["phase"] == "Pending":
                raise Refused(400, "BadRequest", 'container "node" is waiting to start: ContainerCreating')
            container = pod.manifest["spec"]["containers"][0]["name"]
            if query.get("container") != container or (container == "node" and query.get("timestamps") != "true"):
                raise Refused(400, "BadRequest", f"unexpected {query}")
            return server.log(pod, query)

        def _known(self, query: dict[str, str], kind: str, names: list[str]) -> None:
            known = {
                ("trainjobs", 0): {"watch", "fieldSelector", "resourceVersion", "timeoutSeconds"},
                ("trainjobs", 1): set(),
                ("pods", 0): {"labelSelector"},
                ("pods", 2): {"container", "timestamps", "follow", "sinceTime", "tailLines"},
            }
            unknown = query.keys() - known[kind, len(names)]
            if unknown:
                raise Refused(400, "BadRequest", f"unknown parameters {unknown}")

        def _trainjobs(self, action: str, names: list[str], query: dict[str, str], body: Any) -> Any:
            if action == "POST":
                return copy.deepcopy(server.accept(body))
            if action == "WATCH":
                name = query["fieldSelector"].removeprefix("metadata.name=")
                return server.changes(name, query.get("resourceVersion"), float(query["timeoutSeconds"]))
            found = copy.deepcopy(server.trainjob(names[0]))
            if action == "DELETE":
                if body["preconditions"]["uid"] != found["metadata"]["uid"]:
                    raise Refused(409, "Conflict", "the UID in the precondition is another")
                if body["propagationPolicy"] != "Foreground":
                    raise Refused(422, "Invalid", "propagationPolicy")
                server._happened("DELETED", server.trainjobs.pop(names[0]))
            return found

        def _send(self, status: int, body: Object) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, pieces: Iterator[Any]) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in filter(None, pieces):
                content = (piece if isinstance(piece, str) else json.dumps(piece) + "\n").encode()
                self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

    return Handler
