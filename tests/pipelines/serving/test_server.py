"""A real server in front of a real registry."""

import json
import shutil
import signal
import threading
import time

from PIL import Image

from benchmarks.serving import Registry, served
from tests.bebygan.imaging.test_picture_files import bomb
from tests.pipelines.serving.asking import RGB, asked, file_of, pixels, until


def test_images_are_answered_in_their_kind_and_what_is_none_is_refused(registry: Registry) -> None:
    registry.promote(registry.add(1))
    with served(registry.workspace, "--max-bytes", "100kB", "--max-pixels", "0.01", "--queue", "3") as (port, server):
        status, headers, content = asked(port, "POST", "/upscale", file_of(Image.fromarray(RGB)))
        assert (status, headers["content-type"], headers["x-model-version"]) == (200, "image/png", "1")
        assert content == registry.answer("1", file_of(Image.fromarray(RGB)))
        _, headers, content = asked(
            port, "POST", "/", file_of(Image.fromarray(RGB), "JPEG"), {"Content-Type": "image/jpeg"}
        )
        assert (headers["content-type"], pixels(content).shape) == ("image/jpeg", (64, 48, 3))
        _, headers, content = asked(port, "POST", "/?format=webp", file_of(Image.fromarray(RGB[..., 0])))
        assert (headers["content-type"], pixels(content).shape[:2]) == ("image/webp", (64, 48))

        bomb(registry.workspace / "bomb.png")
        small = file_of(Image.fromarray(RGB))
        for path, body, kind, wanted, said in (
            ("/", file_of(Image.new("RGB", (200, 100))), "image/png", 413, "the image has 20000 pixels, and 10000 are"),
            ("/", (registry.workspace / "bomb.png").read_bytes(), "image/png", 413, "pixels that are allowed"),
            ("/", bytes(100_001), "image/png", 413, "the body has more than the 100000 bytes"),
            ("/", small, "text/plain", 415, "send the bytes of an image"),
            ("/", b"no image", "image/png", 415, "the body is no JPEG, PNG"),
            ("/", b"", "image/png", 415, "the body is no JPEG, PNG"),
            ("/", small[:200], "image/png", 400, "cannot read the image"),
            ("/?format=exe", small, "image/png", 400, "format must be one of jpg"),
        ):
            status, _, content = asked(port, "POST", path, body, {"Content-Type": kind})
            assert (status, said in content.decode()) == (wanted, True), content
            assert content.count(b"\n") == 1
        assert asked(port, "POST", "/elsewhere", b"x")[0] == 404
        assert asked(port, "GET", "/upscale")[0] == 405

        assert asked(port, "GET", "/healthz")[2] == b"ok\n"
        assert asked(port, "GET", "/readyz")[2] == b"ok\n"
        facts = json.loads(asked(port, "GET", "/version")[2])
        assert (facts["model"], facts["version"], facts["fault"]) == ("bebygan", "1", None)
        assert b"four times as large" in asked(port, "GET", "/")[2].lower()
        metrics = asked(port, "GET", "/metrics")[2].decode()
        assert 'bebygan_requests_total{code="200"} 3\n' in metrics
        assert 'bebygan_requests_total{code="413"} 3\n' in metrics
        assert 'bebygan_model_info{model="bebygan",version="1"} 1\n' in metrics

        # More at once than may wait.
        large = file_of(Image.fromarray(RGB.repeat(8, 0).repeat(6, 1)[:100, :70]))
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(asked(port, "POST", "/", large)[0])) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) <= {200, 429}
        assert found.count(200) >= 3

        # Requests that were accepted are answered after SIGTERM.
        found.clear()
        threads = [threading.Thread(target=lambda: found.append(asked(port, "POST", "/", large)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while b"bebygan_waiting_requests 0" in asked(port, "GET", "/metrics")[2] and time.monotonic() < deadline:
            if len(found) == len(threads):
                break
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.wait(30) in (0, -signal.SIGTERM)
        assert found == [200, 200]


def test_broken_versions_are_not_served_and_named(registry: Registry) -> None:
    good = [registry.add(1), registry.add(2)]
    tampered = registry.add(3)
    registry.tamper(tampered)
    lost = registry.add(4)
    shutil.rmtree(registry.stored[lost].parent)
    registry.promote(good[0])
    with served(registry.workspace, "--poll", "0.2") as (port, server):

        def facts() -> dict[str, str]:
            return dict(json.loads(asked(port, "GET", "/version")[2]))

        for broken, said in ((tampered, f"models:/bebygan/{tampered} is damaged"), (lost, "fetching the weights of")):
            registry.promote(broken)
            until(lambda said=said: said in str(facts()["fault"]))  # type: ignore[misc]
            assert facts()["version"] == good[0]
        ready, _, said_so = asked(port, "GET", "/readyz")
        assert (ready, said_so.startswith(b"fetching the weights of")) == (200, True)
        registry.promote(good[1])
        until(lambda: facts()["version"] == good[1])
        assert facts()["fault"] is None
        metrics = asked(port, "GET", "/metrics")[2].decode()
        assert server.poll() is None
    assert "bebygan_model_switches_total 1\n" in metrics
    assert "bebygan_model_refused_total 1\n" in metrics
    log = (registry.workspace / "log").read_text()
    assert f"models:/bebygan/{tampered} is damaged" in log
    assert f"models:/bebygan/{good[0]} is served on" in log
