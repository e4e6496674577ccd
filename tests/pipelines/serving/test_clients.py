"""Clients that are slow, that leave, or that ask for more than there is."""

import http.client
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from PIL import Image

from benchmarks.serving import Registry, served
from pipelines.serving import connections, server
from tests.pipelines.serving.asking import asked, file_of, until
from tests.pipelines.serving.conftest import Running

Ready = Callable[..., Running]


def raw(running: Running, sent: bytes, buffer: int | None = None) -> socket.socket:
    """Open a connection and send bytes."""
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", running.port))
    connection.settimeout(60)
    connection.sendall(sent)
    return connection


def posted(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % size + body


def counted(running: Running, code: int) -> int:
    found = re.search(rf'code="{code}"}} (\d+)', asked(running.port, "GET", "/metrics")[2].decode())
    return int(found[1]) if found else 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """Upscaling waits for the event, and notes the heights of the images."""
    opened, begun = threading.Event(), []

    def wait(_: object, rgb: Any, **__: object) -> Any:
        begun.append(len(rgb))
        assert opened.wait(60)
        return rgb.repeat(4, 0).repeat(4, 1)

    monkeypatch.setattr(server, "upscale_fast", wait)
    yield opened, begun
    opened.set()


def in_thread(found: list[int], port: int, image: bytes) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.append(asked(port, "POST", "/", image)[0]))
    thread.start()
    return thread


def test_clients_that_send_slowly_keep_nobody_waiting_and_are_refused_in_the_end(
    ready: Ready, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SECONDS_TO_SEND", 2.0)
    running = ready()
    with ExitStack() as stack:
        slow = [stack.enter_context(raw(running, posted(image[:-1], len(image)))) for _ in range(5)]
        assert asked(running.port, "POST", "/", image)[0] == 200
        for connection in slow:
            answer = b"".join(iter(lambda connection=connection: connection.recv(4096), b""))  # type: ignore[misc]
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert answer.endswith(b"\r\n\r\nthe body took longer than 2 s\n")
    assert counted(running, 408) == 5


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nHost"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_client_that_does_not_complete_a_request_is_disconnected(
    sent: bytes, before: int, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SECONDS_TO_SEND", 0.3)
    monkeypatch.setattr(server, "_SECONDS_BETWEEN_REQUESTS", 1)
    with raw(ready(), b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * before) as connection:
        answer = connection.recv(4096) if before else b""
        connection.sendall(sent)
        with suppress(ConnectionResetError):
            while part := connection.recv(4096):
                answer += part
    assert answer.startswith(b"HTTP/1.1 200 OK" * before)
    assert answer.count(b"HTTP/1.1") == before


def test_a_client_that_does_not_take_its_answer_is_disconnected(
    ready: Ready, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_upscaled", lambda *_: bytes(96_000_000))
    monkeypatch.setattr(connections, "SECONDS_TO_SEND", 0.5)
    running = ready()
    with raw(running, posted(image), buffer=4096):
        # The client reads nothing, so that its connection ends only if the server ends it.
        until(lambda: not running.program.server_state.connections and counted(running, 200) == 1)


def test_a_client_that_leaves_in_the_middle_of_its_image_is_counted_and_harms_nobody(
    ready: Ready, image: bytes
) -> None:
    running = ready()
    raw(running, posted(image[:-10], len(image))).close()
    until(lambda: counted(running, 499) == 1)
    assert asked(running.port, "POST", "/", image)[0] == 200


def test_the_image_of_a_client_that_left_while_it_waited_is_not_computed(
    ready: Ready, gate: tuple[threading.Event, list[int]]
) -> None:
    opened, begun = gate
    running, found = ready(), []
    first = in_thread(found, running.port, file_of(Image.new("RGB", (9, 11))))
    until(lambda: begun == [11])
    waiting = raw(running, posted(file_of(Image.new("RGB", (9, 22)))))
    until(lambda: b"bebygan_waiting_requests 2" in asked(running.port, "GET", "/metrics")[2])
    waiting.close()
    until(lambda: len(running.program.server_state.connections) == 1)
    opened.set()
    first.join()
    until(lambda: counted(running, 499) == 1)
    assert (found, begun) == ([200], [11])


def test_more_images_than_may_wait_are_refused_and_told_when_to_come_back(
    ready: Ready, image: bytes, gate: tuple[threading.Event, list[int]]
) -> None:
    opened, begun = gate
    running, found = ready(waiting=2), []
    threads = [in_thread(found, running.port, image) for _ in range(2)]
    until(lambda: b"bebygan_waiting_requests 2" in asked(running.port, "GET", "/metrics")[2])
    # Without its body: it is not read.
    with raw(running, posted(b"", len(image))) as connection:
        answer = b""
        while not answer.endswith(b"later\n"):
            answer += connection.recv(4096)
    head, _, message = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 2" in head.lower()
    assert message == b"2 images are waiting: try again later\n"
    opened.set()
    for thread in threads:
        thread.join()
    assert (found, len(begun)) == ([200, 200], 2)


def test_bodies_that_arrive_take_no_more_memory_than_the_queue_may(ready: Ready) -> None:
    running = ready(bytes=1000, waiting=2)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(raw(running, posted(bytes(900), 950)))
        until(lambda: counted(running, 429) == 1)
    until(lambda: counted(running, 499) == 2)


def test_a_body_without_a_length_is_limited_as_any(ready: Ready, image: bytes) -> None:
    running = ready(bytes=2000)
    for size, status in ((len(image), 200), (100_000, 413)):
        body = (image + bytes(size))[:size]
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        parts = (body[at : at + 500] for at in range(0, size, 500))
        connection.request("POST", "/", parts, {"Content-Type": "image/png"}, encode_chunked=True)
        assert connection.getresponse().status == status
        connection.close()


def test_a_connection_serves_one_request_after_another(ready: Ready, image: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", ready().port, timeout=20)
    first = None
    for method, path, status in (
        ("POST", "/upscale", 200), ("HEAD", "/", 200), ("HEAD", "/healthz", 200), ("POST", "/", 200),
        ("GET", "/nowhere", 404), ("PUT", "/upscale", 405), ("POST", "/?format=gif", 400), ("POST", "/", 200),
    ):  # fmt: skip
        connection.request(method, path, image if method == "POST" else None)
        response = connection.getresponse()
        content = response.read()
        assert response.status == status
        assert bool(content) == (method != "HEAD")
        first = first or connection.sock
        assert connection.sock is first
    connection.close()


def test_before_the_first_promotion_images_are_refused_and_after_it_answered(
    start: Callable[[], Running], registry: Registry, image: bytes
) -> None:
    running = start()
    until(lambda: "no champion" in str(running.server.follower.fault))
    for method, path in (("GET", "/readyz"), ("GET", "/version"), ("POST", "/upscale")):
        status, _, content = asked(running.port, method, path, image if method == "POST" else b"")
        assert (status, b"the model bebygan has no champion in this registry" in content) == (503, True)
    assert asked(running.port, "POST", "/", image)[1]["retry-after"] == "2"
    assert asked(running.port, "GET", "/healthz")[0] == 200
    assert b"bebygan_model_fault 1" in asked(running.port, "GET", "/metrics")[2]
    registry.promote(registry.add(1))
    until(lambda: asked(running.port, "GET", "/readyz")[0] == 200)
    assert asked(running.port, "POST", "/", image)[2] == registry.answer("1", image)


def test_prometheus_reads_the_metrics(ready: Ready, image: bytes) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    running = ready()
    for body in (image, image, b"no image"):
        asked(running.port, "POST", "/", body)
    _, headers, text = asked(running.port, "GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    samples = {(each.name, *each.labels.values()): each.value for each in families["bebygan_request_seconds"].samples}
    assert samples["bebygan_request_seconds_bucket", "+Inf"] == samples["bebygan_request_seconds_count",] == 3
    assert 0 < samples["bebygan_request_seconds_sum",] < 60
    ordered = [value for (name, *_), value in samples.items() if name.endswith("bucket")]
    assert ordered == sorted(ordered)
    by_code = {each.labels["code"]: each.value for each in families["bebygan_requests"].samples}
    assert by_code == {"200": 2, "415": 1}
    assert {family.type for family in families.values()} == {"counter", "gauge", "histogram"}


@pytest.mark.usefixtures("gate")
def test_when_the_time_to_end_is_over_what_is_left_is_refused(
    ready: Ready, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_END", 1)
    running, found = ready(), []
    threads = [in_thread(found, running.port, image) for _ in range(2)]
    until(lambda: b"bebygan_waiting_requests 2" in asked(running.port, "GET", "/metrics")[2])
    began = time.monotonic()
    running.program.should_exit = True
    running.thread.join(20)
    assert time.monotonic() - began < 10, "it does not wait for what is computed"
    for thread in threads:
        thread.join()
    assert found == [503, 503]


def test_a_registry_that_never_answers_holds_up_neither_start_nor_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, image: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with served(registry.workspace, wait_for="healthz") as (port, process):
            silent.accept()
            assert asked(port, "GET", "/readyz")[0] == 503
            assert asked(port, "POST", "/", image)[0] == 503
            process.send_signal(signal.SIGINT)
            process.wait(10)
