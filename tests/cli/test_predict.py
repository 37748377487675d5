"""What predict says of an image that the model cannot take, and of a mask that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from stackseg.cli.main import app
from stackseg.errors import StacksegError
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
