"""What is told of an image that came in a request."""

from __future__ import annotations

import numpy as np
import pytest

from served_projects import tiff
from stackseg.errors import DataError
from stackseg.serving.decode import open_image
from stackseg.serving.request import image_name


@pytest.mark.parametrize(("num_images", "name"), [(1, "the image"), (3, "image 2 of 3")])
def test_refusals_say_which_image_and_name_no_file(num_images: int, name: str) -> None:
    assert image_name(2, num_images) == name
    with pytest.raises(DataError) as caught, open_image(b"no image", 1, name):
        pass
    assert name in caught.value.where
    assert "/tmp" not in caught.value.sentence()


@pytest.mark.parametrize(
    ("where", "told"), [("", "image 2 of 3"), ("plane 0", "image 2 of 3, plane 0"), ("image 2 of 3", "image 2 of 3")]
)
def test_what_is_found_later_is_of_this_image_too(where: str, told: str) -> None:
    image = tiff(np.zeros((8, 9), np.uint8))
    with pytest.raises(DataError) as caught, open_image(image, 1, "image 2 of 3"):
        raise DataError("3 channels", where=where)
    assert caught.value.where == told
