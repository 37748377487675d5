"""The plain door: a file's bytes in, the mask's bytes out, the lineage in headers."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from email.message import Message
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException

from stackseg.errors import DataError
from stackseg.serving.encode import OutputForm
from stackseg.serving.request import RequestParams, parse_params

TYPES: Mapping[OutputForm, str] = {"tiff": "image/tiff", "png": "image/png", "npz": "application/octet-stream"}
"""Content types of what is answered; TIFF and PNG are also what may be sent."""
HEADER = "Stackseg-"
_IN_HEADERS = (
    "model_name", "model_version", "bundle_digest", "code_digest", "git_commit", "data_md5", "shape", "classes",
    "fractions", "num_objects", "warnings", "milliseconds",
)  # fmt: skip


def parse_plain(content_type: str, query: Mapping[str, str]) -> RequestParams:
    """Return the parameters that an address names; the mask has the image's form unless `output` says otherwise.

    Raises
    ------
    HTTPException
        The content type is that of no image.
    DataError
        A parameter does not fit.
    """
    header = Message()
    header["content-type"] = content_type
    sent = next((form for form in ("tiff", "png") if TYPES[form] == header.get_content_type()), None)
    if not content_type or sent is None:
        raise HTTPException(
            415, "no content type of an image: send the file with the header Content-Type: image/tiff or image/png"
        )
    params = parse_params({"output": sent, **{name: _value(name, text) for name, text in query.items()}})
    if params.probabilities and params.output != "npz":
        raise DataError(
            "probabilities in an answer of one mask", expected="output=npz", where="parameter probabilities"
        )
    return params


def _value(name: str, text: str) -> Any:
    """Return what a text of an address stands for, or the text where it stands for nothing that the parameter takes."""
    try:
        return getattr(RequestParams.model_validate_strings({name: text}, strict=False), name)
    except ValidationError:
        return text


def plain_answer(answer: Mapping[str, Any], output: OutputForm) -> tuple[bytes, dict[str, str]]:
    """Return the file of a mask, and its headers; lists are JSON in ASCII."""
    found = {name: answer[name] for name in _IN_HEADERS if answer[name] is not None}
    headers = {
        HEADER + name.replace("_", "-").title(): value if isinstance(value, str) else json.dumps(value)
        for name, value in found.items()
    }
    return base64.b64decode(answer["mask"]), {**headers, "Content-Type": TYPES[output]}
