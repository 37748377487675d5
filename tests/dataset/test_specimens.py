"""Specimens: every layout of data/ that the README names, and what does not fit refused with its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from stackseg.dataset.labels.table import LabelTable
from stackseg.dataset.specimens import find_specimens, left_out, list_images, open_specimen, read_note
from stackseg.errors import DataError

TABLE = LabelTable(names=("void", "grain"), raw=((0,), (5,)), display=("#000000", "#ffffff"), ignore=(9,))


def write(path: Path, stack: Any, axes: str = "ZYX") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": axes})


def pair(folder: Path, num_planes: int = 4, shape_yx: tuple[int, int] = (9, 7), num_masks: int | None = None) -> Any:
    random = np.random.default_rng(num_planes)
    images = random.integers(0, 999, (num_planes, *shape_yx)).astype(np.uint16)
    masks = random.choice(np.array([0, 5, 9], np.uint8), (num_masks or num_planes, *shape_yx))
    write(folder / "images.tif", images)
    write(folder / "masks.tif", masks)
    return images, masks


def test_one_flat_stack_is_one_specimen(tmp_path: Path) -> None:
    images, masks = pair(tmp_path)
    (one,) = find_specimens(tmp_path)
    assert (one.name, len(one), one.labelled, one.is_stack) == ("specimen", 4, (0, 1, 2, 3), True)
    for z in range(4):
        assert (one.plane(z)[..., 0] == images[z]).all()
        labels_yx = one.labels(z, TABLE)
        assert (np.array([0, 5, 9])[np.where(labels_yx == 255, 2, labels_yx)] == masks[z]).all()


def test_folders_are_specimens_in_order_and_what_else_is_there_is_none(tmp_path: Path) -> None:
    for name in ("b", "a2", "a10"):
        pair(tmp_path / name, 3)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".a2.new").mkdir()  # a copy that was killed
    (tmp_path / ".a2.new" / "images.tif").touch()
    (tmp_path / "groups.csv").touch()
    assert [one.name for one in find_specimens(tmp_path)] == ["a10", "a2", "b"]


def test_single_files_pair_by_number_and_may_differ_in_size(tmp_path: Path) -> None:
    folder = tmp_path / "fields"
    for number in (10, 2, 1):
        side = 5 + number
        write(folder / "images" / f"field_{number}.tif", np.full((side, 6), number, np.uint8), "YX")
        write(folder / "masks" / f"field_{number}.tif", np.full((side, 6), 5 * (number > 1), np.uint8), "YX")
    (folder / "images" / ".hidden.tif").touch()
    one = open_specimen(folder, "fields")
    assert not one.is_stack
    assert [one.shape_yx(z) for z in range(3)] == [(6, 6), (7, 6), (15, 6)]
    assert [int(one.plane(z).max()) for z in range(3)] == [1, 2, 10]
    assert [int(one.labels(z, TABLE).max()) for z in range(3)] == [0, 1, 1]
    assert one.where(2).endswith("field_10.tif plane 2")


def test_a_note_names_the_annotated_planes_and_the_voxel_size(tmp_path: Path) -> None:
    images, masks = pair(tmp_path, 9, num_masks=2)
    with pytest.raises(DataError, match=r"2 masks for 9 planes; expected one mask per plane.*--planes"):
        find_specimens(tmp_path)
    (tmp_path / "specimen.yaml").write_text("planes: [3, 8]\nvoxel_size_zyx_um: [2, 0.5, 0.5]\n")
    (one,) = find_specimens(tmp_path)
    assert (one.labelled, len(one), one.voxel_size_zyx_um()) == ((3, 8), 9, (2.0, 0.5, 0.5))
    assert (one.plane(5)[..., 0] == images[5]).all()
    assert ((one.labels(8, TABLE) == 1) == (masks[1] == 5)).all()


@pytest.mark.parametrize("planes", ["[3]", "[3, 3]", "[8, 3]", "[3, 9]", "[-1, 3]"])
def test_planes_that_do_not_fit_are_refused(tmp_path: Path, planes: str) -> None:
    pair(tmp_path, 9, num_masks=2)
    (tmp_path / "specimen.yaml").write_text(f"planes: {planes}\n")
    with pytest.raises(DataError, match=r"planes named for 2 masks|expected rising numbers from 0 to 8"):
        find_specimens(tmp_path)


@pytest.mark.parametrize("text", ["plane: [1]", "planes: some", "planes: [1", "- 1"])
def test_a_note_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "specimen.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"not a specimen note.*Its keys are planes") as caught:
        read_note(path)
    assert "\n" not in caught.value.sentence()


def test_a_note_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "specimen.yaml"
    path.write_text("axes: ZYX\nplanes: [0, x]\n")
    with pytest.raises(DataError, match=r"planes\.1: Input should be a valid integer.*found 'x'"):
        read_note(path)
    path.write_bytes(b"planes: [0]\nsource: {images: gr\xe9s.tif}\n")
    with pytest.raises(DataError, match=r"specimen\.yaml: line 2 is not UTF-8"):
        read_note(path)


def test_a_value_that_the_table_does_not_name_is_found(tmp_path: Path) -> None:
    _, masks = pair(tmp_path)
    masks[2, 3, 4:6] = 77
    write(tmp_path / "masks.tif", masks)
    (one,) = find_specimens(tmp_path)
    one.labels(1, TABLE)
    with pytest.raises(DataError, match=r"masks\.tif plane 2.*77.*2 pixels"):
        one.labels(2, TABLE)


def test_nan_is_refused_where_it_is(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 5), np.float32)
    images[1, 2, 3] = np.nan
    write(tmp_path / "images.tif", images)
    write(tmp_path / "masks.tif", np.zeros((3, 4, 5), np.uint8))
    (one,) = find_specimens(tmp_path)
    one.plane(0)
    with pytest.raises(DataError, match=r"images\.tif plane 1"):
        one.plane(1)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder.*stackseg sample"):
        find_specimens(tmp_path / "data")
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"no images\.tif and no images/"):
        find_specimens(tmp_path / "data")

    pair(tmp_path / "both")
    pair(tmp_path / "both" / "more")
    with pytest.raises(DataError, match=r"expected one or the other"):
        find_specimens(tmp_path / "both")

    pair(tmp_path / "size")
    write(tmp_path / "size" / "masks.tif", np.zeros((4, 9, 8), np.uint8))
    with pytest.raises(DataError, match=r"masks of 9×8 pixels; expected 9×7, as images\.tif has"):
        find_specimens(tmp_path / "size")

    pair(tmp_path / "twice")
    write(tmp_path / "twice" / "images.png", np.zeros((4, 9, 8), np.uint8))
    with pytest.raises(DataError, match=r"2 files named images\.\*; expected one"):
        find_specimens(tmp_path / "twice")

    pair(tmp_path / "maskless")
    (tmp_path / "maskless" / "masks.tif").unlink()
    with pytest.raises(DataError, match=r"0 files named masks\.\*; expected one"):
        find_specimens(tmp_path / "maskless")

    (tmp_path / "folders" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"images/ without masks/"):
        open_specimen(tmp_path / "folders", "folders")
    (tmp_path / "folders" / "images" / "readme.txt").touch()
    with pytest.raises(DataError, match=r"1 files, none of them \.tif"):
        list_images(tmp_path / "folders" / "images")


def test_a_stack_among_single_files_is_refused(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        write(tmp_path / kind / "1.tif", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(DataError, match=r"3 planes; expected one plane per file"):
        open_specimen(tmp_path, "fields")


def test_what_else_lies_in_a_folder_of_files_is_left_out_and_named(tmp_path: Path) -> None:
    for name in ("f1.tif", "F2.TIF", "f3.TIFF", "f4.png", "._f1.tif", ".DS_Store", "Thumbs.db", "Icon\r", "a\n.tif"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert sorted(one.name for one in list_images(tmp_path)) == ["F2.TIF", "a\n.tif", "f1.tif", "f3.TIFF", "f4.png"]
    assert left_out(tmp_path) == ["Icon\r", "Thumbs.db", "more"]
    (tmp_path / "more" / "most").mkdir()
    with pytest.raises(DataError, match=r"0 files and 1 folders, none of them .*folders within are not read"):
        list_images(tmp_path / "more")


def test_what_is_called_an_image_and_is_no_file_is_refused(tmp_path: Path) -> None:
    def link(path: Path) -> None:
        path.symlink_to(tmp_path / "gone.tif")

    for number, (make, told) in enumerate(((Path.mkdir, "a folder"), (os.mkfifo, "a pipe"), (link, "leads nowhere"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "f1.tif").touch()
        make(folder / "f9.tif")
        with pytest.raises(DataError, match=rf"f9\.tif: .*{told}.*; expected an image file"):
            list_images(folder)
