from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stackseg.measurement.masks import Class
from stackseg.measurement.measure import Measures, Scale
from stackseg.measurement.plot import draw_fractions


@pytest.mark.parametrize("num_planes", [1, 60])
def test_classes_are_drawn_in_their_colours(tmp_path: Path, num_planes: int) -> None:
    scale = Scale((1, 1, 1), "px", "px")
    classes = [Class("one", "#ff8000"), Class("two", "#0080ff")]
    pixels_zc = np.tile([30, 70], (num_planes, 1))
    draw_fractions(tmp_path / "f.png", Measures(classes, pixels_zc, [], scale, scale, 2.0, False), "a title")
    with Image.open(tmp_path / "f.png") as picture:
        shown_yx3 = np.asarray(picture.convert("RGB")).astype(int)
    rows = [np.nonzero((shown_yx3[:400] == colour).all(axis=2))[0] for colour in ((255, 128, 0), (0, 128, 255))]
    assert min(len(one) for one in rows) > 5
    assert rows[0].mean() > rows[1].mean()  # 30 % lies below 70 %
