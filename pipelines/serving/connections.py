"""Connections whose client keeps the server waiting, and the threads that work for it."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS_TO_SEND = 60.0
"""For a request's body. A connection is closed if its client owes anything else for this time, or up to twice it."""
P = ParamSpec("P")
T = TypeVar("T")


class Protocol(H11Protocol):
    """HTTP/1.1 that closes connections of clients that send or read too slowly; uvicorn waits for them forever."""

    # With the signature of uvicorn, which narrows that of asyncio.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch a connection."""
        super().connection_made(transport)
        self._watch((None, ""))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        super().connection_lost(exc)
        self._next.cancel()

    def _owed(self) -> str:
        """Return what the server waits for; empty if the client waits, or nobody does between two requests."""
        if self.transport.get_write_buffer_size():
            return "taking the answer"
        if self.cycle is not None and not self.cycle.response_complete:
            return ""
        if self.conn.their_state is h11.SEND_BODY:
            return "the rest of a body that was refused"
        return "" if self.timeout_keep_alive_task else "a request"

    def _watch(self, before: tuple[object, str]) -> None:
        now = self.cycle, self._owed()
        if now[1] and now == before:
            self.transport.abort()
            return
        self._next = self.loop.call_later(SECONDS_TO_SEND, self._watch, now)


class Worker:
    """A thread that calls functions one after another, and does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def call(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Return or raise what a function returns or raises."""
        future: Future[T] = Future()
        self._calls.put((future, partial(function, *arguments, **named)))
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            _complete(*self._calls.get())


def _complete(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - the caller receives it
        future.set_exception(error)
