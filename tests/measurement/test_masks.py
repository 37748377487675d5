from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from stackseg.dataset.files.inputs import open_input
from stackseg.errors import DataError
from stackseg.intake.write_tiff import write_stack
from stackseg.measurement.masks import class_plane, object_plane


def test_a_value_of_no_class_is_named_with_file_and_plane(tmp_path: Path) -> None:
    mask_zyx = np.zeros((3, 5, 6), np.uint8)
    mask_zyx[2, 1, 1:4] = 7
    path = tmp_path / "m.tif"
    write_stack(path, mask_zyx, num_planes=3)
    with open_input(path) as masks:
        assert class_plane(masks, 1, 4).max() == 0
        assert class_plane(masks, 2, None).max() == 7
        with pytest.raises(DataError, match="value 7 \\(3 pixels\\) is the index of no class") as told:
            class_plane(masks, 2, 4)
    assert told.value.sentence().startswith(f"{path} plane 2: ")
    assert "expected 0 to 3, as data.classes has" in told.value.sentence()


def test_numbers_of_objects_are_no_indices_and_colours_neither(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    write_stack(path, np.full((2, 5, 6), 4000, np.uint16), num_planes=2)
    with open_input(path) as masks:
        with pytest.raises(DataError, match="--objects"):
            class_plane(masks, 0, None)
        assert object_plane(masks, 0).max() == 4000
    write_stack(path, np.full((2, 5, 6), -1, np.int16), num_planes=2)
    with open_input(path) as masks:
        for read in (object_plane, lambda masks, z: class_plane(masks, z, None)):
            with pytest.raises(DataError, match="value -1"):
                read(masks, 0)
    tifffile.imwrite(path, np.zeros((5, 6, 3), np.uint8), photometric="rgb")
    with open_input(path) as masks, pytest.raises(DataError, match="a mask of colours"):
        object_plane(masks, 0)
