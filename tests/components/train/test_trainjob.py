import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bebygan.errors import BebyganError, ConfigError, DataError, ServiceError, WeightsError
from components.config import from_yaml
from components.train import trainjob
from components.train.trainjob import TrainJobSettings, TrainJobSpec, manifest, run_trainjob, trainjob_name
from tests.standins.kubernetes import PODS, TOKEN, TRAINJOBS, ApiServer, Refused, faults_of
from tests.standins.tls import loopback_certificate
from tests.standins.trainer import ROOT, RUNTIME, Controllers, job_of

NAME = trainjob_name("a training")
SETTINGS = """
namespace: null
runtime: bebygan-train
image: registry.invalid/torch@sha256:1234
nodes: 1
gpus: 0
gpu_type: nvidia.com/gpu
cpu: "2"
memory: 8Gi
shared_memory: 2Gi
hours: 1.5
node_selector: {}
tolerations: []
claim: bebygan-volume
service_account: bebygan-training
config_map: bebygan
s3_secret: bebygan-s3
mlflow_secret: bebygan-mlflow
"""
GPUS = {
    "nodes": 2, "gpus": 4, "node_selector": {"pool": "spot"},
    "tolerations": [{"key": "spot", "operator": "Exists", "tolerationSeconds": 60}],
}  # fmt: skip


def settings(**changes: object) -> TrainJobSettings:
    return from_yaml(TrainJobSettings, yaml.safe_dump(yaml.safe_load(SETTINGS) | changes))


def spec(script: str = "true", lineage: dict[str, str] | None = None, **changes: object) -> TrainJobSpec:
    return TrainJobSpec(
        name=NAME, settings=settings(**changes), command=("sh", "-c", script),
        environment={"BEBYGAN_IMAGE": "registry.invalid/torch@sha256:1234"}, lineage=lineage or {},
    )  # fmt: skip


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server that this process's kubeconfig names; nobody plays the controllers."""
    monkeypatch.setattr(trainjob, "_SECONDS_BETWEEN_LOOKS", 0.05)
    with ApiServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "kubeconfig")))
        yield running


@pytest.fixture
def controllers(server: ApiServer, tmp_path: Path) -> Iterator[Controllers]:
    """Trainer, JobSet and Job controllers that run pods as processes."""
    with Controllers(server, tmp_path) as running:
        yield running


class Watcher(threading.Thread):
    """Runs a training in a thread, so that the test can play the cluster meanwhile."""

    def __init__(self, wanted: TrainJobSpec) -> None:
        super().__init__(daemon=True)
        self.wanted = wanted
        self.lines: list[str] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            run_trainjob(self.wanted, self.lines.append)
        except BaseException as error:  # noqa: BLE001 - for the test to see
            self.error = error

    def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, (self.lines, self.error)
            time.sleep(0.01)

    def finish(self) -> list[str]:
        self.join(60)
        assert not self.is_alive()
        if self.error:
            raise self.error
        return self.lines


def test_the_same_training_has_the_same_name_and_another_has_another() -> None:
    assert trainjob_name("a", "b") == trainjob_name("a", "b")
    assert len({trainjob_name("a", "b"), trainjob_name("ab"), trainjob_name("b", "a"), trainjob_name("a")}) == 4
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", NAME)
    assert len(f"{NAME}-node-0-999-abcde") <= 63


@pytest.mark.parametrize("changes", [{}, GPUS])
def test_a_trainjob_is_what_trainer_and_kubernetes_take(changes: dict[str, Any]) -> None:
    body = manifest(spec(lineage={"KFP_RUN_ID": "run 1"}, **changes))
    assert faults_of("TrainJob", body) == []
    job = job_of(yaml.safe_load(RUNTIME.read_text()), body)
    kubernetes_validate.validate(job, "1.34", strict=True)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == changes.get("gpus")
    assert pod.get("nodeSelector") == changes.get("node_selector")
    assert pod.get("tolerations", []) == changes.get("tolerations", [])
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert {"name": "volume", "persistentVolumeClaim": {"claimName": "bebygan-volume"}} in pod["volumes"]


def test_secrets_are_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-a-bucket")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-password-of-mlflow")
    body = manifest(spec())
    assert "a-secret-of-a-bucket" not in str(body)
    assert "a-password-of-mlflow" not in str(body)
    sources = {each["name"]: each["valueFrom"] for each in body["spec"]["trainer"]["env"] if "valueFrom" in each}
    assert sources["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"]["name"] == "bebygan-s3"
    assert sources["MLFLOW_TRACKING_PASSWORD"]["secretKeyRef"]["name"] == "bebygan-mlflow"
    assert sources["MLFLOW_TRACKING_URI"]["configMapKeyRef"]["name"] == "bebygan"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": 1}, r"there is no parameter gpu; did you mean gpus\?"),
        ({"nodes": 0}, r"parameter nodes: .*greater than or equal to 1.*"),
        ({"memory": "8 GB"}, r"parameter memory: .*"),
        ({"hours": 0}, r"parameter hours: .*"),
        ({"image": ""}, r"parameter image: .*"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**change)


def test_the_runtime_is_what_trainer_takes_and_restricted() -> None:
    runtime = yaml.safe_load(RUNTIME.read_text())
    assert faults_of("TrainingRuntime", runtime) == []
    [replicated] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", **replicated["template"]}
    job["metadata"] = {**job["metadata"], "name": "node"}
    kubernetes_validate.validate(job, "1.34", strict=True)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    # What Job's podFailurePolicy asks for.
    assert (pod["restartPolicy"], job["spec"]["podReplacementPolicy"], job["spec"]["backoffLimit"]) == (
        "Never", "Failed", 0,
    )  # fmt: skip


def test_a_training_is_run_to_its_end_and_its_log_is_shown(controllers: Controllers, server: ApiServer) -> None:
    controllers.sources = {
        "bebygan": {"MLFLOW_TRACKING_URI": "http://mlflow"},
        "bebygan-s3": {"AWS_ACCESS_KEY_ID": "k"},
    }
    lines = Watcher(
        spec('echo "$MLFLOW_TRACKING_URI $AWS_ACCESS_KEY_ID ${AWS_SECRET_ACCESS_KEY-none} $KFP_RUN_ID"; echo end >&2',
             lineage={"KFP_RUN_ID": "run-1"})
    ).finish()  # fmt: skip
    assert lines[0].startswith(f"TrainJob team/{NAME} started")
    assert lines[2:] == ["http://mlflow k none run-1", "end", f"TrainJob team/{NAME} is complete"]
    assert len(server.created) == 1


def test_each_node_is_told_its_place_and_only_the_first_ones_log_is_shown(controllers: Controllers) -> None:
    script = 'echo "node $PET_NODE_RANK of $PET_NNODES, $PET_NPROC_PER_NODE processes"'
    lines = Watcher(spec(script, nodes=3, gpus=2)).finish()
    assert [line for line in lines if line.startswith("node ")] == ["node 0 of 3, 2 processes"]
    assert controllers.starts == 1


def test_the_log_is_whole_and_in_order_however_often_its_line_breaks(server: ApiServer) -> None:
    watcher = Watcher(spec())
    server.wait_until(lambda: server.created)
    pod = server.add_pod(NAME)
    pod.run()
    said = []
    for number in range(600):
        # Some lines are alike, as those of a progress bar may be.
        said.append(f"line {number}" if number % 3 else "the same line")
        pod.say(said[-1])
        if number % 100 == 50:
            seen = len(watcher.lines)
            watcher.until(lambda seen=seen: len(watcher.lines) > seen)
            server.break_lines()
    pod.end(0)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    assert watcher.finish()[2:-1] == said
    assert server.broken_lines >= 3


def test_an_api_server_that_is_away_for_a_while_is_waited_for(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = Watcher(spec())
    server.wait_until(lambda: server.created)
    pod = server.add_pod(NAME)
    pod.run()
    pod.say("before")
    watcher.until(lambda: "before" in watcher.lines)
    with server.away():
        pod.say("meanwhile")
        time.sleep(1.5)
    pod.say("after")
    watcher.until(lambda: "after" in watcher.lines)
    pod.end(0)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    assert watcher.finish()[2:-1] == ["before", "meanwhile", "after"]
    assert "does not answer" in caplog.text


def test_an_api_server_that_stays_away_ends_the_wait_and_not_the_training(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob, "_SECONDS_OF_ABSENCE", 1.0)
    watcher = Watcher(spec())
    server.wait_until(lambda: server.created)
    with server.away(), pytest.raises(ServiceError, match=r"API server .* does not answer .* goes on meanwhile"):
        watcher.finish()


def test_an_api_server_that_never_answered_is_named_soon(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainjob, "_SECONDS_TO_ANSWER", 1.0)
    with server.away():
        started = time.monotonic()
        with pytest.raises(ServiceError, match=rf"API server http://.*:{server.port} does not answer .*refused"):
            run_trainjob(spec(), print)
        assert time.monotonic() - started < 10


def test_no_cluster_at_all_is_a_parameter_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"no cluster to train on: .* set KUBECONFIG"):
        run_trainjob(spec(), print)


def test_a_server_without_tls_is_told_from_one_that_is_away(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig", "https")))
    with pytest.raises(ServiceError, match=r"https://127\.0\.0\.1:\d+ is not trusted or does not speak TLS"):
        run_trainjob(spec(), print)


@pytest.mark.parametrize(("status", "told"), [(200, "a page"), (302, "302 Found"), (405, "405 Method Not Allowed")])
def test_a_server_that_is_none_of_kubernetes_is_told(server: ApiServer, status: int, told: str) -> None:
    class LoginPage(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

        def log_message(self, *_: object) -> None:
            return

    with server.away(), ThreadingHTTPServer(("127.0.0.1", server.port), LoginPage) as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with pytest.raises(ServiceError, match=rf"does not answer as Kubernetes' .* \({told}\): correct its address"):
            run_trainjob(spec(), print)
        other.shutdown()


def test_in_a_pod_the_pods_own_cluster_account_and_namespace_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, authority = loopback_certificate(tmp_path)
    token, namespace = tmp_path / "token", tmp_path / "namespace"
    token.write_text(TOKEN)
    namespace.write_text("team\n")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setattr(trainjob, "_OWN_NAMESPACE", namespace)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with ApiServer(certificate) as server, Controllers(server, tmp_path):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        assert "in the cluster" in Watcher(spec("echo in the cluster")).finish()
        token.write_text("a-token-that-has-expired")
        with pytest.raises(ServiceError, match="renew the token"):
            run_trainjob(spec(), print)


def test_a_busy_api_server_is_asked_again(controllers: Controllers, server: ApiServer) -> None:
    server.fail("POST", TRAINJOBS, Refused(429, "TooManyRequests", "busy"), times=2)
    server.fail("GET", TRAINJOBS, Refused(500, "InternalError", "busy"), times=1)
    server.fail("GET", f"{PODS}$", Refused(503, "ServiceUnavailable", "busy"), times=1)
    assert Watcher(spec("echo it ran")).finish()[-2] == "it ran"
    assert len(server.created) == controllers.starts == 1


def forbidden(verb: str, resource: str) -> Refused:
    return Refused(403, "Forbidden", f'User "system:serviceaccount:team:x" cannot {verb} resource "{resource}"')


@pytest.mark.parametrize(
    ("method", "answer", "kind", "message"),
    [
        ("POST", Refused(401, "Unauthorized", "Unauthorized"), ServiceError, r"does not know us .*: renew the token"),
        (
            "POST", forbidden("create", "trainjobs"), ServiceError,
            r"may not create trainjobs\.trainer\.kubeflow\.org in namespace team: let a Role .*",
        ),
        ("GET", forbidden("get", "trainjobs"), ServiceError, r"may not get trainjobs\.trainer\.kubeflow\.org .*Role.*"),
        ("WATCH", forbidden("watch", "trainjobs"), ServiceError, r"may not watch trainjobs.*Role.*"),
        (
            "POST", Refused(404, "NotFound", "the server could not find the requested resource"), ServiceError,
            r"has no trainjobs\.trainer\.kubeflow\.org/v1alpha1 .*: install Kubeflow Trainer v2.*",
        ),
        ("POST", Refused(422, "Invalid", "invalid: numNodes"), ConfigError, r"refuses to create .* invalid: numNodes"),
        (
            "POST", Refused(403, "Forbidden", "exceeded quota: gpus, requested: 8"), ConfigError,
            r"refuses to create the TrainJob: exceeded quota.*",
        ),
    ],
)  # fmt: skip
def test_what_the_api_server_refuses_is_said_in_one_line_with_what_to_do(
    method: str, answer: Refused, kind: type[Exception], message: str, server: ApiServer
) -> None:
    server.fail(method, TRAINJOBS, answer)
    with pytest.raises(kind, match=message) as caught:
        Watcher(spec()).finish()
    assert "\n" not in str(caught.value)


def test_a_runtime_that_is_missing_is_named(server: ApiServer) -> None:
    with pytest.raises(ConfigError, match=r"admission webhook .* TrainingRuntime 'other' not found"):
        run_trainjob(spec(runtime="other"), print)
    assert not server.created


@pytest.mark.parametrize(("path", "verb"), [(f"{PODS}/.*/log", "get pods/log"), (f"{PODS}$", "list pods")])
def test_pods_or_logs_that_may_not_be_read_hide_the_log_and_not_the_result(
    path: str, verb: str, controllers: Controllers, server: ApiServer
) -> None:
    server.fail("GET", path, forbidden(*verb.split(" ")))
    lines = Watcher(spec("sleep 0.5; echo hidden")).finish()
    assert controllers.starts == 1
    assert len([line for line in lines if f"may not {verb} in namespace team" in line]) == 1
    assert "hidden" not in lines
    assert lines[-1] == f"TrainJob team/{NAME} is complete"


def test_a_training_that_gets_no_pod_says_so_once(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainjob, "_SECONDS_WITHOUT_A_POD", 0.1)
    watcher = Watcher(spec())
    watcher.until(lambda: len(watcher.lines) == 2)
    time.sleep(0.3)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    assert watcher.finish()[1:-1] == [f"no pod yet: kubectl -n team describe trainjob,jobset {NAME} says why"]


def test_watches_that_are_refused_or_outdated_are_made_up_for_by_looking(server: ApiServer) -> None:
    server.fail("WATCH", TRAINJOBS, Refused(500, "InternalError", "no watches today"), times=3)
    watcher = Watcher(spec())
    server.wait_until(lambda: server.requests.count(("WATCH", TRAINJOBS)) > 3)
    server.forget_history()
    server.break_lines()
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    watcher.finish()


@pytest.mark.parametrize("index", [0, 1])
def test_a_pod_of_whatever_node_that_cannot_start_says_why_once(server: ApiServer, index: int) -> None:
    watcher = Watcher(spec(nodes=2))
    server.wait_until(lambda: server.created)
    server.add_pod(NAME, index).condition("PodScheduled", "False", "Unschedulable", "0/3 nodes have a GPU")
    watcher.until(lambda: len(watcher.lines) == 2)
    server.change(NAME, suspend=True)
    watcher.until(lambda: len(watcher.lines) == 3)
    time.sleep(0.3)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    _, trouble, suspended, _ = watcher.finish()
    assert trouble.endswith("finds no place (Unschedulable: 0/3 nodes have a GPU)")
    assert suspended == f"TrainJob team/{NAME} is suspended: it waits in a queue"


WATCH = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from components.cli import report_errors
from components.train.trainjob import *
from components.config import from_yaml
spec = TrainJobSpec(name={NAME!r}, settings=from_yaml(TrainJobSettings, {SETTINGS!r}),
    command=("sh", "-c", sys.argv[1]), lineage={{}},
    environment={{"BEBYGAN_IMAGE": "registry.invalid/torch@sha256:1234"}})
sys.exit(report_errors(lambda: run_trainjob(spec, lambda line: print(line, flush=True))))
"""


@pytest.mark.parametrize(("sig", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_whoever_comes_after_a_watcher_that_died_goes_on_with_its_training(
    sig: signal.Signals, code: int, controllers: Controllers, server: ApiServer, tmp_path: Path
) -> None:
    script = f"echo begin; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo end"
    process = subprocess.Popen(
        [sys.executable, "-c", WATCH, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout
    assert "begin\n" in iter(process.stdout.readline, "")
    process.send_signal(sig)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    if sig == signal.SIGTERM:
        assert error == f"error: stopped on request; TrainJob {NAME} goes on, and running again goes on with it\n"

    watcher = Watcher(spec(script))
    watcher.until(lambda: "begin" in watcher.lines)
    (tmp_path / "go").touch()
    lines = watcher.finish()
    assert lines[0] == f"TrainJob team/{NAME} runs already; going on with it"
    assert lines[2:4] == ["begin", "end"]
    assert len(server.created) == controllers.starts == 1


def test_another_run_that_asks_for_the_same_training_shares_it(server: ApiServer) -> None:
    first = Watcher(spec(lineage={"KFP_RUN_ID": "run-1"}))
    server.wait_until(lambda: server.created)
    second = Watcher(spec(lineage={"KFP_RUN_ID": "run-2"}))
    second.until(lambda: second.lines)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    assert first.finish()[0] != second.finish()[0] == f"TrainJob team/{NAME} runs already; going on with it"
    assert len(server.created) == 1


def test_the_same_training_with_other_settings_is_refused_while_it_runs(server: ApiServer) -> None:
    Watcher(spec())
    server.wait_until(lambda: server.created)
    with pytest.raises(ConfigError, match=r"otherwise: node_selector\.pool unset -> spot, nodes 1 -> 2; wait"):
        run_trainjob(spec(nodes=2, node_selector={"pool": "spot"}), print)
    assert len(server.created) == 1


def test_a_trainjob_of_somebody_else_is_left_alone(server: ApiServer) -> None:
    Watcher(spec())
    server.wait_until(lambda: server.created)
    del server.trainjobs[NAME]["metadata"]["annotations"]
    with pytest.raises(ConfigError, match="is not of this pipeline"):
        run_trainjob(spec(), print)


def test_a_trainjob_that_somebody_deletes_is_missed(server: ApiServer) -> None:
    watcher = Watcher(spec())
    server.wait_until(lambda: server.created)
    server.delete(NAME)
    with pytest.raises(ServiceError, match="somebody deleted TrainJob"):
        watcher.finish()


def test_an_answer_that_got_lost_starts_no_second_training(controllers: Controllers, server: ApiServer) -> None:
    # The TrainJob is there, but whoever asked for it saw the line break.
    accept = server.accept

    def accept_and_break(body: dict[str, Any]) -> dict[str, Any]:
        server.accept = accept  # type: ignore[method-assign]
        server.on_create(accept(body))
        raise ConnectionResetError

    server.accept = accept_and_break  # type: ignore[method-assign]
    lines = Watcher(spec("sleep 1")).finish()
    assert lines[0] == f"TrainJob team/{NAME} runs already; going on with it"
    assert controllers.starts == 1


def test_lost_machines_and_obeyed_stop_requests_are_made_up_for_without_limit(
    controllers: Controllers, tmp_path: Path
) -> None:
    script = f"echo >> {tmp_path}/starts; n=$(wc -l < {tmp_path}/starts); echo start $n; [ $n -gt 5 ] || exit 75"
    lines = Watcher(spec(script)).finish()
    assert controllers.starts == 6
    assert lines[-2] == "start 6"


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_reclaimed_machine_is_made_up_for(
    sig: signal.Signals, controllers: Controllers, server: ApiServer, tmp_path: Path
) -> None:
    file = f"{tmp_path}/again-$PET_NODE_RANK"
    watcher = Watcher(
        spec(f"echo begin; if [ -e {file} ]; then echo end; else touch {file}; exec sleep 60; fi", nodes=2)
    )
    watcher.until(lambda: (tmp_path / "again-1").exists() and "begin" in watcher.lines)
    controllers.evict(server.pods[1], sig)
    lines = watcher.finish()
    assert controllers.starts == 2
    assert controllers.actions == ["RestartJobSetAndIgnoreMaxRestarts"]
    assert [line for line in lines if not line.startswith(("log of", "Train"))] == ["begin", "begin", "end"]


@pytest.mark.parametrize(
    ("code", "starts", "kind"), [(2, 1, ConfigError), (3, 1, DataError), (4, 4, ServiceError), (1, 4, RuntimeError)]
)
def test_a_real_failure_ends_a_training_with_its_own_error(
    code: int, starts: int, kind: type[Exception], controllers: Controllers
) -> None:
    script = f"echo working; echo 'error: what went wrong'; echo and so on; exit {code}"
    with pytest.raises(kind, match=rf"exit code {code}: what went wrong; kubectl -n team describe trainjob") as caught:
        Watcher(spec(script)).finish()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert controllers.starts == starts


@pytest.mark.parametrize(("echo", "reason"), [(75, None), (143, None), (137, "ContainerStatusUnknown")])
def test_the_error_of_the_node_that_failed_is_told_and_not_its_echo(
    echo: int, reason: str | None, server: ApiServer
) -> None:
    watcher = Watcher(spec(nodes=3))
    server.wait_until(lambda: server.created)
    for index, (code, why) in enumerate(((echo, reason), (5, None), (echo, reason))):
        pod = server.add_pod(NAME, index)
        pod.run()
        pod.say(f"error: of node {index}")
        pod.end(code, why)
    server.end(NAME, "Failed", "FailJobSetAction", "failed")
    with pytest.raises(WeightsError, match=rf"pod {NAME}-node-0-1-\w+ ended with exit code 5: of node 1; kubectl"):
        watcher.finish()


def test_a_training_that_failed_is_started_again_by_whoever_asks_next(
    controllers: Controllers, server: ApiServer, tmp_path: Path
) -> None:
    script = f"[ -e {tmp_path}/mended ] || exit 3; echo mended"
    with pytest.raises(DataError):
        Watcher(spec(script)).finish()
    (tmp_path / "mended").touch()
    lines = Watcher(spec(script)).finish()
    assert lines[0].startswith(f"an earlier TrainJob team/{NAME} ended (FailJobSetAction: ")
    assert "mended" in lines
    assert len(server.created) == controllers.starts == 2
    assert [pod for pod in server.pods if not pod.ended] == []


def test_too_little_time_or_memory_is_said(server: ApiServer) -> None:
    watcher = Watcher(spec())
    server.wait_until(lambda: server.created)
    server.end(NAME, "Failed", "DeadlineExceeded", "TrainJob exceeded its activeDeadlineSeconds")
    with pytest.raises(ConfigError, match="it took longer than its hours"):
        watcher.finish()
    watcher = Watcher(spec())
    server.wait_until(lambda: len(server.created) == 2)
    pod = server.add_pod(NAME)
    pod.run()
    pod.end(137, "OOMKilled")
    server.end(NAME, "Failed", "ReachedMaxRestarts", "failed")
    with pytest.raises(ConfigError, match=r"took more memory than it may: allow more, or lower train\.batch"):
        watcher.finish()


def test_every_error_that_a_training_can_end_with_is_known_by_its_code() -> None:
    codes = {kind.exit_code for kind in BebyganError.__subclasses__()}
    runtime = yaml.safe_load(RUNTIME.read_text())
    [replicated] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    rules = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
    assert {code for rule in rules[1:] for code in rule["onExitCodes"]["values"]} == codes - {4, 6}
