"""Published files become images and masks: values, natural order, objects united and kept."""

from __future__ import annotations

import zipfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile

from stackseg.dataset.files.stack import open_stack
from stackseg.errors import DataError, ParamsError
from stackseg.intake.add import open_pair
from stackseg.intake.label_proposal import instance_table
from stackseg.recipes.recipe import read_recipe
from stackseg.recipes.sources import NAMES, arrange, read_publication


@pytest.mark.parametrize("name", NAMES)
def test_each_publication_names_its_files_and_licence(name: str) -> None:
    found = read_publication(name)
    assert found.licence
    urls = found.urls()
    assert all(url.startswith("https://") and url.endswith(file) for file, url in urls.items())
    numbers = {"sandstone": 18, "nuclei": 1, "nuclei-corrected": 1, "mitochondria": 4, "membranes": 60}
    assert len(urls) == numbers[name]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ParamsError, match="no data called 'rocks'; expected one of sandstone, nuclei"):
        read_publication("rocks")


def test_membranes_come_in_order_and_turned_to_the_recipes_values(tmp_path: Path) -> None:
    publication = read_publication("membranes")
    random = np.random.default_rng(0)
    masks = {}
    for file in publication.urls():
        (tmp_path / "files" / file).parent.mkdir(parents=True, exist_ok=True)
        pixels = random.choice(np.array([0, 255], np.uint8), (8, 8))
        masks[file] = pixels
        iio.imwrite(tmp_path / "files" / file, pixels)
    (one,) = arrange(publication, tmp_path / "files", tmp_path / "work")
    specimen = open_pair(one.images, one.masks)
    assert len(specimen) == 30
    for z in (0, 1, 2, 10, 29):
        assert specimen.image_file(z).info.path.name == f"{z}.png"
        assert np.array_equal(specimen.raw_mask(z)[..., 0], masks[f"label/{z}.png"] == 0)
    names = [one["name"] for one in read_recipe("membranes").params["data"]["classes"]]
    assert names == ["cell", "membrane"]
    iio.imwrite(tmp_path / "files" / "label/7.png", np.full((8, 8), 77, np.uint8))
    with pytest.raises(DataError, match=r"7\.png: mask values 77; expected 255, 0"):
        arrange(publication, tmp_path / "files", tmp_path / "again")


def test_objects_are_united_and_kept(tmp_path: Path) -> None:
    publication = read_publication("nuclei")
    masks = np.zeros((3, 12, 9), np.uint8)
    masks[0, 1:4, 1:4] = masks[1, 3:6, 3:6] = masks[2, 8:, 2:5] = 255
    with zipfile.ZipFile(tmp_path / "stage1_train.zip", "w") as archive:
        for field in ("b2", "b10"):
            for name, pixels in (("images/x.png", masks[0]), *((f"masks/{n}.png", one) for n, one in enumerate(masks))):
                archive.writestr(f"stage1_train/{field}/{name}", iio.imwrite("<bytes>", pixels, extension=".png"))
    (one,) = arrange(publication, tmp_path, tmp_path / "work")
    specimen = open_pair(one.images, one.masks)
    assert [specimen.image_file(z).info.path.stem for z in range(2)] == ["b2", "b10"]
    assert np.array_equal(specimen.raw_mask(0)[..., 0], masks.any(0))
    instances = tifffile.imread(tmp_path / "work" / "stage1" / "instances" / "b2.tif")
    assert np.unique(instances).tolist() == [0, 1, 2, 3]
    assert one.instances is not None
    assert np.array_equal(open_pair(one.images, one.instances).instances(0, instance_table()), instances)
    assert np.array_equal(instances > 0, masks.any(0))
    assert np.array_equal(open_stack(one.images / "b2.png").plane(0)[..., 0], masks[0])


def test_an_archive_that_is_none_or_another_is_refused(tmp_path: Path) -> None:
    publication = read_publication("nuclei")
    with pytest.raises(DataError, match="no such file"):
        arrange(publication, tmp_path, tmp_path / "a")
    (tmp_path / "stage1_train.zip").write_bytes(b"<html>")
    with pytest.raises(DataError, match="no ZIP file"):
        arrange(publication, tmp_path, tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "stage1_train.zip", "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(DataError, match="0 fields with an image and 0 with masks"):
        arrange(publication, tmp_path, tmp_path / "c")
