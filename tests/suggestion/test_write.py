"""What is written for a suggested plane: its image as it is, its mask as the model sees it, a table, a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from stackseg.dataset.files.stack import open_stack
from stackseg.dataset.splits import PlaneRef
from stackseg.model.bundle import load_bundle
from stackseg.model.segment import segment
from stackseg.suggestion.mask_coding import MaskCoding
from stackseg.suggestion.score import score_plane
from stackseg.suggestion.write import PlaneStack, Suggestion, write_suggestions
from tiny_projects import RAW, tiny_stack

SIZE = (0.5, 0.25, 0.25)
SUGGESTIONS = [Suggestion(PlaneRef("rock", 3), "entropy no. 1 of 9", 0.25), Suggestion(PlaneRef("rock", 1), "even")]


class Planes:
    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def plane(self, z: int) -> np.ndarray:
        return np.atleast_3d(self._images[z])


def test_classes_are_written_in_raw_values_and_colours(trained: tuple[Any, Any], tmp_path: Path) -> None:
    bundle = load_bundle(trained[0].folder / "model")
    source = Planes(tiny_stack(5, seed=4)[0])
    coding = MaskCoding((0, 3, 7), ("#000000",) * 3 + ("#00ff00",))
    write_suggestions(
        tmp_path, SUGGESTIONS, {"rock": PlaneStack("rock", source, SIZE, coding)}, bundle, "flips"
    )  # fmt: skip
    names = [f"rock_z000{z}{end}" for z in (1, 3) for end in (".tif", "_mask.tif")]
    assert sorted(one.name for one in tmp_path.iterdir()) == [*names, "suggestions.csv", "suggestions.png"]
    planes = {one.z: one for one in segment(source, bundle, planes=[1, 3], probabilities=True, tta="flips")}
    for z, plane in planes.items():
        image, mask = (open_stack(tmp_path / f"rock_z000{z}{end}.tif") for end in ("", "_mask"))
        np.testing.assert_array_equal(image.plane(0), source.plane(z))
        np.testing.assert_array_equal(mask.plane(0)[:, :, 0], RAW[plane.mask_yx])
        assert image.info.voxel_size_zyx_um == mask.info.voxel_size_zyx_um == pytest.approx(SIZE)
        assert mask.info.encoding.kind == "palette"
        assert mask.info.encoding.palette[9:12] == bytes.fromhex("00ff00")
    with (tmp_path / "suggestions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(one["file"], one["mask"], one["plane"], one["score"], one["reason"]) for one in rows] == [
        ("rock_z0003.tif", "rock_z0003_mask.tif", "3", "0.25000", "entropy no. 1 of 9"),
        ("rock_z0001.tif", "rock_z0001_mask.tif", "1", "", "even"),
    ]
    for row, z in zip(rows, (3, 1), strict=True):
        expected = score_plane(planes[z], 3)[0].entropy_of_class
        written = [row[f"entropy {name}"] for name in ("void", "grain", "ore")]
        assert written == ["" if one is None else f"{one:.5f}" for one in expected]
    with Image.open(tmp_path / "suggestions.png") as picture:
        width, height = picture.size
    assert (width > 900, height > 500) == (True, True)


def test_objects_are_written_by_their_numbers(trained_on_discs: tuple[Any, Any], tmp_path: Path) -> None:
    bundle = load_bundle(trained_on_discs[0].folder / "model")
    with open_stack(trained_on_discs[0].data / "discs" / "images.tif") as stack:
        (plane,) = segment(stack, bundle, planes=[3], objects=True)
        stacks = {"rock": PlaneStack("rock", stack, None, MaskCoding((0, 1)))}
        write_suggestions(tmp_path, SUGGESTIONS[:1], stacks, bundle, "none")
    found = tifffile.imread(tmp_path / "rock_z0003_mask.tif")
    assert found.dtype == np.uint16
    assert found.max() > 1
    np.testing.assert_array_equal(found, plane.objects_yx)


def test_without_a_model_masks_hold_the_first_class_and_colours_stay_colours(tmp_path: Path) -> None:
    source = Planes(tiny_stack(5, channels=3)[0].astype(np.uint8))
    stacks = {"rock": PlaneStack("rock", source, None, MaskCoding(("#0000ff", "#ff0000")))}
    write_suggestions(tmp_path, SUGGESTIONS, stacks, None, None)
    np.testing.assert_array_equal(open_stack(tmp_path / "rock_z0001.tif").plane(0), source.plane(1))
    assert (tifffile.imread(tmp_path / "rock_z0001_mask.tif") == (0, 0, 255)).all()
    with (tmp_path / "suggestions.csv").open(encoding="utf-8") as file:
        assert file.readline().strip() == "file,mask,plane,score,reason"
    with Image.open(tmp_path / "suggestions.png") as picture:
        assert picture.size[0] < 500
