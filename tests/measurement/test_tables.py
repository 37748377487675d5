from __future__ import annotations

import csv
from math import pi
from pathlib import Path

import numpy as np
import pytest

from stackseg.dataset.files.axes import VoxelSize
from stackseg.dataset.files.inputs import open_input
from stackseg.intake.write_tiff import write_stack
from stackseg.measurement.masks import Class
from stackseg.measurement.measure import Measures, measure_classes
from stackseg.measurement.tables import write_tables

CLASSES = (Class("solid, or so", "#000000"), Class("grain", "#ff0000"))


def box(folder: Path, voxel_size: VoxelSize | None, *, volume: bool, pore: int | None = None) -> Measures:
    mask_zyx = np.zeros((3, 10, 10), np.uint8)
    mask_zyx[1:, 2:4, 5:8] = 1
    write_stack(folder / "m.tif", mask_zyx, num_planes=3, voxel_size_zyx_um=voxel_size)
    with open_input(folder / "m.tif") as masks:
        return measure_classes(masks, CLASSES, volume=volume, pore=pore, progress=lambda done, total: None)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_of_a_volume_are_in_micrometres(tmp_path: Path) -> None:
    write_tables(tmp_path, box(tmp_path, (2.0, 0.5, 0.5), volume=True, pore=1))
    assert rows(tmp_path / "fractions.csv")[3] == {
        "plane": "1",
        "z_um": "2",
        "class_index": "1",
        "class": "grain",
        "pixels": "6",
        "fraction": "0.06",
        "area_um2": "1.5",
    }
    diameter = (6 * 6 / pi) ** (1 / 3)
    assert rows(tmp_path / "objects.csv")[1] == {
        "object": "2",
        "class_index": "1",
        "class": "grain",
        "volume_um3": "6",
        "equivalent_diameter_um": f"{diameter:.9g}",
        "centroid_z_um": "3",
        "centroid_y_um": "1.25",
        "centroid_x_um": "3",
        "box_z_from_px": "1",
        "box_z_to_px": "3",
        "box_y_from_px": "2",
        "box_y_to_px": "4",
        "box_x_from_px": "5",
        "box_x_to_px": "8",
    }
    solid, grain = rows(tmp_path / "summary.csv")
    assert solid["class"] == "solid, or so"
    assert grain == {
        "class_index": "1",
        "class": "grain",
        "pixels": "12",
        "fraction": "0.04",
        "volume_um3": "6",
        "objects": "1",
        "median_volume_um3": "6",
        "mean_volume_um3": "6",
        "largest_volume_um3": "6",
    }
    (pores,) = rows(tmp_path / "pores.csv")
    assert (pores["class"], pores["porosity"], pores["percolates_z"]) == ("grain", "0.04", "no")


def test_tables_of_planes_are_in_pixels_where_nothing_else_is_known(tmp_path: Path) -> None:
    write_tables(tmp_path, box(tmp_path, None, volume=False))
    assert "area_um2" not in rows(tmp_path / "fractions.csv")[0]
    found = rows(tmp_path / "objects.csv")
    assert [(one["plane"], one["object"], one["class"], one["area_px"]) for one in found] == [
        ("0", "1", "solid, or so", "100"),
        ("1", "2", "solid, or so", "94"),
        ("1", "3", "grain", "6"),
        ("2", "4", "solid, or so", "94"),
        ("2", "5", "grain", "6"),
    ]
    assert float(found[2]["equivalent_diameter_px"]) == pytest.approx((4 * 6 / pi) ** 0.5)
    assert (found[2]["centroid_y_px"], found[2]["centroid_x_px"]) == ("2.5", "6")
    assert rows(tmp_path / "summary.csv")[1]["median_area_px"] == "6"
    assert not (tmp_path / "pores.csv").exists()
