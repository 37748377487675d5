"""Pictures: they show the classes in their colours, the errors where they are, and open as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.io import imread

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.evaluation.plots import (
    WRONG,
    colourise,
    draw_confusion,
    draw_curves,
    draw_overlay,
    draw_scores,
    greyscale,
)

DISPLAY = ["#102030", "#ff0000", "#00ff7f"]
CLASSES = list(zip(("void", "grain", "ore"), DISPLAY, strict=True))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))


def share_of(picture: np.ndarray, colour: str) -> float:
    return float((picture[..., :3] == rgb(colour)).all(-1).mean())


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.sampled_from([0, 1, 2, IGNORE_INDEX]))
)
@settings(deadline=None, max_examples=30)
def test_every_pixel_has_the_colour_of_its_class(labels_yx: np.ndarray) -> None:
    shown_yxc = colourise(labels_yx, DISPLAY)
    assert shown_yxc.shape == (*labels_yx.shape, 3)
    for index, colour in enumerate(DISPLAY):
        assert (shown_yxc[labels_yx == index] == rgb(colour)).all()
    ignored = shown_yxc[labels_yx == IGNORE_INDEX]
    assert all(tuple(one) not in {rgb(colour) for colour in DISPLAY} for one in ignored)


@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3]))))
@settings(deadline=None, max_examples=30)
def test_grey_is_stretched_in_order(image_yxc: np.ndarray) -> None:
    shown = greyscale(image_yxc)
    assert shown.shape == (image_yxc.shape if image_yxc.shape[2] == 3 else image_yxc.shape[:2])
    assert 0 <= shown.min() <= shown.max() <= 1
    flat = image_yxc if image_yxc.shape[2] == 3 else image_yxc[:, :, 0]
    order = np.argsort(flat, axis=None, kind="stable")
    assert (np.diff(shown.ravel()[order]) >= 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_overlay_shows_truth_prediction_and_error(tmp_path: Path, channels: int) -> None:
    random = np.random.default_rng(0)
    truth_yx = np.zeros((60, 60), np.uint8)
    truth_yx[:, 30:] = 1
    wrong_yx = truth_yx.copy()
    wrong_yx[:, :15] = 2
    image_yxc = random.integers(0, 999, (60, 60, channels)).astype(np.uint16)
    pictures = []
    for name, predicted_yx in (("right", truth_yx), ("wrong", wrong_yx)):
        draw_overlay(tmp_path / name / "p.png", image_yxc, truth_yx, predicted_yx, classes=CLASSES, title=name)
        pictures.append(imread(tmp_path / name / "p.png"))
    right, wrong = pictures
    # the legend holds a patch of it, the panel a quarter of its pixels
    assert share_of(right, WRONG) < 0.01
    assert share_of(wrong, WRONG) > share_of(right, WRONG) + 0.02
    assert share_of(wrong, DISPLAY[2]) > share_of(right, DISPLAY[2]) + 0.02
    assert share_of(wrong, DISPLAY[1]) == pytest.approx(share_of(right, DISPLAY[1]), abs=0.01)


def test_the_others_are_drawn_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        draw_confusion(folder / "confusion.png", [[9, 1], [0, 0]], ["void", "grain"], "test part")
        draw_curves(folder / "curves.png", [0, 1, 2], {"loss": {"loss": [3, 2, 1]}, "IoU": {"IoU": [None, 0.1, None]}})
        draw_scores(folder / "iou.png", {"void": 0.9, "grain": None}, "IoU")
    for path in (tmp_path / "a").iterdir():
        picture = imread(path)
        assert min(picture.shape[:2]) > 100
        assert len(np.unique(picture[..., :3] @ np.array([1, 256, 256**2]))) > 10
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
