"""Adoption: a user's files are looked at, checked against each other, and copied whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile

from stackseg.dataset.labels.table import LabelTable
from stackseg.dataset.specimens import open_specimen
from stackseg.errors import DataError
from stackseg.intake.add import check_values, copy_specimen, inspect, open_pair
from stackseg.intake.label_proposal import propose_table

COLOURS = np.array([[0, 0, 255], [255, 0, 0]], np.uint8)


def write(path: Path, stack: Any, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, stack, **{"photometric": "minisblack", "metadata": {"axes": "ZYX"}, **how})
    return path


def stacks(num_planes: int = 5, num_masks: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.integers(10, 4000, (num_planes, 12, 16)).astype(np.uint16)
    return images, random.choice(np.array([1, 4], np.uint8), (num_masks, 12, 16))


def test_a_pair_is_counted_and_copied_byte_for_byte(tmp_path: Path) -> None:
    images, masks = stacks()
    images[3] = 9
    paths = write(tmp_path / "rock a.tif", images, compression="zlib"), write(tmp_path / "m.tif", masks)
    specimen = open_pair(*paths)
    assert specimen.name == "rock_a"
    found = inspect(specimen)
    assert found.raw == {1: (masks == 1).sum(), 4: (masks == 4).sum()}
    assert found.intensity_range == (images.min(), images.max())
    assert found.num_constant == 1
    target = copy_specimen(specimen, tmp_path / "data", "rock")
    assert (target / "images.tif").read_bytes() == paths[0].read_bytes()
    assert (target / "masks.tif").read_bytes() == paths[1].read_bytes()
    assert [one.name for one in (tmp_path / "data").iterdir()] == ["rock"]
    again = open_specimen(target, "rock")
    assert again.note.source["images"].startswith("rock a.tif sha256:")
    assert (again.plane(2)[..., 0] == images[2]).all()
    with pytest.raises(DataError, match=r"the specimen is there already.*--replace"):
        copy_specimen(specimen, tmp_path / "data", "rock")


def test_masks_of_some_planes_keep_their_places(tmp_path: Path) -> None:
    images, masks = stacks(8, 2)
    paths = write(tmp_path / "i.tif", images), write(tmp_path / "m.tif", masks)
    with pytest.raises(DataError, match="2 masks for 8 planes"):
        open_pair(*paths)
    specimen = open_pair(*paths, planes=[1, 6])
    again = open_specimen(copy_specimen(specimen, tmp_path / "data", "rock"), "rock")
    assert (again.labelled, len(again)) == ((1, 6), 8)
    table = propose_table(inspect(specimen).raw)
    assert ((again.labels(6, table) == 1) == (masks[1] == 4)).all()


def test_colours_are_classes(tmp_path: Path) -> None:
    images, masks = stacks()
    coloured = COLOURS[(masks == 4).astype(int)]
    paths = (
        write(tmp_path / "i.tif", images),
        write(tmp_path / "m.tif", coloured, photometric="rgb", compression="lzw", predictor=True, metadata=None),
    )
    specimen = open_pair(*paths)
    found = inspect(specimen)
    assert found.raw == {"#0000ff": (masks == 1).sum(), "#ff0000": (masks == 4).sum()}
    table = propose_table(found.raw)
    check_values(specimen, table)
    other = LabelTable(names=("a", "b"), raw=(("#0000ff",), ("#00ff00",)), display=("#000000", "#ffffff"), ignore=())
    with pytest.raises(DataError, match=r"m\.tif plane 0.*#ff0000"):
        check_values(specimen, other)


def test_png_files_are_copied_with_their_palette_and_alpha(tmp_path: Path) -> None:
    images, masks = stacks()
    for z in range(5):
        for kind, stack in (("images", images), ("masks", masks)):
            (tmp_path / kind).mkdir(exist_ok=True)
            iio.imwrite(tmp_path / kind / f"{z + 8}.png", stack[z])
    specimen = open_pair(tmp_path / "images", tmp_path / "masks")
    target = copy_specimen(specimen, tmp_path / "data", "fields")
    assert sorted(one.name for one in (target / "images").iterdir()) == sorted(f"{z + 8}.png" for z in range(5))
    again = open_specimen(target, "fields")
    for z in range(5):
        assert (again.plane(z)[..., 0] == images[z]).all()
        assert (target / "masks" / f"{z + 8}.png").read_bytes() == (tmp_path / "masks" / f"{z + 8}.png").read_bytes()


def test_anti_aliased_labels_are_refused_with_advice(tmp_path: Path) -> None:
    images, _ = stacks()
    noisy = np.random.default_rng(0).integers(0, 121, images.shape).astype(np.uint8)
    specimen = open_pair(write(tmp_path / "i.tif", images), write(tmp_path / "m.tif", noisy))
    with pytest.raises(DataError, match="121") as caught:
        propose_table(inspect(specimen).raw)
    assert caught.value.remedy


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    images, masks = stacks()
    image, mask = write(tmp_path / "i.tif", images), write(tmp_path / "m.tif", masks)
    with pytest.raises(DataError, match=r"nothere\.tif: no such file"):
        open_pair(image, tmp_path / "nothere.tif")
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(DataError, match=r"pipe\.tif: a pipe or device; expected a file or folder"):
        open_pair(image, tmp_path / "pipe.tif")
    with pytest.raises(DataError, match="expected two files, or two folders"):
        open_pair(image, tmp_path)
    with pytest.raises(DataError, match="masks of 12×15 pixels; expected 12×16"):
        open_pair(image, write(tmp_path / "s.tif", masks[:, :, 1:]))
    folder = tmp_path / "f"
    write(folder / "1.tif", masks[0], metadata={"axes": "YX"})
    with pytest.raises(DataError, match="--planes or --axes with folders"):
        open_pair(folder, folder, planes=[0])
    floats = images.astype(np.float32)
    floats[2, 3, 4] = np.inf
    with pytest.raises(DataError, match=r"n\.tif plane 2"):
        inspect(open_pair(write(tmp_path / "n.tif", floats), mask))


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = stacks()
    specimen = open_pair(write(tmp_path / "i.tif", images), write(tmp_path / "m.tif", masks))
    mask_file = specimen.mask_file(0).info.path

    def copy(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        if source == mask_file:
            raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("stackseg.intake.add.shutil.copyfile", copy)
    with pytest.raises(OSError, match="No space left"):
        copy_specimen(specimen, tmp_path / "data", "rock")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["../victim", "./../victim", "a/b", "a\\b", "..", ".", "", " a", "a.", "images", "Masks", "/tmp/x", "groups.csv",
     "images.tif", "CON", "com1.old", "a\nb", "r" * 101],
)  # fmt: skip
def test_a_name_that_leaves_data_or_means_something_else_is_refused(tmp_path: Path, name: str) -> None:
    images, masks = stacks()
    specimen = open_pair(write(tmp_path / "i.tif", images), write(tmp_path / "m.tif", masks))
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("all of it")
    with pytest.raises(DataError, match="cannot be the name of a specimen"):
        copy_specimen(specimen, tmp_path / "data", name)
    assert (tmp_path / "victim" / "thesis.txt").read_text() == "all of it"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("file", "name"),
    [("..tif", "specimen"), (".hidden.tif", "hidden"), ("a b.ome.tif", "a_b"), ("gre\u0301s.tif", "grés"),
     ("🪨.tif", "specimen"), ("r" * 180 + ".tif", "r" * 100), ("it's\n1.tif", "it_s_1")],
)  # fmt: skip
def test_a_name_is_made_of_the_file_s(tmp_path: Path, file: str, name: str) -> None:
    images, masks = stacks()
    specimen = open_pair(write(tmp_path / file, images), write(tmp_path / "m.tif", masks))
    assert specimen.name == name
    assert copy_specimen(specimen, tmp_path / "data", name) == tmp_path / "data" / name


@pytest.mark.parametrize(("there", "name"), [("Rock", "rock"), ("gre\u0301s", "grés"), ("grés", "GRÉS")])
def test_a_name_that_other_systems_take_for_one_that_is_there_is_refused(tmp_path: Path, there: str, name: str) -> None:
    images, masks = stacks()
    specimen = open_pair(write(tmp_path / "i.tif", images), write(tmp_path / "m.tif", masks))
    (tmp_path / "data" / there).mkdir(parents=True)
    with pytest.raises(DataError, match=f"{there}: differs from {name} only in case or in how accents are written"):
        copy_specimen(specimen, tmp_path / "data", name)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (np.full((12, 16), 0.5, np.float32), "a floating-point mask whose values are no whole numbers on 192 pixels"),
        (np.zeros((2, 12, 16), np.uint8), "a mask of 2 channels"),
    ],
)
def test_a_mask_that_holds_no_labels_is_named(tmp_path: Path, broken: np.ndarray, told: str) -> None:
    images, masks = stacks()
    for z in range(3):
        write(tmp_path / "images" / f"f{z}.tif", images[z], metadata={"axes": "YX"})
        axes = "CYX" if broken.ndim == 3 and z == 1 else "YX"
        write(tmp_path / "masks" / f"f{z}.tif", broken if z == 1 else masks[z], metadata={"axes": axes})
    specimen = open_pair(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(DataError, match=rf"masks/f1\.tif plane 0: {told}"):
        inspect(specimen)


def test_a_raw_value_is_known_by_the_mask_where_it_is_first(tmp_path: Path) -> None:
    images, masks = stacks()
    masks[2:, 3, 4] = 9
    found = inspect(open_pair(write(tmp_path / "i.tif", images), write(tmp_path / "m.tif", masks)))
    mask = tmp_path / "m.tif"
    assert found.first_seen == {1: f"{mask} plane 0", 4: f"{mask} plane 0", 9: f"{mask} plane 2"}


def test_a_specimen_is_never_called_images_by_itself(tmp_path: Path) -> None:
    images, masks = stacks()
    quarry = tmp_path / "quarry_7"
    (quarry / "images").mkdir(parents=True)
    (quarry / "masks").mkdir()
    image, mask = write(quarry / "images" / "stack.tif", images), write(quarry / "masks" / "stack.tif", masks)
    assert open_pair(image, mask).name == "quarry_7"


def test_notes_about_masks_are_told_with_those_about_images(tmp_path: Path) -> None:
    images, _ = stacks()
    masks = np.kron(np.indices((3, 4)).sum(0) % 2, np.ones((4, 4))).astype(np.uint8) * 255
    paths = (
        write(tmp_path / "i.tif", images, photometric="miniswhite"),
        write(tmp_path / "m.tif", np.stack([masks] * 5), compression="lerc"),
    )
    first, second = open_pair(*paths).notes()
    assert first.startswith("stored as MinIsWhite")
    assert second.startswith("masks: compressed by LERC, which may be lossy")


def test_regions_of_one_value_are_counted_for_the_question_whether_they_are_objects(tmp_path: Path) -> None:
    images, masks = stacks(2, 2)
    masks[:] = 0
    masks[0, 1:3, 1:3], masks[0, 5:7, 5:7], masks[1, 0, 0], masks[1, 1, 1], masks[1, 9, 9] = 1, 2, 1, 1, 1
    found = inspect(open_pair(write(tmp_path / "i.tif", images), write(tmp_path / "m.tif", masks)))
    assert found.raw_of_planes == (frozenset({0, 1, 2}), frozenset({0, 1}))
    assert found.num_regions == 2 + 2  # pixels that touch at a corner are one region
