"""What the served model answers of objects."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stackseg.dataset.files.stack import open_stack
from stackseg.model.bundle import load_bundle
from stackseg.model.segment import segment
from stackseg.serving.encode import decode_tiff_mask


def answer_of(served: Any, project: Any, **params: Any) -> dict[str, Any]:
    model = served.SegmentationModel()
    model.use(load_bundle(project.folder / "model"))
    (stack,) = project.data.glob("*/images.tif")
    return dict(model.predict(None, pd.DataFrame({"image": [stack.read_bytes()]}), params).iloc[0])


def test_the_mask_of_a_model_of_objects_holds_their_numbers(served: Any, trained_on_discs: tuple[Any, Any]) -> None:
    project, _ = trained_on_discs
    with open_stack(project.data / "discs" / "images.tif") as stack:
        planes = list(segment(stack, load_bundle(project.folder / "model"), objects=True))
    answer = answer_of(served, project, probabilities=True)
    found_zyx = decode_tiff_mask(answer["mask"])
    assert found_zyx.dtype == np.uint16
    np.testing.assert_array_equal(found_zyx, [one.objects_yx for one in planes])
    assert answer["num_objects"] == [one.objects_yx.max() for one in planes]  # type: ignore[union-attr]
    assert answer["classes"] == ["background", "disc"]
    share = np.mean([one.mask_yx == 1 for one in planes])
    assert answer["fractions"] == pytest.approx([1 - share, share], abs=1e-6)
    one = answer_of(served, project, output="png", plane=3)
    picture_yx = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["mask"]))))
    np.testing.assert_array_equal(picture_yx, planes[3].objects_yx)


def test_the_mask_of_a_model_of_classes_holds_no_objects(served: Any, trained: tuple[Any, Any]) -> None:
    assert answer_of(served, trained[0])["num_objects"] is None
