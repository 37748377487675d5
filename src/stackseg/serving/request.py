"""What a request may be: its size, its form, its parameters; a refusal is one sentence that repeats nothing of it."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from email.message import Message
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException

from stackseg.errors import DataError
from stackseg.params.inference import Tta
from stackseg.serving.encode import OutputForm

FORM = '{"dataframe_split": {"columns": ["image"], "data": [["<base64 of a TIFF or PNG file>"]]}}'


@dataclass(frozen=True)
class Limits:
    """What a request may weigh and take; `max_queued` requests may wait or run at a time."""

    max_megabytes: float
    seconds: float
    max_images: int = 64
    max_queued: int = 64


class RequestParams(BaseModel):
    """What a request may ask for: the parameters of the model's signature."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    output: OutputForm = "tiff"
    probabilities: bool = False
    tta: Literal["model"] | Tta = "model"
    plane: int = -1
    ignore_voxel_size: bool = False


def parse_params(params: dict[str, Any] | None) -> RequestParams:
    """Return the parameters of a request; those that are null have their default.

    Raises
    ------
    DataError
        One is unknown, or has a value that it cannot have.
    """
    try:
        return RequestParams.model_validate({key: value for key, value in (params or {}).items() if value is not None})
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
    if name not in RequestParams.model_fields:
        raise DataError("an unknown parameter", expected=f"among {', '.join(RequestParams.model_fields)}")
    values = {"output": "png, tiff or npz", "plane": "a whole number", "tta": "model, none, flips or d4"}
    expected = values.get(str(name), "true or false")
    raise DataError("a value that it cannot have", expected=expected, where=f'parameter "{name}"')


def image_name(number: int, num_images: int) -> str:
    """Return what a refusal calls one of the images of a request, counted from 1."""
    return "the image" if num_images == 1 else f"image {number} of {num_images}"


def check_content_type(text: str) -> None:
    """Raise HTTPException unless a header says that the body is JSON in UTF-8."""
    header = Message()
    header["content-type"] = text
    if not text:
        found = "no content type"
    elif header.get_content_type() != "application/json":
        found = "an unsupported content type"
    elif header.get_content_charset("utf-8") not in ("utf-8", "utf8"):
        found = "an unsupported charset"
    else:
        return
    raise HTTPException(415, f"{found}: send JSON in UTF-8 with the header Content-Type: application/json")


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Split(_Form):
    columns: tuple[Literal["image"]]
    data: list[tuple[str]]
    index: list[Any] | None = None


class _Record(_Form):
    image: str


class _Body(_Form):
    dataframe_split: _Split | None = None
    dataframe_records: list[_Record] | None = None
    params: dict[str, Any] | None = None


def parse_body(body: bytearray, max_images: int) -> tuple[list[bytes], RequestParams]:
    """Return the image files and the parameters of a request.

    Raises
    ------
    HTTPException
        The body is no JSON of MLflow's form, or an image is no base64.
    DataError
        A parameter does not fit.
    """
    try:
        form = _Body.model_validate_json(body)
    except ValidationError as error:
        found = {"json_invalid": "the body is no JSON", "dict_type": "params is no JSON object"}
        raise _refused(found.get(error.errors()[0]["type"], "the body has another form")) from None
    if (form.dataframe_split is None) == (form.dataframe_records is None):
        raise _refused("images go into dataframe_split, or into dataframe_records")
    if form.dataframe_split is not None:
        texts = [row[0] for row in form.dataframe_split.data]
    else:
        texts = [row.image for row in form.dataframe_records or ()]
    if not 1 <= len(texts) <= max_images:
        raise HTTPException(400, f"{len(texts)} images in one request; expected 1 to {max_images}")
    images = [_decoded(text, image_name(number, len(texts))) for number, text in enumerate(texts, start=1)]
    return images, parse_params(form.params)


def _refused(found: str) -> HTTPException:
    return HTTPException(400, f"{found}: send {FORM}, with params beside it where they are wanted")


def _decoded(text: str, name: str) -> bytes:
    try:
        # some programs write it in lines
        image = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        image = b""
    if not image:
        raise HTTPException(400, f"{name} is no base64 of a TIFF or PNG file; paths and addresses are not followed")
    return image
