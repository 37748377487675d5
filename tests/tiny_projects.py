"""Tiny projects: stacks of a few planes, and networks that train in a second."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from stackseg.catalog.build import build_catalog
from stackseg.dataset.records import Catalog
from stackseg.params import Params
from stackseg.training.parent import Parent
from stackseg.training.train import Callback, Machine, TrainingResult, train

CLASSES = [
    {"name": "void", "raw": 0, "display": "#000000"},
    {"name": "grain", "raw": 3, "display": "#00ff00"},
    {"name": "ore", "raw": 7, "display": "#ff0000"},
]
RAW = np.array([0, 3, 7], np.uint8)
# Linknet on timm's smallest ResNet: 0.4 M parameters, batch normalisation, depth 5
SETTINGS: dict[str, Any] = {
    "data.classes": CLASSES,
    "split.gap": 0,
    "model.architecture": "Linknet",
    "model.encoder": "tu-test_resnet",
    "train.epochs": 3,
    "train.patches_per_epoch": 8,
    "train.patch_size": 32,
    "train.batch_size": 4,
    "train.validate_every": 1,
    "train.precision": "fp32",
    "inference.tile": 64,
    "inference.overlap": 16,
    "inference.precision": "fp32",
    "evaluate.bootstrap_samples": 100,
}


def tiny_stack(
    num_planes: int = 10, shape_yx: tuple[int, int] = (40, 48), *, channels: int = 1, seed: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return noisy uint16 images (Z, Y, X[, C]) and raw masks (Z, Y, X) of three classes, the last one rare."""
    random = np.random.default_rng(seed)
    coarse_zyx = random.random((num_planes, -(-shape_yx[0] // 8), -(-shape_yx[1] // 8)))
    labels_zyx = np.digitize(coarse_zyx, [0.5, 0.93]).astype(np.uint8)
    labels_zyx = labels_zyx.repeat(8, 1).repeat(8, 2)[:, : shape_yx[0], : shape_yx[1]]
    levels_zyx = np.array([8000, 20000, 45000])[labels_zyx]
    levels = levels_zyx if channels == 1 else np.stack([np.roll(levels_zyx, c, 2) for c in range(channels)], -1)
    images = np.clip(levels + random.normal(0, 4000, levels.shape), 0, 65535).astype(np.uint16)
    return images, RAW[labels_zyx]


def write_specimen(folder: Path, images: np.ndarray[Any, Any], masks_zyx: np.ndarray[Any, Any]) -> None:
    """Write images.tif and masks.tif of a specimen."""
    folder.mkdir(parents=True, exist_ok=True)
    coloured = images.ndim == 4
    for name, stack in (("images.tif", images), ("masks.tif", masks_zyx)):
        rgb = coloured and name == "images.tif"
        tifffile.imwrite(
            folder / name,
            stack,
            photometric="rgb" if rgb else "minisblack",
            metadata={"axes": "ZYXS" if rgb else "ZYX"},
        )


@dataclass(frozen=True)
class Project:
    """A data folder, params and the catalogue of both."""

    folder: Path
    params: Params
    catalog: Catalog

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def having(self, settings: Mapping[str, Any]) -> Project:
        """Return the same data under other params, catalogued anew."""
        params = self.params.override(settings)
        return replace(self, params=params, catalog=build_catalog(self.data, params))

    def at(self, folder: Path) -> Project:
        """Return the same project with a folder of its own for checkpoints and models; its data stay where they are."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data").symlink_to(self.data, target_is_directory=True)
        return replace(self, folder=folder)

    def train(
        self,
        name: str = "model",
        *,
        callbacks: tuple[Callback, ...] = (),
        machine: Machine | None = None,
        parent: Parent | None = None,
    ) -> TrainingResult:
        """Train into folder / name, on the CPU."""
        result = train(
            self.params,
            self.catalog,
            data=self.data,
            model=self.folder / name,
            checkpoints=self.checkpoints,
            parent=parent,
            machine=machine or Machine(device="cpu"),
            callbacks=callbacks,
        )
        assert result is not None
        shutil.rmtree(self.checkpoints)  # as registering does: an equal training starts anew
        self.checkpoints.mkdir()
        return result


def make_tiny_project(folder: Path, settings: Mapping[str, Any] | None = None, **stack: Any) -> Project:
    """Write a project of one stack; `stack` are arguments of `tiny_stack`."""
    write_specimen(folder / "data" / "rock", *tiny_stack(**stack))
    params = Params().override({**SETTINGS, **(settings or {})})
    return Project(folder, params, build_catalog(folder / "data", params))
