from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from stackseg.dataset.files.axes import VoxelSize
from stackseg.dataset.files.inputs import open_input
from stackseg.errors import DataError, MachineError
from stackseg.intake.write_tiff import write_stack
from stackseg.measurement.masks import Class, unnamed_classes
from stackseg.measurement.measure import (
    Measures,
    Scale,
    measure_classes,
    measure_objects,
    require_volume,
    scale_of,
)

SOLID_AND_GRAIN = (Class("solid", "#000000"), Class("grain", "#ff0000"))


def no_progress(done: int, total: int) -> None:
    pass


def measured(
    folder: Path,
    mask_zyx: np.ndarray,
    voxel_size: VoxelSize | None = None,
    *,
    volume: bool = True,
    objects: bool = False,
    pore: int | None = None,
) -> Measures:
    path = folder / "m.tif"
    write_stack(path, mask_zyx, num_planes=len(mask_zyx), voxel_size_zyx_um=voxel_size)
    with open_input(path) as masks:
        if objects:
            return measure_objects(masks, SOLID_AND_GRAIN, volume=volume, progress=no_progress)
        return measure_classes(masks, SOLID_AND_GRAIN, volume=volume, pore=pore, progress=no_progress)


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (grid**2).sum(axis=0) <= radius**2


def test_a_box_has_its_volume_centre_and_corners(tmp_path: Path) -> None:
    mask_zyx = np.zeros((6, 20, 30), np.uint8)
    mask_zyx[1:4, 5:9, 10:20] = 1
    found = measured(tmp_path, mask_zyx, (2.0, 0.5, 0.25))
    assert found.scale == Scale((2.0, 0.5, 0.25), "um", "um3")
    assert found.sizes(1).tolist() == [120 * 0.25]
    regions = found.groups[1].regions
    assert regions.centroids_n3.tolist() == [[2, 6.5, 14.5]]
    assert (regions.low_n3.tolist(), regions.high_n3.tolist()) == ([[1, 5, 10]], [[4, 9, 20]])
    assert found.pixels_zc[:, 1].tolist() == [0, 40, 40, 40, 0, 0]
    assert found.pixels_zc.sum() == mask_zyx.size


def test_spheres_that_touch_diagonally_are_two_and_by_a_face_one(tmp_path: Path) -> None:
    first_zyx = ball((24, 24, 24), (5, 5, 5), 4)
    apart_zyx = np.zeros_like(first_zyx)
    corner = np.argwhere(first_zyx).sum(axis=1).argmax()
    far = np.argwhere(first_zyx)[corner]
    # the same sphere, mirrored at the outermost corner of the first one
    second = 2 * far + 1 - np.argwhere(first_zyx)
    apart_zyx[tuple(second.T)] = True
    volume = int(first_zyx.sum())
    assert measured(tmp_path, (first_zyx | apart_zyx).astype(np.uint8)).sizes(1).tolist() == [volume] * 2
    beside_zyx = np.roll(first_zyx, 9, axis=2)
    assert measured(tmp_path, (first_zyx | beside_zyx).astype(np.uint8)).sizes(1).tolist() == [2 * volume]


def test_planes_by_themselves_cut_an_object_into_its_sections(tmp_path: Path) -> None:
    mask_zyx = np.zeros((3, 8, 8), np.uint8)
    mask_zyx[:, 2:4, 2:5] = 1
    mask_zyx[1, 6, 6] = 1
    found = measured(tmp_path, mask_zyx, (None, 0.5, 2.0), volume=False)
    assert found.scale == Scale((1, 0.5, 2.0), "um", "um2")
    assert found.sizes(1).tolist() == [6, 6, 1, 6]
    assert [one.plane for one in found.groups if one.class_index == 1] == [0, 1, 2]


def test_numbered_objects_are_one_through_all_planes_or_one_in_each(tmp_path: Path) -> None:
    mask_zyx = np.zeros((3, 8, 8), np.uint32)
    mask_zyx[0, 1, 1] = mask_zyx[2, 5, 1:4] = 4_000_000_000
    mask_zyx[1, 6] = 3
    together = measured(tmp_path, mask_zyx, objects=True)
    assert together.groups[0].regions.numbers_n.tolist() == [3, 4_000_000_000]
    assert together.sizes(1).tolist() == [8, 4]
    assert together.groups[0].regions.centroids_n3[1].tolist() == [1.5, 4, 1.75]
    apart = measured(tmp_path, mask_zyx, objects=True, volume=False)
    assert [one.regions.sizes_n.tolist() for one in apart.groups] == [[1], [8], [3]]
    assert apart.pixels_zc.tolist() == [[63, 1], [56, 8], [61, 3]]


def test_pores_are_those_of_the_class_that_is_named(tmp_path: Path) -> None:
    mask_zyx = np.zeros((5, 6, 6), np.uint8)
    mask_zyx[:, 2, 2] = 1
    found = measured(tmp_path, mask_zyx, pore=1).pores
    assert found is not None
    assert (found.porosity, found.percolating_share_zyx) == (5 / 180, (1, 0, 0))
    absent = measured(tmp_path, 0 * mask_zyx, pore=1).pores
    assert absent is not None
    assert (absent.class_index, absent.porosity) == (1, 0)


def test_without_names_there_are_as_many_classes_as_indices(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    write_stack(path, np.full((2, 4, 4), 2, np.uint8), num_planes=2)
    with open_input(path) as masks:
        found = measure_classes(masks, None, volume=False, pore=None, progress=no_progress)
    assert found.classes == unnamed_classes(3)
    assert found.pixels_zc.tolist() == [[0, 0, 16]] * 2


@pytest.mark.parametrize(
    ("voxel_size", "volume", "unit"),
    [
        ((2, 1, 1), True, "um3"),
        ((2, 1, 1), False, "um2"),
        ((None, 1, 1), True, "voxels"),
        ((2, None, None), True, "voxels"),
        ((2, None, 1), False, "px"),
        (None, False, "px"),
    ],
)
def test_units_are_micrometres_where_all_sides_are_known(voxel_size: VoxelSize, volume: bool, unit: str) -> None:
    assert scale_of(voxel_size, volume=volume).size == unit


def test_a_volume_that_does_not_fit_is_told_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=6 * 99))
    with pytest.raises(MachineError, match=r"takes about .* GB of memory.* --2d"):
        measured(tmp_path, np.zeros((4, 5, 5), np.uint8))
    measured(tmp_path, np.zeros((3, 3, 11), np.uint8))
    measured(tmp_path, np.zeros((4, 5, 5), np.uint8), volume=False)


def test_one_plane_is_no_volume(tmp_path: Path) -> None:
    write_stack(tmp_path / "m.tif", np.zeros((1, 4, 4), np.uint8), num_planes=1)
    with open_input(tmp_path / "m.tif") as masks, pytest.raises(DataError, match="one plane"):
        require_volume(masks)
