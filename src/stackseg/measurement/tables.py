"""Measures as tables for spreadsheets: the unit of a column stands in its head."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stackseg.measurement.measure import Measures, Scale
from stackseg.measurement.pores import PoreSpace

FRACTIONS, OBJECTS, SUMMARY, PORES = "fractions.csv", "objects.csv", "summary.csv", "pores.csv"

Row = Sequence[Any]


def write_tables(folder: Path, measures: Measures) -> None:
    """Write fractions.csv, objects.csv, summary.csv and, of pores, pores.csv into a folder that is there."""
    _write(folder / FRACTIONS, fraction_columns(measures), fraction_rows(measures))
    _write(folder / OBJECTS, object_columns(measures), object_rows(measures))
    _write(folder / SUMMARY, summary_columns(measures), summary_rows(measures))
    if measures.pores is not None:
        _write(folder / PORES, PORE_COLUMNS, [pore_row(measures, measures.pores)])


def fraction_columns(measures: Measures) -> list[str]:
    """Return the head of fractions.csv; columns in micrometres are there where the file says the voxel size."""
    z = ["z_um"] if measures.spacing_z_um else []
    area = ["area_um2"] if measures.plane_scale.length == "um" else []
    return ["plane", *z, "class_index", "class", "pixels", "fraction", *area]


def fraction_rows(measures: Measures) -> Iterator[Row]:
    """Yield a row for each plane and class."""
    for plane, pixels_c in enumerate(measures.pixels_zc.tolist()):
        z = [plane * measures.spacing_z_um] if measures.spacing_z_um else []
        for index, (one, pixels) in enumerate(zip(measures.classes, pixels_c, strict=True)):
            area = [pixels * measures.plane_scale.voxel] if measures.plane_scale.length == "um" else []
            yield (plane, *z, index, one.name, pixels, pixels / sum(pixels_c), *area)


def object_columns(measures: Measures) -> list[str]:
    """Return the head of objects.csv."""
    letters, length = _letters(measures), measures.scale.length
    return [
        *([] if _is_volume(measures.scale) else ["plane"]),
        "object",
        "class_index",
        "class",
        size_column(measures.scale),
        f"equivalent_diameter_{length}",
        *(f"centroid_{letter}_{length}" for letter in letters),
        *(f"box_{letter}_{end}_px" for letter in letters for end in ("from", "to")),
    ]


def object_rows(measures: Measures) -> Iterator[Row]:
    """Yield a row for each object: numbered by the mask, or through all planes and classes from 1."""
    scale, next_number = measures.scale, 1
    volume = _is_volume(scale)
    axes = slice(0 if volume else 1, 3)
    for group in measures.groups:
        regions, plane = group.regions, [] if volume else [group.plane]
        name = measures.classes[group.class_index].name
        numbers = regions.numbers_n if measures.numbered else np.arange(next_number, next_number + len(regions))
        next_number += len(regions)
        sizes_n = regions.sizes_n * scale.voxel
        diameters_n = (6 * sizes_n / np.pi) ** (1 / 3) if volume else (4 * sizes_n / np.pi) ** 0.5
        centroids_n3 = regions.centroids_n3 * scale.sides_zyx
        boxes_n6 = np.stack([regions.low_n3, regions.high_n3], axis=2)[:, axes].reshape(len(regions), -1)
        columns = (numbers, sizes_n, diameters_n, centroids_n3[:, axes], boxes_n6)
        for number, size, diameter, centroid, box in zip(*(one.tolist() for one in columns), strict=True):
            yield (*plane, number, group.class_index, name, size, diameter, *centroid, *box)


def summary_columns(measures: Measures) -> list[str]:
    """Return the head of summary.csv."""
    size, known = size_column(measures.scale), measures.scale.length == "um"
    sizes = [f"{which}_{size}" for which in ("median", "mean", "largest")]
    return ["class_index", "class", "pixels", "fraction", *([size] if known else []), "objects", *sizes]


def summary_rows(measures: Measures) -> Iterator[Row]:
    """Yield a row for each class: its share of all planes, and its objects."""
    pixels_c = measures.pixels_zc.sum(axis=0)
    for index, (one, pixels) in enumerate(zip(measures.classes, pixels_c.tolist(), strict=True)):
        total = [pixels * measures.scale.voxel] if measures.scale.length == "um" else []
        sizes = measures.sizes(index)
        described: list[float | None] = [None] * 3
        if len(sizes):
            described = [float(np.median(sizes)), float(sizes.mean()), float(sizes.max())]
        counted = None if measures.numbered and index == 0 else len(sizes)
        yield (index, one.name, pixels, pixels / int(pixels_c.sum()), *total, counted, *described)


PORE_COLUMNS = [
    *("class_index", "class", "porosity", "pores", "largest_share"),
    *(f"{what}_{letter}" for what in ("percolates", "percolating_share") for letter in "zyx"),
]


def pore_row(measures: Measures, pores: PoreSpace) -> Row:
    """Return the row of pores.csv."""
    shares = pores.percolating_share_zyx
    name = measures.classes[pores.class_index].name
    through = ["yes" if share else "no" for share in shares]
    return (pores.class_index, name, pores.porosity, pores.num_pores, pores.largest_share, *through, *shares)


def size_column(scale: Scale) -> str:
    """Return the name of the column of volumes or areas."""
    return f"{'volume' if _is_volume(scale) else 'area'}_{scale.size}"


def _is_volume(scale: Scale) -> bool:
    return scale.size in ("um3", "voxels")


def _letters(measures: Measures) -> str:
    return "zyx" if _is_volume(measures.scale) else "yx"


def _write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
