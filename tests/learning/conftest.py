"""Tiny projects for the learning room: stacks of a few planes, and networks that train in a second."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from stackseg.imaging.catalog import Catalog, build_catalog
from stackseg.learning.training import Callback, EpochReport, Machine, TrainingResult, TrainingStart, train
from stackseg.params import Params

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
        self, name: str = "model", *, callbacks: tuple[Callback, ...] = (), machine: Machine | None = None
    ) -> TrainingResult:
        """Train into folder / name, on the CPU."""
        result = train(
            self.params,
            self.catalog,
            data=self.data,
            model=self.folder / name,
            checkpoints=self.checkpoints,
            machine=machine or Machine(device="cpu"),
            callbacks=callbacks,
        )
        assert result is not None
        return result


class Follower:
    """Callback that keeps what it hears, and may stop a training."""

    def __init__(self, *, stop_after_epoch: int | None = None, stop_at_step: tuple[int, int] | None = None) -> None:
        self.starts: list[TrainingStart] = []
        self.steps: list[tuple[int, int]] = []
        self.reports: list[EpochReport] = []
        self._stop_after_epoch = stop_after_epoch
        self._stop_at_step = stop_at_step

    def on_start(self, start: TrainingStart) -> None:
        self.starts.append(start)

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        self.steps.append((epoch, step))
        if (epoch, step) == self._stop_at_step:
            raise Stopped

    def on_epoch(self, report: EpochReport) -> None:
        self.reports.append(report)
        if report.epoch == self._stop_after_epoch:
            raise Stopped


class Stopped(Exception):  # noqa: N818  # no error: the test ends the training as a kill would
    """A training is stopped by its callback."""


MakeProject = Callable[..., Project]


@pytest.fixture(scope="session")
def make_project() -> MakeProject:
    """Return a function that writes a project of one stack: (folder, settings, **arguments of tiny_stack)."""

    def make(folder: Path, settings: Mapping[str, Any] | None = None, **stack: Any) -> Project:
        write_specimen(folder / "data" / "rock", *tiny_stack(**stack))
        params = Params().override({**SETTINGS, **(settings or {})})
        return Project(folder, params, build_catalog(folder / "data", params))

    return make


@pytest.fixture(scope="session")
def shared_project(make_project: MakeProject, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of one stack that no test changes."""
    return make_project(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def tiny(shared_project: Project, tmp_path: Path) -> Project:
    """The shared stack, with a folder of its own for what a test writes."""
    return shared_project.at(tmp_path / "project")


@pytest.fixture(scope="session")
def trained(shared_project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, TrainingResult]:
    """A finished training, whose bundle is in folder / "model" and must not be changed."""
    project = shared_project.at(tmp_path_factory.mktemp("trained") / "project")
    return project, project.train()


@pytest.fixture(scope="session")
def follower() -> type[Follower]:
    """The callback class that keeps what it hears."""
    return Follower


@pytest.fixture(scope="session")
def stopped() -> type[Stopped]:
    """What a follower raises to stop a training."""
    return Stopped


@pytest.fixture(scope="session")
def stack_files() -> tuple[Callable[..., Any], Callable[..., None]]:
    """The functions (tiny_stack, write_specimen)."""
    return tiny_stack, write_specimen


@pytest.fixture
def segment_in_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Return a function that puts another segment() into training's validation."""
    import stackseg.learning.validation as module

    return lambda replacement: monkeypatch.setattr(module, "segment", replacement)


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skip where torch.compile finds no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        pytest.skip("torch.compile needs a C++ compiler, and there is none")


@pytest.fixture(scope="session")
def served() -> Any:
    """The module behind the served model."""
    with warnings.catch_warnings():
        # MLflow complains of type hints of its own
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        from stackseg.serving import pyfunc
    return pyfunc


@pytest.fixture(scope="session")
def segment_bytes(served: Any) -> Callable[..., Any]:
    """Asks the served model for the mask of a file held in memory."""
    import pandas as pd

    from stackseg.serving.answers import decode_mask

    def ask(image: bytes, bundle: Any, **params: Any) -> Any:
        model = served.SegmentationModel()
        model.use(bundle)
        answer = model.predict(None, pd.DataFrame({"image": [image]}), params).iloc[0]
        return decode_mask(answer["mask"], answer["output"])

    return ask
