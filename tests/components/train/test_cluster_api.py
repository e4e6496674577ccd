import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bebygan.errors import ConfigError, ServiceError
from components.train import trainjob_run
from components.train.cluster_api import Patience
from components.train.trainjob_run import run_trainjob
from tests.components.train.trainings import NAME, Watcher, forbidden, spec
from tests.standins.kubernetes import PODS, TOKEN, TRAINJOBS, ApiServer, Refused
from tests.standins.tls import loopback_certificate
from tests.standins.trainer import Controllers


def test_requests_are_repeated_while_the_api_server_is_unreachable(
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


def test_an_api_server_that_stays_unreachable_fails_the_launcher_and_not_the_training(server: ApiServer) -> None:
    watcher = Watcher(spec(), absence=1.0)
    server.wait_until(lambda: server.created)
    with server.away(), pytest.raises(ServiceError, match=r"API server .* does not answer .* keeps running"):
        watcher.finish()


def test_an_api_server_that_never_answered_fails_soon(server: ApiServer) -> None:
    with server.away():
        started = time.monotonic()
        with pytest.raises(ServiceError, match=rf"API server http://.*:{server.port} does not answer .*refused"):
            run_trainjob(spec(), print, Patience(first_answer=1.0))
        assert time.monotonic() - started < 10


def test_a_missing_cluster_raises_a_config_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"no cluster to train on: .* set KUBECONFIG"):
        run_trainjob(spec(), print)


def test_a_server_without_tls_raises_an_error_about_tls(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig", "https")))
    with pytest.raises(ServiceError, match=r"https://127\.0\.0\.1:\d+ is not trusted or does not speak TLS"):
        run_trainjob(spec(), print)


@pytest.mark.parametrize(("status", "told"), [(200, "a page"), (302, "302 Found"), (405, "405 Method Not Allowed")])
def test_the_error_names_a_server_that_is_not_kubernetes(server: ApiServer, status: int, told: str) -> None:
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
        with pytest.raises(
            ServiceError, match=rf"is no Kubernetes API server \(it answers {told}\): correct its address"
        ):
            run_trainjob(spec(), print)
        other.shutdown()


def test_a_pod_uses_its_own_cluster_account_and_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, authority = loopback_certificate(tmp_path)
    token, namespace = tmp_path / "token", tmp_path / "namespace"
    token.write_text(TOKEN)
    namespace.write_text("team\n")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setattr(trainjob_run, "_OWN_NAMESPACE", namespace)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with ApiServer(certificate) as server, Controllers(server, tmp_path):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        assert "in the cluster" in Watcher(spec("echo in the cluster")).finish()
        token.write_text("a-token-that-has-expired")
        with pytest.raises(ServiceError, match="renew it"):
            run_trainjob(spec(), print)


def test_requests_to_a_busy_api_server_are_repeated(controllers: Controllers, server: ApiServer) -> None:
    server.fail("POST", TRAINJOBS, Refused(429, "TooManyRequests", "busy"), times=2)
    server.fail("GET", TRAINJOBS, Refused(500, "InternalError", "busy"), times=1)
    server.fail("GET", f"{PODS}$", Refused(503, "ServiceUnavailable", "busy"), times=1)
    assert Watcher(spec("echo it ran")).finish()[-2] == "it ran"
    assert len(server.created) == controllers.starts == 1


@pytest.mark.parametrize(
    ("method", "answer", "kind", "message"),
    [
        ("POST", Refused(401, "Unauthorized", "Unauthorized"), ServiceError, r"does not accept our token .*: renew it"),
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
def test_a_rejected_request_raises_a_one_line_error(
    method: str, answer: Refused, kind: type[Exception], message: str, server: ApiServer
) -> None:
    server.fail(method, TRAINJOBS, answer)
    with pytest.raises(kind, match=message) as caught:
        Watcher(spec()).finish()
    assert "\n" not in str(caught.value)


def test_the_error_names_a_missing_runtime(server: ApiServer) -> None:
    with pytest.raises(ConfigError, match=r"admission webhook .* TrainingRuntime 'other' not found"):
        run_trainjob(spec(runtime="other"), print)
    assert not server.created


def test_the_end_of_a_training_is_detected_without_watches(server: ApiServer) -> None:
    server.fail("WATCH", TRAINJOBS, Refused(500, "InternalError", "no watches today"), times=3)
    watcher = Watcher(spec())
    server.wait_until(lambda: server.requests.count(("WATCH", TRAINJOBS)) > 3)
    server.forget_history()
    server.break_lines()
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    watcher.finish()


def test_requests_are_repeated_while_a_restarted_server_answers_403(server: ApiServer) -> None:
    """Like a server that loads its RBAC rules: the result and the log are complete."""
    watcher = Watcher(spec())
    server.wait_until(lambda: server.created)
    pod = server.add_pod(NAME)
    pod.run()
    pod.say("before")
    watcher.until(lambda: "before" in watcher.lines)
    server.wait_until(lambda: ("WATCH", TRAINJOBS) in server.requests)
    server.restart(2.0)
    pod.say("meanwhile")
    time.sleep(2.0)
    pod.say("after")
    watcher.until(lambda: "after" in watcher.lines)
    pod.end(0)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    assert watcher.finish()[2:-1] == ["before", "meanwhile", "after"]


def test_the_end_of_a_training_is_detected_after_a_restart_of_the_server(
    controllers: Controllers, server: ApiServer
) -> None:
    watcher = Watcher(spec("echo begin; sleep 1; echo end"))
    watcher.until(lambda: "begin" in watcher.lines)
    server.restart(2.0)
    lines = watcher.finish()
    assert lines[2:] == ["begin", "end", f"TrainJob team/{NAME} is complete"]
    assert controllers.starts == 1


def test_a_revoked_permission_fails_the_launcher(server: ApiServer) -> None:
    watcher = Watcher(spec(), refusal=0.5)
    server.wait_until(lambda: ("WATCH", TRAINJOBS) in server.requests)
    server.restart(1000)
    with pytest.raises(ServiceError, match=r"may not \w+ trainjobs\.trainer\.kubeflow\.org .*Role"):
        watcher.finish()


def test_a_trainjob_with_an_old_resource_version_is_watched_and_not_polled(server: ApiServer) -> None:
    Watcher(spec())
    server.wait_until(lambda: ("WATCH", TRAINJOBS) in server.requests)
    server.forget_history()
    earlier = server.requests.count(("WATCH", TRAINJOBS))
    attached = Watcher(spec())
    server.wait_until(lambda: server.requests.count(("WATCH", TRAINJOBS)) > earlier)
    time.sleep(0.5)
    # The first watcher, whose history is forgotten, may have to watch again, too.
    assert server.requests.count(("WATCH", TRAINJOBS)) <= earlier + 2
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    assert attached.finish()[-1] == f"TrainJob team/{NAME} is complete"
