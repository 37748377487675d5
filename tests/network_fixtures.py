"""Tiny projects for the learning room: stacks of a few planes, and networks that train in a second."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stackseg.training.train import Callback, EpochReport, TrainingResult, TrainingStart
from tiny_projects import Project, make_tiny_project, tiny_stack, write_specimen
from touching_discs import make_disc_project


class Follower(Callback):
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

    return make_tiny_project


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
def trained_on_discs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, TrainingResult]:
    """A short training on masks that number objects; its bundle is in folder / "model" and must not be changed."""
    project = make_disc_project(tmp_path_factory.mktemp("discs"))
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
    import stackseg.training.validation as module

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

    from stackseg.serving.encode import decode_tiff_mask

    def ask(image: bytes, bundle: Any, **params: Any) -> Any:
        model = served.SegmentationModel()
        model.use(bundle)
        answer = model.predict(None, pd.DataFrame({"image": [image]}), params).iloc[0]
        return decode_tiff_mask(answer["mask"])

    return ask
