"""The served app: MLflow's routes and formats, with limits, around a model that can be exchanged while it is served."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from mlflow.version import VERSION
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stackseg.dataset.files.stack import Plane
from stackseg.errors import StacksegError
from stackseg.model.bundle import load_bundle
from stackseg.model.code_digest import code_digest
from stackseg.model.segment import segment
from stackseg.serving.metrics import CountedRequests, Metrics
from stackseg.serving.plain import parse_plain, plain_answer
from stackseg.serving.pyfunc import SegmentationModel, registered_as
from stackseg.serving.request import Limits, RequestParams, check_content_type, parse_body

log = logging.getLogger("uvicorn.error")
T = TypeVar("T")

RETRY_SECONDS = 5
JSON = "application/json"
ROUTES = (
    "nothing answers to this path and method: there are POST /invocations, /segment; GET /ping, /health, /version, "
    "/metrics"
)
OVER_TIME = "the request took longer than the server allows: send a smaller image, or start it with a larger --timeout"


def load_model(folder: Path, device: torch.device, max_megapixels: float) -> SegmentationModel:
    """Load a bundle to serve it, and say if it was made by other code."""
    model = SegmentationModel()
    model.max_megapixels = max_megapixels
    model.use(load_bundle(folder, device), *registered_as(folder))
    lineage = model.spec.lineage
    if lineage.code_digest != code_digest():
        log.warning(
            f"{model.label} was trained by other code ({lineage.code_digest[:12]}, commit "
            f"{(lineage.git_commit or 'unknown')[:8]}): masks may differ from its scores"
        )
    return model


def warm_up(model: SegmentationModel) -> None:
    """Segment a plane of one tile: the first image takes several times as long as the others."""
    spec = model.spec.inference
    for _ in segment(_OnePlane(np.zeros((spec.tile, spec.tile, spec.num_channels), np.float32)), model.bundle):
        pass


class Cores:
    """Shares the cores among requests: one alone takes all of them, several take one each, others wait."""

    def __init__(self, num_cores: int) -> None:
        self.num = num_cores
        self.num_submitted = 0
        # torch's memory and helpers belong to the thread that calls it: there are never more than these, and the one
        # that takes all cores is always the same, for the helpers of another would go on spinning beside it
        self._alone = ThreadPoolExecutor(1, thread_name_prefix="segment-alone")
        self._pool = ThreadPoolExecutor(num_cores, thread_name_prefix="segment")
        self._lock = threading.Lock()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Have a call run on one of the cores, or on all of them if there is no other."""
        with self._lock:
            self.num_submitted += 1
            alone = self.num_submitted == 1
        pool, num_threads = (self._alone, self.num) if alone else (self._pool, 1)
        future = pool.submit(self._call, call, num_threads)
        future.add_done_callback(self._count_down)
        return future

    def run_everywhere(self, call: Callable[[], object]) -> None:
        """Run a call on all cores together, and then on each by itself."""
        self._alone.submit(self._call, call, self.num).result()
        together = threading.Barrier(self.num)
        for one in [self._pool.submit(self._call, lambda: (together.wait(), call()), 1) for _ in range(self.num)]:
            one.result()

    def _count_down(self, future: Future[Any]) -> None:
        with self._lock:
            self.num_submitted -= 1

    @staticmethod
    def _call(call: Callable[[], T], num_threads: int) -> T:
        torch.set_num_threads(num_threads)
        return call()


class ScoringApp:
    """Segments what is posted to /invocations or /segment, within limits.

    Work ends between two windows once its client has left or its time is over, and a full queue refuses at once.

    Parameters
    ----------
    model
        What is served; another may be put in its place, and requests under way keep the one they began with.
    cores
        What requests run on.
    limits
        Of each request, and of their number.
    """

    def __init__(self, model: SegmentationModel, cores: Cores, limits: Limits) -> None:
        self.model = model
        self._cores = cores
        self._limits = limits
        self._metrics = Metrics(lambda: cores.num_submitted)

    def asgi(self) -> Starlette:
        """Return the application for a server."""
        app = Starlette(
            routes=[
                Route("/invocations", self._invocations, methods=["POST"]),
                Route("/segment", self._plain, methods=["POST"]),
                Route("/ping", _ping),
                Route("/health", _ping),
                Route("/version", _version),
                Route("/metrics", self._read_metrics),
            ],
            middleware=[Middleware(CountedRequests, metrics=self._metrics, routes=("/invocations", "/segment"))],
            exception_handlers=dict.fromkeys((HTTPException, StacksegError, ClientDisconnect, Exception), _refuse),
        )
        app.router.redirect_slashes = False  # to whatever host the request names
        return app

    async def _invocations(self, request: Request) -> Response:
        self._require_room()
        check_content_type(request.headers.get("content-type", ""))

        def reply(answers: list[dict[str, Any]]) -> Response:
            return Response(json.dumps({"predictions": answers}), media_type=JSON)

        return await self._answer(request, lambda body: parse_body(body, self._limits.max_images), reply)

    async def _plain(self, request: Request) -> Response:
        self._require_room()
        params = parse_plain(request.headers.get("content-type", ""), request.query_params)

        def reply(answers: list[dict[str, Any]]) -> Response:
            mask, headers = plain_answer(answers[0], params.output)
            return Response(mask, headers=headers)

        return await self._answer(request, lambda body: ([bytes(body)], params), reply)

    async def _read_metrics(self, request: Request) -> Response:
        return self._metrics.response()

    async def _answer(
        self,
        request: Request,
        parse: Callable[[bytearray], tuple[list[bytes], RequestParams]],
        reply: Callable[[list[dict[str, Any]]], Response],
    ) -> Response:
        try:
            async with asyncio.timeout(self._limits.seconds):
                body = await self._read(request)
                self._metrics.note_body(len(body))
                images, params = await asyncio.to_thread(parse, body)
                del body
                self._require_room()
                return await self._segment(request, images, params, reply)
        except TimeoutError:
            raise HTTPException(504, OVER_TIME) from None

    async def _read(self, request: Request) -> bytearray:
        """Return the body; one that is too large is not read to its end."""
        limit = self._limits.max_megabytes
        body = bytearray()
        if int(request.headers.get("content-length", 0)) <= limit * 1e6:
            async for part in request.stream():
                body += part
                if len(body) > limit * 1e6:
                    break
            else:
                return body
        raise HTTPException(
            413,
            f"the body is larger than {limit:g} MB: send fewer planes at a time, or have the server started with a "
            "larger --max-megabytes",
        )

    async def _segment(
        self,
        request: Request,
        images: list[bytes],
        params: RequestParams,
        reply: Callable[[list[dict[str, Any]]], Response],
    ) -> Response:
        """Wait for the work or for the client to leave, whichever comes first."""
        model, ended = self.model, threading.Event()

        def check() -> None:
            if ended.is_set():
                raise _EndedError

        def work() -> Response:
            answers = model.respond(images, params, check)
            self._metrics.note_answers(answers)
            return reply(answers)

        done = asyncio.wrap_future(self._cores.submit(work))
        left = asyncio.ensure_future(request.receive())  # after the body, nothing else is to come
        try:
            await asyncio.wait((done, left), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise ClientDisconnect
            return done.result()
        finally:
            ended.set()
            done.cancel()
            left.cancel()

    def _require_room(self) -> None:
        if self._cores.num_submitted >= self._limits.max_queued:
            raise HTTPException(
                503, f"{self._limits.max_queued} requests are waiting: try again", {"Retry-After": str(RETRY_SECONDS)}
            )


class _EndedError(Exception):
    """The work of a request whose client has left, or whose time is over."""


async def _ping(request: Request) -> Response:
    return Response("\n", media_type=JSON)


async def _version(request: Request) -> Response:
    return Response(VERSION, media_type=JSON)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer with one sentence and nothing else of an error; one of ours goes to the log as well."""
    status, sentence, headers = 500, "the server failed; its log says more", None
    if isinstance(error, HTTPException):
        status, headers = error.status_code, error.headers
        sentence = ROUTES if status in (404, 405) else error.detail
    elif isinstance(error, StacksegError):
        status, sentence = 400, error.sentence()
    elif isinstance(error, ClientDisconnect):
        status, sentence = 400, "the client has left"
    return JSONResponse({"error": sentence}, status, headers)


class Watch(threading.Thread):
    """Looks where an alias points, and loads and warms the new version before it takes over.

    Parameters
    ----------
    app
        What serves the version.
    find_version
        Returns the version that the alias names.
    load
        Loads a version, ready to be served.
    current
        The version that is served now.
    seconds
        How often to look.
    """

    def __init__(
        self,
        app: ScoringApp,
        find_version: Callable[[], str],
        load: Callable[[str], SegmentationModel],
        *,
        current: str,
        seconds: float,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._app = app
        self._find_version = find_version
        self._load = load
        self._current = current
        self._seconds = seconds
        self._last_warning = ""

    def run(self) -> None:
        """Look again and again; whatever goes wrong, the present version goes on."""
        while True:
            time.sleep(self._seconds)
            self.look()

    def look(self) -> None:
        """Look once."""
        try:
            version = self._find_version()
            if version == self._current:
                return
            model = self._load(version)
        except Exception as error:
            warning = f"the new version is not served: {' '.join(str(error).split())[:300]}"
            if warning != self._last_warning:
                log.warning(warning)
            self._last_warning = warning
            return
        self._app.model = model
        self._current, self._last_warning = version, ""
        log.info(f"now serving {model.label}")


class _OnePlane:
    def __init__(self, plane_yxc: Plane) -> None:
        self._plane_yxc = plane_yxc

    def __len__(self) -> int:
        return 1

    def plane(self, z: int) -> Plane:
        return self._plane_yxc
