"""What predict says of an image that the model cannot take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from stackseg.cli.main import app
from stackseg.errors import StacksegError
from tiny_projects import make_tiny_project


def test_wrong_channels_are_told_with_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_project(tmp_path, {"train.epochs": 1}).train("model")
    monkeypatch.chdir(tmp_path)
    colours_zyxs = np.random.default_rng(0).integers(0, 255, (2, 40, 48, 3), np.uint8)
    tifffile.imwrite("colours.tif", colours_zyxs, photometric="rgb", metadata={"axes": "ZYXS"})
    error = CliRunner().invoke(app, ["predict", "colours.tif", "out.tif", "--model", "model"]).exception
    assert isinstance(error, StacksegError)
    assert error.sentence().startswith("colours.tif: 3 channels; expected 1, as in training")
    assert not Path("out.tif").exists()
