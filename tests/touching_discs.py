"""Made fields of touching discs, whose masks number them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stackseg.catalog.build import build_catalog
from stackseg.params import Params
from tiny_projects import SETTINGS, Project, write_specimen


def touching_discs(
    num_planes: int, shape_yx: tuple[int, int] = (64, 64), *, seed: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return uint8 images (Z, Y, X) and uint16 masks (Z, Y, X) of pairs of discs that touch, brighter within.

    Values have gaps and go beyond 255.
    """
    random = np.random.default_rng(seed)
    y_yx, x_yx = np.indices(shape_yx)
    images, masks = np.full((num_planes, *shape_yx), 40.0), np.zeros((num_planes, *shape_yx), np.uint16)
    for z in range(num_planes):
        for value, (centre_y, centre_x) in enumerate(_centres(shape_yx), start=1):
            angle, radius = random.uniform(0, np.pi), random.uniform(5, 6.5)
            for place, sign in enumerate((-1, 1)):
                to_y, to_x = sign * (radius - 0.5) * np.sin(angle), sign * (radius - 0.5) * np.cos(angle)
                distance_yx = np.hypot(y_yx - centre_y - to_y, x_yx - centre_x - to_x)
                inside_yx = (distance_yx < radius) & (masks[z] == 0)
                masks[z][inside_yx] = 1000 * z + 90 * value + 7 * place
                images[z][inside_yx] = 200 - 12 * distance_yx[inside_yx]
    return np.clip(images + random.normal(0, 6, images.shape), 0, 255).astype(np.uint8), masks


def _centres(shape_yx: tuple[int, int]) -> list[tuple[int, int]]:
    return [(y, x) for y in range(16, shape_yx[0], 32) for x in range(16, shape_yx[1], 32)]


# enough to find some objects
LEARNING = {"train.patches_per_epoch": 96, "train.batch_size": 8, "train.lr": 0.005}
OBJECTS = [
    {"name": "background", "raw": 0, "display": "#000000"},
    {"name": "disc", "raw": 1, "display": "#e69f00"},
]


def make_disc_project(folder: Path, settings: Mapping[str, Any] | None = None, num_planes: int = 12) -> Project:
    """Write a project of one stack of such fields."""
    write_specimen(folder / "data" / "discs", *touching_discs(num_planes))
    chosen = {"data.classes": OBJECTS, "data.instances": True, "train.patch_size": 64, **LEARNING, **(settings or {})}
    params = Params().override({**SETTINGS, **chosen})
    return Project(folder, params, build_catalog(folder / "data", params))
