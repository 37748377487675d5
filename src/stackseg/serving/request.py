"""What stands before MLflow's scoring app: limits, plain refusals, and answers that give nothing away.

MLflow reads a body whole before it looks at it, drops unknown parameters, answers a missing content type with a bare
500, and puts stack traces and parts of the input into its errors.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass
from email.message import Message as Headers
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stackseg.serving.decode import called

FORM = '{"dataframe_split": {"columns": ["image"], "data": [["<base64 of a TIFF or PNG file>"]]}}'
PREDICT_PATH = "/invocations"
ADDRESSES = f"POST {PREDICT_PATH}; GET /ping, /health and /version"


@dataclass(frozen=True)
class Limits:
    """What a request may weigh."""

    max_megabytes: float
    max_megapixels: float
    max_images: int = 64


class RefusedRequestError(Exception):
    """A request that is not passed on, with its status."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Guard:
    """ASGI middleware around MLflow's scoring app; of requests only those for predictions are looked at."""

    def __init__(self, app: ASGIApp, limits: Limits, parameters: tuple[str, ...]) -> None:
        self._app = app
        self._limits = limits
        self._parameters = parameters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that is in order; answer any other with one sentence."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] != PREDICT_PATH or scope["method"] != "POST":
            await self._app(scope, receive, _Cleaned(send))
            return
        try:
            self._check_headers(scope)
            body = await self._read(receive)
            await asyncio.to_thread(check_request, body, self._limits, self._parameters)
        except RefusedRequestError as refusal:
            await _answer(send, refusal.status, str(refusal))
            return
        # MLflow knows the type in small letters and without parameters only
        others = [pair for pair in scope["headers"] if pair[0].lower() != b"content-type"]
        plain = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
        await self._app(plain, _replay(body, receive), _Cleaned(send))

    def _check_headers(self, scope: Scope) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        check_content_type(headers.get("content-type", ""))
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedRequestError(400, "the connection was closed before the body ended")
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            if num_bytes > self._max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    @property
    def _max_bytes(self) -> int:
        return int(self._limits.max_megabytes * 1e6)

    def _too_large(self) -> RefusedRequestError:
        return RefusedRequestError(
            413,
            f"the body is larger than {self._limits.max_megabytes:g} MB: send fewer planes at a time, or have the "
            "server started with a larger --max-megabytes",
        )


def check_content_type(text: str) -> None:
    """Raise RefusedRequestError unless a header says that the body is JSON in UTF-8."""
    header = Headers()
    header["content-type"] = text
    found = ""
    if not text:
        found = "no content type"
    elif header.get_content_type() != "application/json":
        found = "an unsupported content type"
    elif header.get_content_charset("utf-8") not in ("utf-8", "utf8"):
        found = "an unsupported charset"
    if found:
        raise RefusedRequestError(415, f"{found}: send JSON in UTF-8 with the header Content-Type: application/json")


def check_request(body: bytes, limits: Limits, parameters: tuple[str, ...]) -> None:
    """Raise RefusedRequestError unless a body is what the model takes.

    Parameters
    ----------
    body
        As received.
    limits
        Most images in one request; megabytes were looked at before.
    parameters
        Names that ``params`` may hold.
    """
    if not body:
        raise RefusedRequestError(400, f"an empty body: send {FORM}")
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedRequestError(400, f"the body is no JSON: send {FORM}") from None
    if not isinstance(tree, dict):
        raise RefusedRequestError(400, f"the body is no JSON object: send {FORM}")
    _check_params(tree.get("params"), parameters)
    forms = [name for name in tree if name != "params"]
    if forms == ["dataframe_split"]:
        images = _split_images(tree["dataframe_split"])
    elif forms == ["dataframe_records"]:
        images = _record_images(tree["dataframe_records"])
    else:
        raise RefusedRequestError(
            400, f"the image goes into dataframe_split (or dataframe_records), and nowhere else: send {FORM}"
        )
    if not 1 <= len(images) <= limits.max_images:
        raise RefusedRequestError(400, f"{len(images)} images in one request; expected 1 to {limits.max_images}")
    for number, image in enumerate(images, start=1):
        _check_base64(image, called(number, len(images)))


def _check_params(params: Any, parameters: tuple[str, ...]) -> None:
    if params is None:
        return
    if not isinstance(params, dict):
        raise RefusedRequestError(400, "params is no JSON object")
    if any(name not in parameters for name in params):
        raise RefusedRequestError(400, f"an unknown parameter; params may hold {', '.join(parameters)}")


def _split_images(split: Any) -> list[Any]:
    rows = split.get("data") if isinstance(split, dict) else None
    if not isinstance(rows, list) or split.get("columns") != ["image"] or set(split) - {"columns", "data", "index"}:
        raise RefusedRequestError(400, f"dataframe_split needs columns and data: send {FORM}")
    if not all(isinstance(row, list) and len(row) == 1 for row in rows):
        raise RefusedRequestError(400, f"each row of dataframe_split holds one image: send {FORM}")
    return [row[0] for row in rows]


def _record_images(records: Any) -> list[Any]:
    if not isinstance(records, list) or not all(isinstance(one, dict) and set(one) == {"image"} for one in records):
        raise RefusedRequestError(400, 'dataframe_records needs a list of {"image": "<base64 of a TIFF or PNG file>"}')
    return [one["image"] for one in records]


def _check_base64(image: Any, name: str) -> None:
    try:
        # some programs write it in lines
        decoded = base64.b64decode("".join(image.split()), validate=True) if isinstance(image, str) else b""
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise RefusedRequestError(
            400, f"{name} is no base64 of a TIFF or PNG file; paths and addresses are not followed"
        )


class _Cleaned:
    """Passes on what MLflow answers; of an error only a sentence."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 200
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        if self._status < 400:
            await self._send(message)
            return
        if message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                await _answer(self._send, self._status, sentence_of(self._status, b"".join(self._parts)))


def sentence_of(status: int, body: bytes) -> str:
    """Return what may be told of an error of MLflow's: the model's own sentence, or none of it."""
    if status in (404, 405):
        return f"nothing answers to this path and method: there are {ADDRESSES}"
    if status == 504:
        return "the image took longer than the server allows: send a smaller one, or start it with a larger --timeout"
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return "the server failed; its log says more"
    # MLflow puts the input before what the model said
    _, separator, sentence = message.rpartition("\nError: ")
    if "Invalid parameters found" in message:
        return "a parameter of the wrong type; output is text, plane a number, the others true or false"
    if separator:
        return " ".join(sentence.split())
    if status >= 500:
        return "the server failed; its log says more"
    return f"the request does not fit the model: send {FORM}"


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read, and then what comes after it."""
    pending = [body]

    async def replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay
