from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stackseg.dataset.files.stack import open_stack
from stackseg.errors import DataError
from stackseg.intake.single_planes import assemble_planes, extract_planes
from stackseg.intake.write_tiff import write_stack

DTYPES = ["u1", "u2", "i2", "f4", "i1", "u4", "f8", ">u2"]
sides = st.floats(1e-3, 1e3)


def no_progress(done: int, total: int) -> None:
    pass


def read(path: Path) -> np.ndarray:
    with open_stack(path) as stack:
        return np.stack([stack.plane(z) for z in range(len(stack))])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 99),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 4, 5])),
    dtype=st.sampled_from(DTYPES),
    voxel_size=st.none() | st.tuples(st.none() | sides, sides, sides),
)
def test_extract_then_assemble_gives_the_stack_back(
    tmp_path: Path,
    seed: int,
    shape: tuple[int, int, int, int],
    dtype: str,
    voxel_size: tuple[float | None, float, float] | None,
) -> None:
    stack_zyxc = (np.random.default_rng(seed).random(shape) * 120).astype(dtype)
    first, again, folder = tmp_path / "s.tif", tmp_path / "again.tif", tmp_path / "planes"
    write_stack(first, stack_zyxc, num_planes=len(stack_zyxc), voxel_size_zyx_um=voxel_size)
    with open_stack(first) as stack:
        extract_planes(stack, folder, range(len(stack)), no_progress)
        before = stack.info
    assert len(list(folder.iterdir())) == len(stack_zyxc)
    assemble_planes(folder, again, no_progress)
    with open_stack(again) as stack:
        after = stack.info
    assert np.array_equal(read(again), stack_zyxc)
    assert (after.dtype, after.num_channels, after.axes) == (before.dtype, before.num_channels, before.axes)
    assert after.encoding == before.encoding
    assert (after.voxel_size_zyx_um is None) == (voxel_size is None)
    for one, other in zip(after.voxel_size_zyx_um or (), before.voxel_size_zyx_um or (), strict=True):
        assert one == (None if other is None else pytest.approx(other, rel=1e-6))


def test_a_file_holds_the_plane_that_its_number_says(tmp_path: Path) -> None:
    stack_zyx = np.arange(12 * 20, dtype=np.uint16).reshape(12, 4, 5)
    write_stack(tmp_path / "s.tif", stack_zyx, num_planes=12, voxel_size_zyx_um=(3, 2, 1))
    with open_stack(tmp_path / "s.tif") as stack:
        extract_planes(stack, tmp_path / "p", range(8, 11), no_progress)
    assert sorted(one.name for one in (tmp_path / "p").iterdir()) == ["s_08.tif", "s_09.tif", "s_10.tif"]
    with open_stack(tmp_path / "p" / "s_09.tif") as plane:
        assert np.array_equal(plane.plane(0)[:, :, 0], stack_zyx[9])
        assert plane.info.voxel_size_zyx_um == pytest.approx((3, 2, 1))
    with tifffile.TiffFile(tmp_path / "p" / "s_09.tif") as tiff:
        assert len(tiff.pages) == 1


def test_palettes_stay_what_they_are(tmp_path: Path) -> None:
    mask_zyx = np.random.default_rng(0).integers(0, 3, (3, 6, 7), np.uint8)
    write_stack(tmp_path / "m.tif", mask_zyx, num_planes=3, colours=["#ff0000", "#00ff00", "#0000ff"])
    with open_stack(tmp_path / "m.tif") as stack:
        extract_planes(stack, tmp_path / "p", range(3), no_progress)
    assemble_planes(tmp_path / "p", tmp_path / "again.tif", no_progress)
    with open_stack(tmp_path / "again.tif") as again:
        assert again.info.encoding == stack.info.encoding
        assert again.info.encoding.kind == "palette"
    assert np.array_equal(read(tmp_path / "again.tif")[..., 0], mask_zyx)


def test_files_are_taken_in_the_order_in_which_people_count(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for number in (10, 9, 2, 1):
        Image.fromarray(np.full((5, 6), number, np.uint8)).save(tmp_path / "p" / f"slice {number}.png")
    info, num_planes = assemble_planes(tmp_path / "p", tmp_path / "s.tif", no_progress)
    assert read(tmp_path / "s.tif")[:, 0, 0, 0].tolist() == [1, 2, 9, 10]
    assert (num_planes, info.dtype) == (4, "uint8")


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (np.zeros((4, 6), np.uint8), "4×6 pixels; expected 5×6 pixels"),
        (np.zeros((5, 6), np.uint16), "uint16; expected uint8"),
        (np.zeros((5, 6, 3), np.uint8), "3 channels; expected 1 channels"),
    ],
)
def test_files_that_differ_are_both_named(tmp_path: Path, odd: np.ndarray, told: str) -> None:
    folder, path = tmp_path / "p", tmp_path / "s.tif"
    folder.mkdir()
    path.write_text("by hand")
    for name, plane in (("a_1.tif", np.zeros((5, 6), np.uint8)), ("a_2.tif", odd)):
        tifffile.imwrite(folder / name, plane, photometric="rgb" if plane.ndim == 3 else "minisblack")
    with pytest.raises(DataError) as error:
        assemble_planes(folder, path, no_progress)
    assert f"{folder / 'a_2.tif'}: {told}, as {folder / 'a_1.tif'} has" in error.value.sentence()
    assert path.read_text() == "by hand"


def test_voxel_sizes_that_differ_and_stacks_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for name, z in (("1.tif", 2.0), ("2.tif", 3.0)):
        write_stack(folder / name, np.zeros((1, 5, 6), np.uint8), num_planes=1, voxel_size_zyx_um=(z, 1, 1))
    with pytest.raises(DataError, match=r"2\.tif: voxel size \(3\.0, 1\.0, 1\.0\); expected voxel size \(2\.0"):
        assemble_planes(folder, tmp_path / "s.tif", no_progress)
    for name, num_planes in (("1.tif", 2), ("2.tif", 1)):
        write_stack(folder / name, np.zeros((num_planes, 5, 6), np.uint8), num_planes=num_planes)
        with pytest.raises(DataError, match=r"1\.tif: 2 planes; expected one plane"):
            assemble_planes(folder, tmp_path / "s.tif", no_progress)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DataError, match="0 files"):
        assemble_planes(folder, tmp_path / "s.tif", no_progress)
