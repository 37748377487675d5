"""The rock of the sample stack: which mineral fills each voxel, and how bright it is before imaging.

Integer arithmetic on the raw bits of PCG64 throughout. What is at a voxel depends on the seed and its position alone,
so that any block of planes can be made by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]

PORE, CLAY, QUARTZ, HEAVY = range(4)
_LEVELS = np.array([15500, 22500, 31000, 45000], np.int32)  # grey level of each

_GRAINS, _HEAVIES, _ROUGHNESS, _CLAY_BODIES, _CLAY_EDGES, _CLAY_TEXTURE = range(6)  # random streams
_STEPS = 4  # centres and radii of grains are in quarters of a voxel
_SURFACE = 4096  # the scaled squared distance at a grain's surface
_CEMENTED = 1200  # narrower gaps between grains are closed, as quartz cement does
_FAR = 4 * _SURFACE  # no grain near
_OVERHANG = 3  # lattice cells before the first voxel, whose grains may reach in


@dataclass(frozen=True)
class _Population:
    """Grains, at most one per cell of a jittered lattice.

    Parameters
    ----------
    stream
        Of random bits.
    pitch
        Of the lattice, in voxels.
    radius, radius_span
        Radii are drawn evenly from here on, over this span; quarter voxels.
    keep
        Cells of 256 that hold a grain.
    """

    stream: int
    pitch: int
    radius: int
    radius_span: int
    keep: int


@dataclass(frozen=True)
class _Grain:
    """A ball, cut flat along two axes (64 long) to different degrees; lengths in quarter voxels."""

    centre_zyx: tuple[int, int, int]
    radius: int
    axes_zyx: tuple[tuple[int, int, int], tuple[int, int, int]]
    flatness: tuple[int, int]
    shade: int


_QUARTZ_GRAINS = _Population(_GRAINS, pitch=26, radius=42, radius_span=50, keep=220)
_HEAVY_GRAINS = _Population(_HEAVIES, pitch=16, radius=13, radius_span=7, keep=120)


def rock(start: int, shape_zyx: tuple[int, int, int], seed: int) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Return minerals (PORE … HEAVY) and grey levels (both Z, Y, X) of the block whose first plane is `start`."""
    nearest, second, shade = _distances(_QUARTZ_GRAINS, start, shape_zyx, seed)
    nearest += (value_noise(_ROUGHNESS, 8, start, shape_zyx, seed) - 128) * 5
    bodies = value_noise(_CLAY_BODIES, 22, start, shape_zyx, seed)
    bodies += value_noise(_CLAY_EDGES, 9, start, shape_zyx, seed) // 4
    crowding = nearest - _SURFACE + (second - _SURFACE) // 2  # small in throats and along the grains' walls
    heavy, _, _ = _distances(_HEAVY_GRAINS, start, shape_zyx, seed)

    minerals = np.full(shape_zyx, PORE, np.uint8)
    minerals[crowding < (bodies - 172) * 400] = CLAY
    minerals[(nearest < _SURFACE) | (crowding < _CEMENTED)] = QUARTZ
    minerals[heavy < _SURFACE] = HEAVY

    texture = (value_noise(_CLAY_TEXTURE, 3, start, shape_zyx, seed) - 128) * 30
    levels = _LEVELS[minerals]
    levels += np.where(minerals == QUARTZ, shade, 0) + np.where(minerals == CLAY, texture, 0)
    return minerals, levels


def value_noise(stream: int, pitch: int, start: int, shape_zyx: tuple[int, int, int], seed: int) -> IntArray:
    """Return smooth noise (Z, Y, X) from 0 to 255: random bytes, `pitch` voxels apart, and what lies between."""
    num_rows, num_columns = (extent // pitch + 2 for extent in shape_zyx[1:])
    first, last = start // pitch, (start + shape_zyx[0] - 1) // pitch + 1
    bits = [
        np.random.PCG64([seed, stream, layer]).random_raw(num_rows * num_columns) for layer in range(first, last + 1)
    ]
    noise = (np.stack(bits) >> np.uint64(56)).astype(np.int32).reshape(-1, num_rows, num_columns)
    for axis, origin in enumerate((start - first * pitch, 0, 0)):
        cell, along = np.divmod(np.arange(origin, origin + shape_zyx[axis], dtype=np.int32), np.int32(pitch))
        weight = _along(along * along * (3 * pitch - 2 * along) * 256 // pitch**3, axis)  # smoothstep, per 256
        noise = (np.take(noise, cell, axis) * (256 - weight) + np.take(noise, cell + 1, axis) * weight) // 256
    return noise


def integer_root(squares: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the square roots, rounded down."""
    roots = np.arange(1 << (int(squares.max()).bit_length() // 2 + 1), dtype=np.int64)
    return np.searchsorted(roots * roots, squares, side="right") - 1


def _distances(
    population: _Population, start: int, shape_zyx: tuple[int, int, int], seed: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Return the scaled squared distances to the nearest and second grain, and the shade of the nearest (Z, Y, X)."""
    nearest = np.full(shape_zyx, _FAR, np.int32)
    second = np.full(shape_zyx, _FAR, np.int32)
    shade = np.zeros(shape_zyx, np.int32)
    for grain in _grains(population, start, shape_zyx, seed):
        reach = grain.radius * 3 // 2  # pores between grains are filled in by their distances as well
        box: list[slice] = []
        offsets: list[IntArray] = []
        for axis, origin in enumerate((start, 0, 0)):
            centre = grain.centre_zyx[axis] - origin * _STEPS
            low = max(0, (centre - reach) // _STEPS)
            high = max(low, min(shape_zyx[axis], (centre + reach) // _STEPS + 1))
            box.append(slice(low, high))
            offsets.append(_along(np.arange(low, high, dtype=np.int32) * _STEPS - centre, axis))
        z, y, x = offsets
        squared = z * z + y * y + x * x
        for (axis_z, axis_y, axis_x), flatness in zip(grain.axes_zyx, grain.flatness, strict=True):
            depth = (axis_z * z + axis_y * y + axis_x * x) // 64
            squared = np.maximum(squared, depth * depth * (288 + flatness * 3) // 256)
        distance = squared * (_SURFACE * 4096 // grain.radius**2) // 4096
        window = (box[0], box[1], box[2])
        shade[window] = np.where(distance < nearest[window], grain.shade, shade[window])
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    return nearest, second, shade


def _grains(population: _Population, start: int, shape_zyx: tuple[int, int, int], seed: int) -> Iterator[_Grain]:
    """Yield the grains that may reach into a block, in an order which is the same for every block."""
    pitch = population.pitch
    reach = (population.radius + population.radius_span) * 3 // 2 // _STEPS + 1
    first = max((start - reach) // pitch - 1, -_OVERHANG)
    last = (start + shape_zyx[0] + reach) // pitch
    num_rows, num_columns = (extent // pitch + 1 + 2 * _OVERHANG for extent in shape_zyx[1:])
    for layer in range(first, last + 1):
        bits = np.random.PCG64([seed, population.stream, layer + _OVERHANG]).random_raw(num_rows * num_columns * 2)
        draws = bits.astype("<u8").view(np.uint8).reshape(num_rows, num_columns, 16)
        for row, column in np.ndindex(num_rows, num_columns):
            draw = draws[row, column].tolist()
            if draw[0] >= population.keep:
                continue
            cell_zyx = (layer, row - _OVERHANG, column - _OVERHANG)
            z, y, x = (
                (256 * cell + byte) * pitch * _STEPS // 256 for cell, byte in zip(cell_zyx, draw[1:4], strict=True)
            )
            yield _Grain(
                centre_zyx=(z, y, x),
                radius=population.radius + draw[4] * population.radius_span // 255,
                axes_zyx=(_direction(draw[5:8]), _direction(draw[8:11])),
                flatness=(draw[11], draw[12]),
                shade=_shade(draw[13]),
            )


def _direction(draw: list[int]) -> tuple[int, int, int]:
    """Return the direction, 64 long, that three random bytes point to."""
    z, y, x = (2 * byte - 255 for byte in draw)  # odd, hence never all zero
    length = int(integer_root(np.array(z * z + y * y + x * x)))
    return z * 64 // length, y * 64 // length, x * 64 // length


def _shade(byte: int) -> int:
    """Return a grain's grey offset: quartz differs a little, and one grain in eight is feldspar, which is brighter."""
    return 3600 + byte * 4 if byte % 8 == 0 else (byte - 128) * 12


def _along(values: IntArray, axis: int) -> IntArray:
    """Return values that lie along one of three axes."""
    return values.reshape([-1 if other == axis else 1 for other in range(3)])
