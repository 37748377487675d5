from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackseg.dataset.files.stack import open_stack
from stackseg.errors import DataError, MachineError
from stackseg.intake import write_tiff as writing
from stackseg.intake.write_tiff import write_stack

KILLED = """
import os, signal
import numpy as np
from pathlib import Path
from stackseg.intake.write_tiff import write_stack
def planes():
    yield from np.zeros((2, 8, 9), np.uint8)
    os.kill(os.getpid(), signal.SIGTERM)
write_stack(Path("s.tif"), planes(), num_planes=3)
"""
DTYPES = ["u1", "u2", "i2", "f4", "?", "i1", "u4", "i4", "f8", "f2", "u8", "i8", ">u2", ">f4"]
voxel_sizes = st.none() | st.floats(1e-4, 1e4)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)),
    dtype=st.sampled_from(DTYPES),
    compression=st.sampled_from(["none", "deflate"]),
    voxel_z=voxel_sizes,
    voxel_yx=st.none() | st.tuples(st.floats(1e-4, 1e4), st.floats(1e-4, 1e4)),
)
def test_what_is_written_is_read(
    tmp_path: Path,
    data: st.DataObject,
    shape: tuple[int, int, int, int],
    dtype: str,
    compression: str,
    voxel_z: float | None,
    voxel_yx: tuple[float, float] | None,
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    stack_zyxc = (rng.random(shape) * 120).astype(dtype)
    path = tmp_path / "s.tif"
    voxel_size = (voxel_z, *(voxel_yx or (None, None)))
    write_stack(
        path,
        iter(stack_zyxc),
        num_planes=shape[0],
        voxel_size_zyx_um=voxel_size,
        compression=compression,
    )
    with open_stack(path) as stack:
        read_zyxc = np.stack([stack.plane(z) for z in range(len(stack))])
        info = stack.info
    assert np.array_equal(read_zyxc, stack_zyxc)
    assert read_zyxc.dtype == (np.uint8 if dtype == "?" else stack_zyxc.dtype.newbyteorder("="))
    known = [size is not None for size in voxel_size]
    assert (info.voxel_size_zyx_um is not None) == any(known)
    for read_size, size in zip(info.voxel_size_zyx_um or (None,) * 3, voxel_size, strict=True):
        assert read_size == (None if size is None else pytest.approx(size, rel=1e-6))
    assert [one.name for one in tmp_path.iterdir()] == ["s.tif"]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    stack_zyx = np.arange(4 * 8 * 9, dtype=np.uint16).reshape(4, 8, 9)
    for name in ("a.tif", "b.tif"):
        write_stack(tmp_path / name, stack_zyx, num_planes=4, voxel_size_zyx_um=(2, 1, 1), compression="none")
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert b"tifffile" not in (tmp_path / "a.tif").read_bytes()


def test_other_readers_see_planes_channels_and_colours(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    grey_zyx = np.arange(4 * 8 * 9, dtype=np.uint16).reshape(4, 8, 9)
    write_stack(path, grey_zyx, num_planes=4)
    assert np.array_equal(tifffile.imread(path), grey_zyx)
    multi_zyxc = np.arange(4 * 8 * 9 * 2, dtype=np.uint16).reshape(4, 8, 9, 2)
    write_stack(path, multi_zyxc, num_planes=4)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.series[0].axes == "ZCYX"
    colours_zyxc = np.arange(4 * 8 * 9 * 3, dtype=np.uint16).astype(np.uint8).reshape(4, 8, 9, 3)
    write_stack(path, colours_zyxc, num_planes=4)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.series[0].axes == "ZYXS"
        assert tiff.pages.first.photometric == tifffile.PHOTOMETRIC.RGB


def test_bigtiff_where_classic_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack_zyx = np.zeros((4, 64, 64), np.uint8)
    write_stack(tmp_path / "classic.tif", stack_zyx, num_planes=4)
    monkeypatch.setattr(writing, "CLASSIC_TIFF_BYTES", 4 * 64 * 64)
    write_stack(tmp_path / "big.tif", stack_zyx, num_planes=4)
    assert (tmp_path / "classic.tif").read_bytes()[:4] == b"II*\0"
    assert (tmp_path / "big.tif").read_bytes()[:4] == b"II+\0"
    assert len(open_stack(tmp_path / "big.tif")) == 4


class TestNothingHalfWritten:
    def planes(self, num_planes: int) -> Iterator[np.ndarray]:
        for z in range(num_planes):
            yield np.full((8, 9), z, np.uint8)

    def failing(self) -> Iterator[np.ndarray]:
        yield from self.planes(3)
        raise DataError("the source broke")

    def mixed(self) -> Iterator[np.ndarray]:
        yield from self.planes(3)
        yield np.zeros((8, 10), np.uint8)

    @pytest.mark.parametrize("name", ["failing", "mixed", "few", "many", "none"])
    def test_a_failure_leaves_what_was_there(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "s.tif"
        write_stack(path, self.planes(5), num_planes=5)
        before = path.read_bytes()
        bad = {
            "failing": (self.failing(), "the source broke"),
            "mixed": (self.mixed(), r"plane 3 is \(8, 10\) uint8; expected \(8, 9\) uint8"),
            "few": (self.planes(3), "3 planes; expected 4"),
            "many": (self.planes(5), "more than 4 planes"),
            "none": (self.planes(0), "no planes to write"),
        }
        planes, found = bad[name]
        with pytest.raises(DataError, match=found):
            write_stack(path, planes, num_planes=4)
        assert path.read_bytes() == before
        assert [one.name for one in tmp_path.iterdir()] == ["s.tif"]

    def test_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(MachineError, match="cannot be written: No such file or directory"):
            write_stack(tmp_path / "no" / "s.tif", self.planes(2), num_planes=2)

    def test_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("no folder")
        with pytest.raises(MachineError, match="cannot be written: Not a directory"):
            write_stack(tmp_path / "file" / "s.tif", self.planes(2), num_planes=2)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "s.tif"
        write_stack(path, self.planes(2), num_planes=2)
        before = path.read_bytes()
        # the part file, under the name it will get, is a link to the full device
        part = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.new")
        part.symlink_to("/dev/full")
        with pytest.raises(MachineError, match=r"No space left on device.*Free some space"):
            write_stack(path, (np.zeros((900, 900), np.uint8) for _ in range(9)), num_planes=9, compression="none")
        assert path.read_bytes() == before
        assert [one.name for one in tmp_path.iterdir()] == ["s.tif"]

    def test_what_a_killed_process_left_is_cleared_by_the_next(self, tmp_path: Path) -> None:
        killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False)
        assert killed.returncode == -signal.SIGTERM
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".s.tif.")
        alive, other = tmp_path / f".s.tif.{platform.node()}.{os.getppid()}.new", tmp_path / ".s.tif.notes.new"
        for one in (alive, other):
            one.touch()
        write_stack(tmp_path / "s.tif", self.planes(2), num_planes=2)
        assert set(tmp_path.iterdir()) == {tmp_path / "s.tif", alive, other}

    def test_a_read_only_file_is_replaced_and_its_other_name_kept(self, tmp_path: Path) -> None:
        cached, path = tmp_path / "cached", tmp_path / "s.tif"
        write_stack(cached, self.planes(2), num_planes=2)
        cached.chmod(0o444)
        path.hardlink_to(cached)  # as DVC links from its cache
        before = cached.read_bytes()
        write_stack(path, self.planes(3), num_planes=3)
        assert len(open_stack(path)) == 3
        assert cached.read_bytes() == before
