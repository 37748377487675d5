"""The sample stack: a synthetic micro-CT scan of sandstone with its masks, the same bytes on every platform.

Integer arithmetic on the raw bits of PCG64, whose stream NumPy guarantees, unlike that of `Generator` methods;
floating point would round differently from one machine to the next.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from stackseg.atomic import atomic_file
from stackseg.errors import DataError, MachineError
from stackseg.intake.sample_rock import CLAY, HEAVY, PORE, QUARTZ, IntArray, integer_root, rock

SAMPLE_CLASSES: tuple[tuple[str, int, str], ...] = (
    ("pore", PORE, "#1f2430"),
    ("clay", CLAY, "#e69f00"),
    ("quartz", QUARTZ, "#9aa5b1"),
    ("heavy_mineral", HEAVY, "#d1495b"),
)
"""Name, raw mask value and display colour of each class."""

DEFAULT_SHAPE_ZYX = (96, 128, 128)

_FORMAT = 1  # raise it whenever the bytes change
_NAMES = ("images.tif", "masks.tif")
_VOXEL_SIZE_UM = 2
_NOISE, _RINGS = 100, 101  # random streams, beside those of the rock
# The digests of both files, in both: an edited file, or one of another sample, shows without making the sample again.
_SEAL = b"images_sha256=%b\nmasks_sha256=%b"
_OPEN_SEAL = _SEAL % (b"0" * 64, b"0" * 64)
_SEAL_PATTERN = re.compile(_SEAL % (b"[0-9a-f]{64}", b"[0-9a-f]{64}"))
_HEAD_BYTES = 4096  # the description is within
_MARGIN = 1  # voxels around the stack, which the blur takes away
_SLAB_VOXELS = 1 << 22  # made at a time: about 300 MB of working memory

Images = npt.NDArray[np.uint16]
Masks = npt.NDArray[np.uint8]


def sample_stack(shape_zyx: tuple[int, int, int] = DEFAULT_SHAPE_ZYX, *, seed: int = 7) -> tuple[Images, Masks]:
    """Return the synthetic images (Z, Y, X; uint16) and their masks (Z, Y, X; values of `SAMPLE_CLASSES`).

    Raises
    ------
    DataError
        An extent is not positive, or the seed is negative.
    """
    if min(shape_zyx) < 1 or seed < 0:
        raise DataError(
            f"a sample of {' × '.join(map(str, shape_zyx))} voxels with seed {seed}",
            expected="at least one plane, row and column, and a seed of 0 or more",
            remedy="choose other numbers",
        )
    num_planes, num_rows, num_columns = shape_zyx
    images_zyx = np.empty(shape_zyx, np.uint16)
    masks_zyx = np.empty(shape_zyx, np.uint8)
    gain_yx = _gain(num_rows, num_columns, seed)
    step = max(4, _SLAB_VOXELS // (num_rows * num_columns))
    for start in range(0, num_planes, step):
        stop = min(start + step, num_planes)
        padded_zyx = (stop - start + 2 * _MARGIN, num_rows + 2 * _MARGIN, num_columns + 2 * _MARGIN)
        minerals_zyx, levels_zyx = rock(start, padded_zyx, seed)
        masks_zyx[start:stop] = minerals_zyx[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
        for axis in range(3):
            levels_zyx = _smooth(levels_zyx, axis, centre=6) // 8
        for z in range(start, stop):
            plane_yx = levels_zyx[z - start] * gain_yx // 1024 + _noise(z, num_rows, num_columns, seed)
            images_zyx[z] = np.clip(plane_yx, 0, 65535)
    return images_zyx, masks_zyx


def _gain(num_rows: int, num_columns: int, seed: int) -> IntArray:
    """Return the gain per 1024 (Y, X): cupping, darkest at the axis, and rings around it."""
    y = 2 * np.arange(num_rows, dtype=np.int64)[:, None] - num_rows + 1
    x = 2 * np.arange(num_columns, dtype=np.int64)[None, :] - num_columns + 1
    squared = y * y + x * x
    radius = integer_root(squared) // 2
    draws = np.random.PCG64([seed, _RINGS]).random_raw(int(radius.max()) + 1) >> np.uint64(56)
    offset = draws.astype(np.int64) - 128
    ring = np.where(draws % np.uint64(8) == 0, offset, offset // 10)  # one detector column in eight is far off
    cupping = 190 * squared // int(squared.max() + 1)
    return (930 + cupping + ring[radius]).astype(np.int32)


def _noise(z: int, num_rows: int, num_columns: int, seed: int) -> IntArray:
    """Return a plane's noise (Y, X), nearly normal, σ ≈ 3500, and a little correlated, as reconstruction leaves it."""
    num_padded = (num_rows + 2) * (num_columns + 2)
    octets = np.random.PCG64([seed, _NOISE, z]).random_raw(num_padded).astype("<u8").view(np.uint8)
    white_yx = octets.reshape(num_rows + 2, num_columns + 2, 8).sum(axis=2, dtype=np.int32) - 8 * 255 // 2
    return _smooth(_smooth(white_yx, 0, centre=6), 1, centre=6) * 7 // 16


def _smooth(volume: IntArray, axis: int, *, centre: int) -> IntArray:
    """Return sums of three neighbours along an axis, the middle one weighted; the axis loses both ends."""
    body = np.moveaxis(volume, axis, 0)
    return np.moveaxis(body[:-2] + centre * body[1:-1] + body[2:], 0, axis)


def write_sample(folder: Path, shape_zyx: tuple[int, int, int] = DEFAULT_SHAPE_ZYX, *, seed: int = 7) -> None:
    """Write `images.tif` and `masks.tif` of the sample into a folder, both or none.

    Raises
    ------
    DataError
        As `sample_stack`.
    MachineError
        The disk is full, or the folder cannot be written to.
    """
    images_zyx, masks_zyx = sample_stack(shape_zyx, seed=seed)
    try:
        with atomic_file(folder / _NAMES[0]) as images, atomic_file(folder / _NAMES[1]) as masks:
            _write_tiff(images, images_zyx, seed)
            _write_tiff(masks, masks_zyx, seed)
            seal = _SEAL % (_unsealed_sha256(images)[1], _unsealed_sha256(masks)[1])
            _put_seal(images, seal)
            _put_seal(masks, seal)
    except OSError as error:
        raise MachineError(
            f"the sample cannot be written: {error.strerror or error}",
            where=str(folder),
            remedy="free some space, or check that the folder may be written to",
        ) from error


def is_untouched_sample(folder: Path) -> bool:
    """Return whether a folder holds what `write_sample` wrote, of whatever size and seed, unedited and alone."""
    if not folder.is_dir() or _shown_names(folder) != list(_NAMES):
        return False
    try:
        seals, digests = zip(*(_unsealed_sha256(folder / name) for name in _NAMES), strict=True)
    except OSError:  # what cannot be read is not known to be the sample
        return False
    return set(seals) == {_SEAL % digests}


def _shown_names(folder: Path) -> list[str]:
    """Return the names in a folder but hidden ones, such as those that file managers leave."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _write_tiff(path: Path, volume_zyx: Images | Masks, seed: int) -> None:
    """Write an uncompressed little-endian TIFF without date, program name or anything else that may differ.

    The description is ImageJ's, for a stack in µm, with an open seal.
    """
    num_planes, num_rows, num_columns = volume_zyx.shape
    lines = [
        "ImageJ=1.54f",
        f"images={num_planes}",
        f"slices={num_planes}",
        "unit=micron",
        f"spacing={_VOXEL_SIZE_UM}",
        "loop=false",
        f"sample_format={_FORMAT}",
        f"sample_seed={seed}",
        f"sample_shape_zyx={num_planes}x{num_rows}x{num_columns}",
        _OPEN_SEAL.decode(),
        "",
    ]
    with tifffile.TiffWriter(path, byteorder="<", bigtiff=volume_zyx.nbytes > 4_000_000_000) as tiff:
        tiff.write(
            volume_zyx,
            photometric="minisblack",
            description="\n".join(lines),
            resolution=((1, _VOXEL_SIZE_UM), (1, _VOXEL_SIZE_UM)),
            resolutionunit="NONE",
            metadata=None,
            software=False,
        )


def _put_seal(path: Path, seal: bytes) -> None:
    with path.open("r+b") as file:
        position = file.read(_HEAD_BYTES).index(_OPEN_SEAL)
        file.seek(position)
        file.write(seal)


def _unsealed_sha256(path: Path) -> tuple[bytes, bytes]:
    """Return the seal in a file, empty without one, and the digest of the file as it was with its seal open."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        found = _SEAL_PATTERN.search(head)
        seal = found.group() if found else b""
        sha = hashlib.sha256(_SEAL_PATTERN.sub(_OPEN_SEAL, head, count=1))
        return seal, hashlib.file_digest(file, lambda: sha).hexdigest().encode()
