"""What a request may be, and what is said to the rest."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from stackseg.errors import DataError
from stackseg.serving.request import RequestParams, check_content_type, parse_body

FILE = b"II*\0 an image"
IMAGE = base64.b64encode(FILE).decode()


def parse(tree: Any) -> tuple[list[bytes], RequestParams]:
    return parse_body(tree if isinstance(tree, bytes) else json.dumps(tree).encode(), 3)


def split(*images: Any, **more: Any) -> Any:
    return {"dataframe_split": {"columns": ["image"], "data": [[one] for one in images]}, **more}


def refusal(body: Any) -> str:
    with pytest.raises(HTTPException) as caught:
        parse(body)
    assert caught.value.status_code == 400
    assert "\n" not in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize(
    ("body", "num_images", "params"),
    [
        (split(IMAGE), 1, RequestParams()),
        (split(IMAGE, IMAGE, IMAGE), 3, RequestParams()),
        (split(IMAGE, params={"output": "png", "tta": "flips"}), 1, RequestParams(output="png", tta="flips")),
        (split(IMAGE, params={"output": None}), 1, RequestParams()),
        (split(IMAGE, params=None), 1, RequestParams()),
        (split(base64.encodebytes(FILE * 20).decode()), 1, RequestParams()),  # in lines, as GNU base64 writes it
        ({"dataframe_records": [{"image": IMAGE}]}, 1, RequestParams()),
        ({"dataframe_split": {"index": [0], "columns": ["image"], "data": [[IMAGE]]}}, 1, RequestParams()),
    ],
)
def test_images_and_params_of_a_body(body: Any, num_images: int, params: RequestParams) -> None:
    images, found = parse(body)
    assert len(images) == num_images
    assert all(one in (FILE, FILE * 20) for one in images)
    assert found == params


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ([1, 2], "another form"),
        ({}, "dataframe_split"),
        ({"inputs": [IMAGE]}, "dataframe_split"),
        ({"instances": [{"image": IMAGE}]}, "dataframe_split"),
        ({"messages": []}, "dataframe_split"),
        (split(IMAGE) | {"inputs": [1]}, "dataframe_split"),
        (split(IMAGE) | {"dataframe_records": [{"image": IMAGE}]}, "dataframe_split, or into dataframe_records"),
        (split(), "0 images"),
        (split(*[IMAGE] * 4), "4 images in one request; expected 1 to 3"),
        (split("/etc/passwd"), "not followed"),
        (split("https://example.org/image.tif"), "not followed"),
        (split("caf\u00e9"), "the image is no base64"),
        (split(IMAGE, "/etc/passwd", IMAGE), "image 2 of 3 is no base64"),
        (split(""), "no base64"),
        (split(None), "another form"),
        (split([[1, 2], [3, 4]]), "another form"),
        (split(IMAGE, params=[1]), "params is no JSON object"),
        ({"dataframe_split": {"columns": ["picture"], "data": [[IMAGE]]}}, "columns"),
        ({"dataframe_split": {"columns": ["image"], "data": [[IMAGE, IMAGE]]}}, '"data": [["<base64'),
        ({"dataframe_split": {"columns": ["image"], "data": [[IMAGE]], "x": 1}}, "another form"),
        ({"dataframe_split": "text"}, "columns"),
        ({"dataframe_records": [{"picture": IMAGE}]}, "another form"),
        ({"dataframe_records": {"image": IMAGE}}, "another form"),
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
    with pytest.raises(HTTPException, match=told) as caught:
        check_content_type(text)
    assert caught.value.status_code == 415


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["dataframe_split", "dataframe_records", "columns", "data", "image", "params", "x"]), inner
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_other_json_is_refused(tree: Any) -> None:
    with suppress(HTTPException, DataError):
        parse(tree)
