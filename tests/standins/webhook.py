"""A chat's webhook: takes messages as JSON, after refusing as often as it is told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhook:
    """A webhook that runs."""

    address: str = ""
    taken: list[dict[str, str]] = field(default_factory=list)
    """Messages, the oldest first."""
    asked: int = 0
    """How often it was asked, refusals included."""
    refusals: list[int] = field(default_factory=list)
    """Codes that it will answer with before it takes a message."""


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Run a webhook for the length of the body."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.asked += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            code = hook.refusals.pop(0) if hook.refusals else 200
            if code == 200:
                assert self.headers["Content-Type"] == "application/json"
                hook.taken.append(json.loads(body))
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hook.address = f"http://127.0.0.1:{server.server_port}/a-secret-path"
        yield hook
        server.shutdown()
