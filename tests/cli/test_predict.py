"""What predict says of an image that the model cannot take, and of a mask that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from stackseg.cli.main import app
from stackseg.dataset.files.stack import open_stack
from stackseg.errors import StacksegError
from stackseg.model.bundle import load_bundle
from stackseg.model.segment import SegmentedPlane, segment
from tiny_projects import tiny_stack

# MLflow's own, on being imported
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")


@pytest.fixture
def model(trained: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the folder of a bundle; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    return str(trained[0].folder / "model")


def test_wrong_channels_are_told_with_the_name_of_the_file(model: str) -> None:
    colours_zyxs = np.random.default_rng(0).integers(0, 255, (2, 40, 48, 3), np.uint8)
    tifffile.imwrite("colours.tif", colours_zyxs, photometric="rgb", metadata={"axes": "ZYXS"})
    error = CliRunner().invoke(app, ["predict", "colours.tif", "out.tif", "--model", model]).exception
    assert isinstance(error, StacksegError)
    assert error.sentence().startswith("colours.tif: 3 channels; expected 1, as in training")
    assert not Path("out.tif").exists()


def test_a_mask_that_is_there_is_replaced_only_when_asked(model: str) -> None:
    image_zyx = tiny_stack(2, seed=5)[0]
    tifffile.imwrite("image.tif", image_zyx, photometric="minisblack", metadata={"axes": "ZYX"})
    command = ["predict", "image.tif", "out.tif", "--model", model, "--device", "cpu"]
    Path("out.tif").write_text("by hand")
    for verb in (command, ["segment-remote", "http://127.0.0.1:1", "image.tif", "out.tif"]):
        error = CliRunner().invoke(app, verb).exception
        assert str(error) == "out.tif: the file is there already. Name another, or add --overwrite"
    assert Path("out.tif").read_text() == "by hand"
    said = CliRunner().invoke(app, [*command, "--overwrite"], catch_exceptions=False).output
    assert "out.tif: 2 planes by bundle" in said
    assert tifffile.imread("out.tif").shape == image_zyx.shape
    error = CliRunner().invoke(app, ["predict", "image.tif", "./image.tif", "--model", model, "--overwrite"]).exception
    assert "the mask would replace the image" in str(error)


def test_a_model_of_objects_writes_their_numbers(
    trained_on_discs: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = str(trained_on_discs[0].data / "discs" / "images.tif")
    bundle = load_bundle(trained_on_discs[0].folder / "model")
    with open_stack(Path(image)) as stack:
        expected = np.stack([one.objects_yx for one in segment(stack, bundle, objects=True)])  # type: ignore[misc]
    command = ["predict", image, "out.tif", "--model", str(trained_on_discs[0].folder / "model"), "--device", "cpu"]
    said = CliRunner().invoke(app, command, catch_exceptions=False).output
    found = tifffile.imread("out.tif")
    assert (found.dtype, found.shape) == (np.uint16, expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert f"out.tif numbers the objects of each plane from 1: {expected.max((1, 2)).sum()} in all" in said
    tifffile.imwrite("one.tif", tifffile.imread(image)[3], photometric="minisblack")
    CliRunner().invoke(app, ["predict", "one.tif", "one_out.tif", *command[3:]], catch_exceptions=False)
    np.testing.assert_array_equal(tifffile.imread("one_out.tif"), expected[3])
    # more objects than 16 bits can number
    many_yx = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    monkeypatch.setattr(
        "stackseg.prediction.run.segment",
        lambda source, *_, **__: (SegmentedPlane(z, np.zeros((300, 300), np.uint8), None, many_yx) for z in range(12)),
    )
    CliRunner().invoke(app, [*command, "--overwrite"], catch_exceptions=False)
    found = tifffile.imread("out.tif")
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found[11], many_yx)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["one.tif", "one_out.tif", "out.tif"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("m.zarr --workers 2 --part 1/2", "--part and --workers; expected one of them. Leave the others out"),
        ("m.zarr --scheduler tcp://a:1 --workers 2", "--workers and --scheduler; expected one of them"),
        ("m.zarr --part 3/2", "--part: '3/2'; expected I/N with 1 ≤ I ≤ N, e.g. 2/8"),
        ("m.zarr --workers 2 --orthogonal", "--workers: sections across go through all planes. Leave --workers out"),
        ("m.tif --workers 2", "m.tif: a TIFF is not written by several processes. Write a .zarr or a folder"),
        ("m.zarr --part 1/2 --overwrite", "--overwrite: several processes would replace what the others write"),
    ],
)
def test_several_processes_are_refused_what_they_cannot_do(model: str, words: str, told: str) -> None:
    tifffile.imwrite("image.tif", tiny_stack(2, seed=5)[0], photometric="minisblack", metadata={"axes": "ZYX"})
    command = ["predict", "image.tif", *words.split(), "--model", model, "--device", "cpu"]
    assert told in str(CliRunner().invoke(app, command).exception)
    assert [one.name for one in Path.cwd().iterdir()] == ["image.tif"]


def test_a_missing_dask_is_named_with_its_extra(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stackseg.cli.predict.find_spec", lambda name: None)
    error = CliRunner().invoke(app, ["predict", "image.tif", "m.zarr", "--workers", "2", "--model", model]).exception
    assert str(error) == """Dask's scheduler is not installed. `pip install "stackseg[dask]"` installs it"""
