"""What Prometheus reads of a server: requests, sizes, the queue, and how far images are from the training part."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MODEL = ("model", "version")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_MEGABYTES = (0.1, 0.5, 1, 5, 10, 50, 100)


class Metrics:
    """Counts of one server since it was started.

    Parameters
    ----------
    num_queued
        How many requests wait or run now.
    """

    def __init__(self, num_queued: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        in_registry: dict[str, Any] = {"registry": self._registry}
        self._seconds = Histogram(
            "stackseg_request_seconds", "Time to the answer.", ("route", "status"), buckets=_SECONDS, **in_registry
        )
        self._megabytes = Histogram("stackseg_request_megabytes", "Bodies.", buckets=_MEGABYTES, **in_registry)
        self._images = Counter("stackseg_images", "Images segmented.", _MODEL, **in_registry)
        self._pixels = Counter("stackseg_pixels", "Pixels segmented.", _MODEL, **in_registry)
        self._outside = Counter(
            "stackseg_images_outside", "Of these, outside the training part.", _MODEL, **in_registry
        )
        self._figures = Counter("stackseg_drift", "Images outside in one figure.", (*_MODEL, "figure"), **in_registry)
        Gauge("stackseg_requests_queued", "Waiting or under way.", **in_registry).set_function(num_queued)

    def note_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._seconds.labels(route, status).observe(seconds)

    def note_body(self, num_bytes: int) -> None:
        """Count the size of a body that was read."""
        self._megabytes.observe(num_bytes / 1e6)

    def note_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Count the images of one request, and what of them lies outside the training part."""
        for one in answers:
            model = (one["model_name"] or "", one["model_version"] or one["bundle_digest"][:12])
            planes, height, width = one["shape"]
            drift = one["drift"]
            self._images.labels(*model).inc()
            self._pixels.labels(*model).inc(planes * height * width)
            self._outside.labels(*model).inc(int(drift["outside"]))
            figures = [figure["figure"] for figure in drift["figures"]]
            if drift["outside"] and not figures:
                figures = ["voxel size"]
            for figure in figures:
                self._figures.labels(*model, figure).inc()

    def response(self) -> Response:
        """Return all counts in Prometheus' text."""
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class CountedRequests:
    """Middleware that notes status and time of the requests to some routes."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does."""
        if scope["type"] != "http" or scope["path"] not in self._routes:
            await self._app(scope, receive, send)
            return
        status = 500  # what the server answers for an application that raises
        started = time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._metrics.note_request(scope["path"], status, time.perf_counter() - started)
