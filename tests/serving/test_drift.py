"""Images unlike the training part are told with their figures; too different a voxel size is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stackseg.dataset.files.axes import VoxelSize
from stackseg.errors import DataError
from stackseg.model.bundle import BundleSpec, load_bundle
from stackseg.serving.drift import MAX_PLANES, measure_drift, require_voxel_size
from tiny_projects import tiny_stack


class Source:
    """Planes in memory, that count how often they are read."""

    def __init__(self, images_zyx: npt.NDArray[np.generic]) -> None:
        self._images_zyx = images_zyx
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self._images_zyx)

    def plane(self, z: int) -> npt.NDArray[np.generic]:
        self.read.append(z)
        return self._images_zyx[z][:, :, None]


@pytest.fixture(scope="module")
def spec(trained: tuple[Any, Any]) -> BundleSpec:
    project, _ = trained
    found = load_bundle(project.folder / "model").spec
    assert found is not None
    return found


def with_voxels(spec: BundleSpec, size: VoxelSize | None) -> BundleSpec:
    return spec.model_copy(update={"inference": spec.inference.model_copy(update={"voxel_size_zyx_um": size})})


def test_another_stack_of_the_same_kind_has_no_drift(spec: BundleSpec) -> None:
    report = measure_drift(Source(tiny_stack(5, seed=77)[0]), None, spec)
    assert not report.outside
    assert report.sentences() == []


@pytest.mark.parametrize(
    ("change", "named"),
    [(lambda image: image // 4, "median"), (lambda image: np.clip(image, 20000, None), "low")],
    ids=["underexposed", "lifted black"],
)
def test_another_exposure_is_told_with_both_figures(spec: BundleSpec, change: Any, named: str) -> None:
    report = measure_drift(Source(change(tiny_stack(5, seed=77)[0])), None, spec)
    assert report.outside
    told = next(one for one in report.figures if one.figure == named)
    assert not told.training_low <= told.found <= told.training_high
    assert any(one.startswith(named) and "in training" in one for one in report.sentences())


def test_of_a_long_stack_a_few_planes_are_read(spec: BundleSpec) -> None:
    source = Source(tiny_stack(40, seed=77)[0])
    measure_drift(source, None, spec)
    assert len(source.read) == MAX_PLANES
    assert (source.read[0], source.read[-1]) == (0, 39)


@pytest.mark.parametrize(
    ("found", "told", "refused"),
    [
        ((1.0, 0.5, 0.5), False, False),
        ((1.0, 0.54, 0.5), False, False),
        ((1.0, 0.56, 0.5), True, False),
        ((1.0, 0.26, 0.5), True, False),
        ((1.0, 0.24, 0.5), True, True),
        ((1.0, 1.1, 0.5), True, True),
        ((None, 0.5, 0.5), False, False),
        (None, False, False),
    ],
)
def test_voxel_sizes(spec: BundleSpec, found: VoxelSize | None, told: bool, refused: bool) -> None:
    report = measure_drift(Source(tiny_stack(2, seed=77)[0]), found, with_voxels(spec, (1.0, 0.5, 0.5)))
    assert any("voxel size" in one for one in report.sentences()) == told
    assert report.outside == told
    if refused:
        with pytest.raises(DataError, match=r"within a factor of 2.*Rescale the image; or say so") as caught:
            require_voxel_size(report, where="image.tif", remedy="or say so")
        assert "µm (z, y, x)" in caught.value.sentence()
    else:
        require_voxel_size(report, where="image.tif", remedy="or say so")


def test_another_number_of_channels_is_refused(spec: BundleSpec) -> None:
    class Coloured(Source):
        def plane(self, z: int) -> npt.NDArray[np.generic]:
            return super().plane(z).repeat(3, 2)

    with pytest.raises(DataError, match="3 channels; expected 1"):
        measure_drift(Coloured(tiny_stack(2)[0]), None, spec)
