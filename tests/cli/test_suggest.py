"""`suggest` and the `add` that takes corrected masks back."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from stackseg.catalog.build import build_catalog
from stackseg.cli.main import app
from stackseg.dataset.splits import PlaneRef
from stackseg.model.bundle import load_bundle
from stackseg.model.segment import segment
from stackseg.params import read_params
from stackseg.params.file import write_values
from tiny_projects import CLASSES, RAW, tiny_stack

# MLflow's own, on being imported
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")


@pytest.fixture(autouse=True)
def _stages(project: Path) -> None:
    Path("dvc.yaml").write_text("stages: {}\n")  # marks the root


def stackseg(*words: str) -> str:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def write(name: str, pages_zyx: np.ndarray) -> None:
    tifffile.imwrite(name, pages_zyx, photometric="minisblack", metadata={"axes": "ZYX"})


def next_words(said: str) -> list[str]:
    """Return the words behind `stackseg` in the last line."""
    return shlex.split(said.strip().splitlines()[-1].removeprefix("next: stackseg "))


def annotated() -> dict[str, list[int]]:
    catalog = build_catalog(Path("data"), read_params(Path("params.yaml")))
    return {one.name: [plane.z for plane in one.planes] for one in catalog.specimens}


def test_planes_on_which_nothing_is_drawn_are_suggested_and_filled(project: Path) -> None:
    images_zyx, masks_zyx = tiny_stack(24)
    masks_zyx = np.searchsorted(RAW, masks_zyx).astype(np.uint8) + 1  # 0 is what nobody drew
    scribbles_zyx = np.zeros_like(masks_zyx)
    scribbles_zyx[[0, 6, 12], ::3] = masks_zyx[[0, 6, 12], ::3]
    write("core.tif", images_zyx)
    write("drawn.tif", scribbles_zyx)
    write_values(Path("params.yaml"), {"data.unlabelled": "ignore", "data.classes": []})
    stackseg("add", "core.tif", "drawn.tif")
    assert annotated() == {"core": [0, 6, 12]}

    said = stackseg("suggest", "core.tif", "--out", "next", "--num", "3", "--min-distance", "3")
    words = next_words(said)
    planes = sorted(int(one) for one in words[words.index("--planes") + 1].split(","))
    assert len(planes) == 3
    assert all(abs(z - other) >= 3 for z in planes for other in (0, 6, 12))
    for z in planes:
        np.testing.assert_array_equal(tifffile.imread(f"next/core_z{z:04d}.tif"), images_zyx[z])
        tifffile.imwrite(f"next/core_z{z:04d}_mask.tif", masks_zyx[z], photometric="minisblack")
    assert "added to data/core: 6 annotated planes, 3 before" in stackseg(*words)
    assert annotated() == {"core": sorted([0, 6, 12, *planes])}
    np.testing.assert_array_equal(tifffile.imread("data/core/masks.tif")[planes], masks_zyx[planes])
    np.testing.assert_array_equal(tifffile.imread("data/core/masks.tif")[6], scribbles_zyx[6])

    done = CliRunner().invoke(app, words)
    assert f"plane {', '.join(map(str, planes))} has a mask there already" in str(done.exception)


@pytest.mark.parametrize("method", ["entropy", "foreground"])
def test_a_model_ranks_planes_and_fills_their_masks(method: str, project: Path, trained: tuple[Any, Any]) -> None:
    model = str(trained[0].folder / "model")
    images_zyx, masks_zyx = tiny_stack(60, seed=8)
    write("core.tif", images_zyx)
    write("masks.tif", masks_zyx[:30:3])
    write_values(Path("params.yaml"), {"data.classes": CLASSES})
    stackseg("add", "core.tif", "masks.tif", "--planes", ",".join(map(str, range(0, 30, 3))))
    write_values(Path("params.yaml"), {"split.gap": 4})
    parts = {
        PlaneRef(one.name, plane.z): plane.part
        for one in build_catalog(Path("data"), read_params(Path("params.yaml"))).specimens
        for plane in one.planes
    }
    tested = [ref.z for ref, part in parts.items() if part == "test"]
    assert tested

    words = ["suggest", "--out", "next", "--model", model, "--method", method, "--min-distance", "1", "--num", "60"]
    said = stackseg(*words, "--device", "cpu", "--tta", "none")
    again = next_words(said)
    planes = sorted(int(one) for one in again[again.index("--planes") + 1].split(","))
    assert planes == [z for z in range(60) if z not in range(0, 30, 3) and all(abs(z - other) > 4 for other in tested)]
    bundle = load_bundle(Path(model))
    with_planes = tifffile.imread("core.tif")
    (first,) = segment(_Planes(with_planes), bundle, planes=[planes[0]])
    np.testing.assert_array_equal(tifffile.imread(f"next/core_z{planes[0]:04d}_mask.tif"), RAW[first.mask_yx])
    assert len(Path("next/suggestions.csv").read_text().splitlines()) == 1 + len(planes)
    assert "10 before" in stackseg(*again)


def test_what_cannot_be_suggested_is_told_and_nothing_written(project: Path) -> None:
    write("core.tif", tiny_stack(4)[0])
    for words, told in (
        (["core.tif", "--method", "entropy"], "--method entropy: there is no champion"),
        ([], "data: no stack with planes without a mask"),
        (["gone.tif"], "gone.tif: no such file"),
    ):
        error = CliRunner().invoke(app, ["suggest", *words, "--out", "next"]).exception
        assert told in str(error)
        assert not Path("next").exists()


class _Planes:
    def __init__(self, images_zyx: np.ndarray) -> None:
        self._images_zyx = images_zyx

    def __len__(self) -> int:
        return len(self._images_zyx)

    def plane(self, z: int) -> np.ndarray:
        return self._images_zyx[z, :, :, None]
