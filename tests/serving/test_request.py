"""What the guard lets through to MLflow's app, and what it says to the rest."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.serving.request import Limits, RefusedRequestError, check_content_type, check_request, sentence_of

LIMITS = Limits(max_megabytes=1, max_megapixels=1, max_images=3)
PARAMETERS = ("output", "tta")
IMAGE = base64.b64encode(b"II*\0 an image").decode()


def split(*images: Any, **more: Any) -> Any:
    return {"dataframe_split": {"columns": ["image"], "data": [[one] for one in images]}, **more}


def refusal(body: Any) -> str:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RefusedRequestError) as caught:
        check_request(raw, LIMITS, PARAMETERS)
    assert 400 <= caught.value.status < 500
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        split(IMAGE),
        split(IMAGE, IMAGE, IMAGE),
        split(IMAGE, params={"output": "png", "tta": True}),
        split(IMAGE, params=None),
        split(base64.encodebytes(bytes(200)).decode()),  # in lines, as GNU base64 writes it
        {"dataframe_records": [{"image": IMAGE}]},
        {"dataframe_split": {"index": [0], "columns": ["image"], "data": [[IMAGE]]}},
    ],
)
def test_what_the_model_takes_goes_through(body: Any) -> None:
    check_request(json.dumps(body).encode(), LIMITS, PARAMETERS)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "empty body"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ([1, 2], "no JSON object"),
        ({"inputs": [IMAGE]}, "dataframe_split"),
        ({"instances": [{"image": IMAGE}]}, "dataframe_split"),
        ({"messages": []}, "dataframe_split"),
        (split(IMAGE) | {"inputs": [1]}, "dataframe_split"),
        (split(), "0 images"),
        (split(*[IMAGE] * 4), "4 images in one request; expected 1 to 3"),
        (split("/etc/passwd"), "not followed"),
        (split("https://example.org/image.tif"), "not followed"),
        (split(None), "the image is no base64"),
        (split(IMAGE, "/etc/passwd", IMAGE), "image 2 of 3 is no base64"),
        (split(""), "no base64"),
        (split([[1, 2], [3, 4]]), "no base64"),
        (split(IMAGE, params=[1]), "params is no JSON object"),
        (split(IMAGE, params={"outptu": "png"}), "unknown parameter; params may hold output, tta"),
        ({"dataframe_split": {"columns": ["picture"], "data": [[IMAGE]]}}, "columns"),
        ({"dataframe_split": {"columns": ["image"], "data": [[IMAGE, IMAGE]]}}, "one image"),
        ({"dataframe_split": "text"}, "columns"),
        ({"dataframe_records": [{"picture": IMAGE}]}, "dataframe_records"),
        ({"dataframe_records": {"image": IMAGE}}, "dataframe_records"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(body: Any, told: str) -> None:
    assert told in refusal(body)


@pytest.mark.parametrize("text", ["application/json", "Application/JSON", "application/json; charset=UTF-8"])
def test_media_types_are_read_as_http_means_them(text: str) -> None:
    check_content_type(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no content type"),
        ("text/csv", "an unsupported content type"),
        ("json", "an unsupported content type"),
        ("application/json; charset=latin-1", "an unsupported charset: send JSON in UTF-8"),
    ],
)
def test_other_content_types_are_refused_with_what_is_expected(text: str, told: str) -> None:
    with pytest.raises(RefusedRequestError, match=told) as caught:
        check_content_type(text)
    assert caught.value.status == 415


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["dataframe_split", "dataframe_records", "columns", "data", "image", "params", "x"]), inner
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300)
@given(JSON)
def test_no_json_breaks_the_guard(tree: Any) -> None:
    with suppress(RefusedRequestError):
        check_request(json.dumps(tree).encode(), LIMITS, PARAMETERS)


class TestWhatIsToldOfAnError:
    def test_the_models_own_sentence_without_the_input(self) -> None:
        body = {"message": "Failed to predict data 'secret'. \nError: plane 0: no image", "stack_trace": "Traceback …"}
        assert sentence_of(400, json.dumps(body).encode()) == "plane 0: no image"

    def test_nothing_of_mlflows_and_nothing_of_a_failure(self) -> None:
        body = {"message": "Invalid input. Input: secret", "stack_trace": "Traceback …"}
        assert "secret" not in sentence_of(400, json.dumps(body).encode())
        assert sentence_of(500, b"Internal Server Error") == "the server failed; its log says more"
        assert sentence_of(500, json.dumps(body).encode()) == "the server failed; its log says more"
        assert "--timeout" in sentence_of(504, b"Request processing time exceeded limit")

    @pytest.mark.parametrize("status", [404, 405])
    def test_an_address_that_is_none(self, status: int) -> None:
        assert "POST /invocations; GET /ping" in sentence_of(status, b'{"detail":"Not Found"}')

    def test_a_parameter_of_the_wrong_type(self) -> None:
        body = {"message": "Failed to predict data 'x'. \nError: Invalid parameters found: {('tta', \"secret\")}"}
        assert "secret" not in sentence_of(400, json.dumps(body).encode())
