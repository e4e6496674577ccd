"""The HTTP server: POST an image, get it four times as large."""

import argparse
import asyncio
import contextlib
import io
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bebygan.errors import ConfigError, DataError
from bebygan.imaging.picture_files import UPSCALED, WRITTEN, encoded, enlarged, read_picture
from bebygan.imaging.tiling import out_of_memory, upscale_fast
from components.tracking.address import use_registry
from pipelines.serving import connections
from pipelines.serving.connections import Worker
from pipelines.serving.following import Follower, Served

_PAGE = (Path(__file__).parent / "page.html").read_text()
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; connect-src 'self'; "
    "frame-ancestors 'none'"
)
_log = logging.getLogger(__name__)
_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif"}
"""What each format is answered with; all others with PNG."""
_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".tif": "image/tiff", ".avif": "image/avif"}
SECONDS_TO_END = 30
_SECONDS_BETWEEN_REQUESTS = 75
"""A connection stays open for longer than proxies keep theirs, which would else send a request into a closed one."""
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper limits of the histogram of seconds."""
_CLIENT_LEFT = 499


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    bytes: int
    pixels: int
    waiting: int
    """Images that wait or are computed at the same time. As many bodies of the largest size may be in memory."""


class RequestError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _checked(content: bytes, limits: Limits) -> tuple[str, int]:
    """Return the format of an image and its number of pixels; its header alone is read."""
    try:
        with PillowImage.open(io.BytesIO(content), formats=UPSCALED) as image:
            pixels, kind = image.width * image.height, str(image.format)
    except UnidentifiedImageError as error:
        raise RequestError(415, "the body is no JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF") from error
    except PillowImage.DecompressionBombError as error:
        raise RequestError(413, f"the image has more than the {limits.pixels} pixels that are allowed") from error
    except Exception as error:
        # Decoders raise exceptions of any type for damaged files.
        raise RequestError(400, f"the image cannot be read ({' '.join(str(error).split())})") from error
    if pixels > limits.pixels:
        raise RequestError(413, f"the image has {pixels} pixels, and {limits.pixels} are allowed")
    return kind, pixels


def _upscaled(served: Served, content: bytes, ending: str) -> bytes:
    try:
        picture = read_picture(io.BytesIO(content))
        rgb = upscale_fast(served.upscaler, picture.rgb, precision=served.upscaler.precision)
        return encoded(enlarged(picture, rgb), ending, "the answer")
    except DataError as error:
        raise RequestError(400, str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise RequestError(413, "the image needs more memory than there is") from error
        raise


def _refusal(status: int, message: str) -> Response:
    headers = {"Retry-After": "2"} if status in (429, 503) else {}
    if status == 408:
        headers = {"Connection": "close"}
    return PlainTextResponse(f"{message}\n", status, headers)


class Server:
    """Answers requests with the model that a follower keeps."""

    def __init__(self, follower: Follower, limits: Limits, poll: float) -> None:
        self.follower, self.limits, self.poll = follower, limits, poll
        self._waiting = self._held = 0
        self._codes: Counter[int] = Counter()
        self._seconds = 0.0
        self._within: Counter[float] = Counter()
        self._pixels = 0
        # torch computes one image with all cores. A batch of images of one size takes longer than one after another.
        self._turn, self._worker = asyncio.Lock(), Worker("upscale")

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/", self.page),
            Route("/", self.upscale, methods=["POST"]),
            Route("/upscale", self.upscale, methods=["POST"]),
            Route("/healthz", lambda _: PlainTextResponse("ok\n")),
            Route("/readyz", self.ready),
            Route("/version", self.version),
            Route("/metrics", self.metrics),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(self._follow())
        yield
        following.cancel()

    async def _follow(self) -> None:
        worker = Worker("follow")
        while True:
            try:
                await worker.call(self.follower.refresh)
            except Exception:  # noqa: BLE001 - the server outlives whatever happens to the next version
                _log.exception("the registry could not be followed")
            await asyncio.sleep(self.poll)

    def page(self, _: Request) -> Response:
        """Return the page on which a person drops a photograph."""
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    def ready(self, _: Request) -> Response:
        """Return 200 if a version is loaded; the body says what keeps the newest one from being served."""
        served, fault = self.follower.current, self.follower.fault
        return PlainTextResponse(f"{fault or 'ok'}\n", 200 if served else 503)

    def version(self, _: Request) -> Response:
        """Return which version is served."""
        served = self.follower.current
        if served is None:
            return JSONResponse({"error": self.follower.fault}, 503)
        version = served.version
        facts = {"model": version.model, "version": version.version, "fault": self.follower.fault}
        return JSONResponse(facts | {"weights_sha256": version.tags.get("weights_sha256")})

    def metrics(self, _: Request) -> Response:
        """Return counts in Prometheus' text format."""
        served = self.follower.current
        lines = ["# TYPE bebygan_requests_total counter"]
        lines += [f'bebygan_requests_total{{code="{code}"}} {count}' for code, count in sorted(self._codes.items())]
        lines += ["# TYPE bebygan_request_seconds histogram"]
        lines += [f'bebygan_request_seconds_bucket{{le="{most}"}} {self._within[most]}' for most in _BUCKETS]
        count = self._codes.total()
        lines += [f'bebygan_request_seconds_bucket{{le="+Inf"}} {count}', f"bebygan_request_seconds_count {count}"]
        lines += [f"bebygan_request_seconds_sum {self._seconds:.6f}"]
        for name, kind, value in (
            ("pixels_total", "counter", self._pixels),
            ("waiting_requests", "gauge", self._waiting),
            ("model_switches_total", "counter", self.follower.switches),
            ("model_refused_total", "counter", self.follower.refused),
            ("model_fault", "gauge", int(self.follower.fault is not None)),
        ):
            lines += [f"# TYPE bebygan_{name} {kind}", f"bebygan_{name} {value}"]
        if served:
            lines += ["# TYPE bebygan_model_info gauge"]
            lines += [f'bebygan_model_info{{model="{served.version.model}",version="{served.version.version}"}} 1']
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    def _refuse_if_full(self) -> None:
        if self._waiting >= self.limits.waiting:
            raise RequestError(429, f"{self._waiting} images are waiting: try again later")

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Take a place among the waiting images."""
        self._refuse_if_full()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextlib.asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """Receive the body. It takes no place meanwhile, so that slow clients do not keep others waiting."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and not kind.startswith("image/") and kind != "application/octet-stream":
            raise RequestError(415, f"send the bytes of an image as image/* or application/octet-stream, not {kind}")
        told = request.headers.get("content-length", "0")
        too_large = RequestError(413, f"the body has more than the {self.limits.bytes} bytes that are allowed")
        if told.isdecimal() and int(told) > self.limits.bytes:
            raise too_large
        size = 0
        try:
            parts = []
            try:
                async with asyncio.timeout(connections.SECONDS_TO_SEND):
                    async for part in request.stream():
                        parts.append(part)
                        size += len(part)
                        self._held += len(part)
                        if size > self.limits.bytes:
                            raise too_large
                        if self._held > self.limits.waiting * self.limits.bytes:
                            raise RequestError(429, "other requests take all memory: try again later")
            except TimeoutError as error:
                raise RequestError(408, f"the body took longer than {connections.SECONDS_TO_SEND:.0f} s") from error
            content = b"".join(parts)
            del parts
            yield content
        finally:
            self._held -= size

    def _ending(self, request: Request, kind: str) -> str:
        """Return the suffix of the format of the answer."""
        wanted = request.query_params.get("format", _ENDINGS.get(kind, ".png")).lower()
        ending = f".{wanted.removeprefix('.')}"
        if ending not in _TYPES or ending not in WRITTEN:
            known = ", ".join(each[1:] for each in _TYPES if each in WRITTEN)
            raise RequestError(400, f"format must be one of {known}")
        return ending

    async def _answer(self, request: Request) -> Response:
        if self.follower.current is None:
            raise RequestError(503, f"no model is ready: {self.follower.fault}")
        self._refuse_if_full()
        async with self._body(request) as content:
            kind, pixels = _checked(content, self.limits)
            ending = self._ending(request, kind)
            with self._place():
                async with self._turn:
                    if await request.is_disconnected():
                        raise ClientDisconnect
                    # The newest version now: the alias may have moved meanwhile.
                    served = self.follower.current
                    answer = await self._worker.call(_upscaled, served, content, ending)
        self._pixels += pixels
        return Response(answer, media_type=_TYPES[ending], headers={"X-Model-Version": served.version.version})

    async def upscale(self, request: Request) -> Response:
        """Answer an image with itself, four times as large, in its own format or that of the query's `format`."""
        started = time.monotonic()
        try:
            response = await self._answer(request)
        except RequestError as error:
            response = _refusal(error.status, str(error))
        except ClientDisconnect:
            response = Response(status_code=_CLIENT_LEFT)
        except asyncio.CancelledError:
            # Uvicorn cancels the requests that are left when the time to end is over, and sends their answers.
            response = _refusal(503, f"the server ended before it came to this image, after {SECONDS_TO_END} s")
        except Exception:  # noqa: BLE001 - the server outlives any request
            _log.exception("a request failed")
            response = _refusal(500, "the image could not be upscaled")
        seconds = time.monotonic() - started
        self._codes[response.status_code] += 1
        self._seconds += seconds
        for most in _BUCKETS:
            self._within[most] += seconds <= most
        return response


def configured(server: Server) -> uvicorn.Config:
    """Return how uvicorn runs a server."""
    return uvicorn.Config(
        server.app(),
        http=connections.Protocol,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SECONDS_TO_END,
        timeout_keep_alive=_SECONDS_BETWEEN_REQUESTS,
    )


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; uvicorn would end the process with an exit code of its own."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # A server that ended a moment ago does not keep the port.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"port {port} of {host} cannot be used ({reason}): name another --port or --host") from error
    return listening


def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish the images that were accepted.

    Raises:
        ConfigError: the server cannot listen at the address.
        WeightsError: the workspace has no registry.
    """
    use_registry(options.workspace)
    follower = Follower(options.model, options.params.evaluate.model_name, options.precision)
    limits = Limits(options.max_bytes, int(options.max_pixels * 1_000_000), options.queue)
    server = Server(follower, limits, options.poll)
    listening = _listening(options.host, options.port)
    _log.info("http://%s:%d answers POST with the image upscaled; a browser shows a page", options.host, options.port)
    uvicorn.Server(configured(server)).run([listening])
