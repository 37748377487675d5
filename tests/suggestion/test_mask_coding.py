"""Suggested masks hold raw values or colours that the table of classes takes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from stackseg.dataset.labels.table import LabelTable
from stackseg.dataset.specimens import Specimen, open_specimen
from stackseg.errors import ParamsError
from stackseg.suggestion.mask_coding import MaskCoding, choose_coding
from tiny_projects import tiny_stack, write_specimen

LABELS_YX = np.array([[0, 1], [2, 1]])
DISPLAY = ("#000000", "#00ff00", "#ff0000")


def table(*raw: tuple[int | str, ...]) -> LabelTable:
    return LabelTable(("a", "b", "c"), raw, DISPLAY)


def specimen(folder: Path, masks_zyx: np.ndarray, **how: object) -> Specimen:
    write_specimen(folder, tiny_stack(len(masks_zyx))[0], masks_zyx)
    if how:
        tifffile.imwrite(folder / "masks.tif", masks_zyx, **how)
    return open_specimen(folder, folder.name)


@pytest.mark.parametrize(
    ("raw", "dtype"),
    [(((0,), (3, 9), (255,)), np.uint8), (((7,), (0,), (4000,)), np.uint16), (((2,), ("#0000ff", 3), (1,)), np.uint8),
     ((("#0000ff",), (5, "#00ff00"), ("#ff0000",)), np.uint8)],
)  # fmt: skip
def test_the_table_takes_back_what_is_written(raw: tuple[tuple[int | str, ...], ...], dtype: type) -> None:
    coded = choose_coding(table(*raw), None, []).encode(LABELS_YX)
    assert coded.dtype == dtype
    coded_yxc = coded if coded.ndim == 3 else coded[:, :, None]
    np.testing.assert_array_equal(table(*raw).map_plane(coded_yxc, where=""), LABELS_YX)


def test_values_are_drawn_in_the_colours_of_their_classes() -> None:
    coding = choose_coding(table((2,), (0,), (3,)), None, [])
    assert coding.colours == ("#00ff00", "#000000", "#000000", "#ff0000")
    assert choose_coding(None, None, []) == MaskCoding((0,))


def test_masks_are_coded_as_those_that_they_join(tmp_path: Path) -> None:
    masks_zyx = np.zeros((2, 40, 48), np.uint8)
    both = table((0, "#000000"), (1, "#00ff00"), (2, "#ff0000"))
    grey = specimen(tmp_path / "grey", masks_zyx)
    coloured = specimen(
        tmp_path / "coloured", np.zeros((2, 40, 48, 3), np.uint8), photometric="rgb", metadata={"axes": "ZYXS"}
    )
    assert choose_coding(both, grey, [grey, coloured]).codes == (0, 1, 2)
    assert choose_coding(both, coloured, [grey, coloured]).codes == DISPLAY
    with pytest.raises(ParamsError, match="some class has no colour; expected one, as the masks of coloured have"):
        choose_coding(table((0, "#000000"), (1,), (2,)), coloured, [coloured])
    with pytest.raises(ParamsError, match=r"data.classes: some class has no whole number from 0; .* Add to raw"):
        choose_coding(table((0,), (1,), ("#ff0000",)), grey, [grey])


def test_a_palette_that_is_there_is_kept(tmp_path: Path) -> None:
    colours_3n = np.random.default_rng(0).integers(0, 255, (3, 256)).astype(np.uint16) * 256
    there = specimen(
        tmp_path / "palette", np.zeros((2, 40, 48), np.uint8), photometric="palette", colormap=colours_3n, metadata=None
    )
    coding = choose_coding(table((0,), (1,), (2,)), None, [there])
    assert [int(coding.colours[7][at : at + 2], 16) for at in (1, 3, 5)] == (colours_3n[:, 7] // 256).tolist()
