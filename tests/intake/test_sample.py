from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_multiotsu

from stackseg.errors import DataError, MachineError
from stackseg.intake import sample as synthetic
from stackseg.intake.sample import (
    DEFAULT_SHAPE_ZYX,
    SAMPLE_CLASSES,
    is_untouched_sample,
    sample_stack,
    write_sample,
)
from stackseg.intake.sample_rock import integer_root
from stackseg.model.confusion import confusion_counts, iou_per_class

# data.dvc is made of these bytes: whatever changes them must raise the format, and data.dvc with it
SHA256 = {
    "images.tif": "d5716d02b0afeea322f966ea18ba21aff7e31d11fcfdd538d8dd85e5f0d72715",
    "masks.tif": "b048b03784b1e51750f8b8bb5308c6c915c2eda1e0fe8ee176c66b94523e8adb",
}
SMALL = (6, 40, 32)


@pytest.fixture(scope="module")
def default_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "data"
    write_sample(folder)
    return folder


@pytest.fixture(scope="module")
def default_stack(default_folder: Path) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    return tifffile.imread(default_folder / "images.tif"), tifffile.imread(default_folder / "masks.tif")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_sample(folder, (2, 12, 10))
    return folder


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    write_sample(tmp_path / "data", SMALL)
    return tmp_path / "data"


def test_the_default_files_have_the_same_bytes_everywhere(default_folder: Path) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in default_folder.iterdir()}
    assert found == SHA256


def test_the_class_table_names_the_values_of_the_masks(default_stack: tuple[npt.NDArray, npt.NDArray]) -> None:
    images_zyx, masks_zyx = default_stack
    assert [(name, value) for name, value, _ in SAMPLE_CLASSES] == [
        ("pore", 0),
        ("clay", 1),
        ("quartz", 2),
        ("heavy_mineral", 3),
    ]
    assert len({colour for _, _, colour in SAMPLE_CLASSES}) == 4
    assert images_zyx.shape == masks_zyx.shape == DEFAULT_SHAPE_ZYX
    assert (images_zyx.dtype, masks_zyx.dtype) == (np.uint16, np.uint8)
    means = [images_zyx[masks_zyx == value].mean() for _, value, _ in SAMPLE_CLASSES]
    assert means == sorted(means)


def test_every_plane_holds_every_class_in_plausible_amounts(default_stack: tuple[npt.NDArray, npt.NDArray]) -> None:
    _, masks_zyx = default_stack
    counts_zc = np.stack([np.bincount(plane.ravel(), minlength=4) for plane in masks_zyx])
    assert counts_zc.shape[1] == 4
    assert counts_zc.min() >= 100
    fractions = counts_zc.sum(axis=0) / masks_zyx.size
    for fraction, (low, high) in zip(fractions, [(0.2, 0.4), (0.05, 0.15), (0.45, 0.65), (0.01, 0.03)], strict=True):
        assert low < fraction < high


def test_thresholds_fail(default_stack: tuple[npt.NDArray, npt.NDArray]) -> None:
    images_zyx, masks_zyx = default_stack
    thresholds = threshold_multiotsu(images_zyx.astype(np.float32), classes=4, nbins=256)
    iou = iou_per_class(confusion_counts(masks_zyx, np.digitize(images_zyx, thresholds), 4))
    assert np.mean([value for value in iou if value is not None]) < 0.45


def test_neighbouring_planes_are_alike_and_distant_ones_are_not(
    default_stack: tuple[npt.NDArray, npt.NDArray],
) -> None:
    images_zyx, _ = default_stack

    def correlation(gap: int) -> float:
        pairs = zip(images_zyx[:-gap:4], images_zyx[gap::4], strict=True)
        return float(np.mean([np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in pairs]))

    assert correlation(1) > 0.6
    assert abs(correlation(40)) < 0.1


def test_the_rings_lie_around_the_axis() -> None:
    gain_yx = synthetic._gain(31, 41, seed=7)
    np.testing.assert_array_equal(gain_yx, gain_yx[::-1])
    np.testing.assert_array_equal(gain_yx, gain_yx[:, ::-1])
    np.testing.assert_array_equal(gain_yx[15, 5:36], gain_yx[:, 20])


@settings(deadline=None, max_examples=12)
@given(
    shape_zyx=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32),
)
def test_any_size_and_seed_gives_classes_and_the_same_again(shape_zyx: tuple[int, int, int], seed: int) -> None:
    images_zyx, masks_zyx = sample_stack(shape_zyx, seed=seed)
    again_zyx, masks_again_zyx = sample_stack(shape_zyx, seed=seed)
    assert images_zyx.shape == masks_zyx.shape == shape_zyx
    assert masks_zyx.max() <= 3
    np.testing.assert_array_equal(images_zyx, again_zyx)
    np.testing.assert_array_equal(masks_zyx, masks_again_zyx)


def test_another_seed_gives_another_rock() -> None:
    one_zyx, other_zyx = sample_stack(SMALL)[1], sample_stack(SMALL, seed=8)[1]
    assert (one_zyx != other_zyx).mean() > 0.2


@pytest.mark.parametrize("planes_at_a_time", [4, 7])
def test_the_slabs_leave_no_trace(monkeypatch: pytest.MonkeyPatch, planes_at_a_time: int) -> None:
    shape_zyx = (30, 50, 34)
    whole = sample_stack(shape_zyx)
    monkeypatch.setattr(synthetic, "_SLAB_VOXELS", planes_at_a_time * 50 * 34)
    in_slabs = sample_stack(shape_zyx)
    np.testing.assert_array_equal(whole[0], in_slabs[0])
    np.testing.assert_array_equal(whole[1], in_slabs[1])


@pytest.mark.parametrize(("shape_zyx", "seed"), [((0, 32, 32), 7), ((4, 32, -1), 7), ((4, 32, 32), -1)])
def test_impossible_sizes_and_seeds_are_refused(shape_zyx: tuple[int, int, int], seed: int) -> None:
    with pytest.raises(DataError, match="at least one plane"):
        sample_stack(shape_zyx, seed=seed)


def test_the_files_are_plain_stacks_with_axes_and_voxel_size(small_folder: Path) -> None:
    images_zyx, masks_zyx = sample_stack(SMALL)
    for name, volume_zyx in (("images.tif", images_zyx), ("masks.tif", masks_zyx)):
        with tifffile.TiffFile(small_folder / name) as tiff:
            assert tiff.series[0].axes == "ZYX"
            assert tiff.pages.first.tags["XResolution"].value == (1, 2)
            assert tiff.imagej_metadata is not None
            assert (tiff.imagej_metadata["spacing"], tiff.imagej_metadata["unit"]) == (2, "micron")
            assert tiff.pages.first.software == ""
        # mapping works for uncompressed pixels in one piece only
        np.testing.assert_array_equal(tifffile.memmap(small_folder / name, mode="r"), volume_zyx)


def test_an_untouched_sample_is_known_whatever_its_size_and_seed(default_folder: Path, tmp_path: Path) -> None:
    assert is_untouched_sample(default_folder)
    write_sample(tmp_path / "other", (1, 5, 3), seed=0)
    assert is_untouched_sample(tmp_path / "other")


@pytest.mark.parametrize("name", ["images.tif", "masks.tif"])
def test_one_changed_pixel_shows(small_folder: Path, name: str) -> None:
    volume_zyx = tifffile.memmap(small_folder / name, mode="r+")
    volume_zyx[3, 20, 10] += 1
    volume_zyx.flush()
    assert not is_untouched_sample(small_folder)


def test_other_folders_are_not_the_sample(small_folder: Path, tmp_path: Path) -> None:
    assert not is_untouched_sample(tmp_path / "absent")
    assert not is_untouched_sample(tmp_path)
    (small_folder / "notes.txt").write_text("mine")
    assert not is_untouched_sample(small_folder)
    (small_folder / "notes.txt").unlink()
    assert is_untouched_sample(small_folder)
    write_sample(tmp_path / "seed8", SMALL, seed=8)
    shutil.copy(tmp_path / "seed8" / "masks.tif", small_folder)
    assert not is_untouched_sample(small_folder)
    for name in ("images.tif", "masks.tif"):
        tifffile.imwrite(small_folder / name, np.zeros((2, 8, 8), np.uint8), photometric="minisblack")
    assert not is_untouched_sample(small_folder)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damaged_files_are_not_the_sample(tiny_folder: Path, data: st.DataObject) -> None:
    path = tiny_folder / data.draw(st.sampled_from(["images.tif", "masks.tif"]))
    sound = path.read_bytes()
    whole = bytearray(sound)
    if data.draw(st.booleans()):
        damaged = bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        position = data.draw(st.integers(0, len(whole) - 1))
        whole[position] ^= data.draw(st.integers(1, 255))
        damaged = bytes(whole)
    path.write_bytes(damaged)
    try:
        assert not is_untouched_sample(tiny_folder)
    finally:
        path.write_bytes(sound)


def test_a_failed_writing_leaves_what_was_there(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, volume_zyx: npt.NDArray[np.uint8], seed: int) -> None:
        path.write_bytes(b"half")
        if path.name.startswith(".masks"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic, "_write_tiff", full)
    with pytest.raises(MachineError, match="No space left on device"):
        write_sample(small_folder, SMALL, seed=9)
    assert is_untouched_sample(small_folder)


def test_a_file_in_the_folder_s_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        write_sample(tmp_path / "data", SMALL)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**24), min_size=1, max_size=20))
def test_integer_roots_are_rounded_down(squares: list[int]) -> None:
    roots = integer_root(np.array(squares, np.int64)).tolist()
    assert all(root**2 <= square < (root + 1) ** 2 for root, square in zip(roots, squares, strict=True))
