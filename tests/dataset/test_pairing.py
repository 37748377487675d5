from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackseg.dataset.pairing import natural_pairs
from stackseg.errors import DataError


def names(pairs: list[tuple[Path, Path]]) -> list[tuple[str, str]]:
    return [(image.name, mask.name) for image, mask in pairs]


def paths(folder: str, *files: str) -> list[Path]:
    return [Path(folder) / file for file in files]


def test_equal_names_in_the_order_people_count() -> None:
    images = paths("images", "0.png", "1.png", "10.png", "11.png", "2.png")
    masks = paths("masks", "11.tif", "10.tif", "2.tif", "1.tif", "0.tif")
    assert names(natural_pairs(images, masks)) == [(f"{z}.png", f"{z}.tif") for z in (0, 1, 2, 10, 11)]


@pytest.mark.parametrize("suffix", ["", ".png", ".tif", ".TIFF", ".ome.tif"])
def test_last_number_where_names_differ(suffix: str) -> None:
    images = paths("i", *(f"images.{z:03}{suffix}" for z in (9, 10, 11)))
    masks = paths("m", *(f"mitos_3D.{z:03}{suffix}" for z in (11, 9, 10)))
    assert names(natural_pairs(images, masks)) == [
        (f"images.{z:03}{suffix}", f"mitos_3D.{z:03}{suffix}") for z in (9, 10, 11)
    ]


def test_padding_does_not_matter() -> None:
    images, masks = paths("i", "raw_2.tif", "raw_10.tif"), paths("m", "label0010.png", "label0002.png")
    assert names(natural_pairs(images, masks)) == [("raw_2.tif", "label0002.png"), ("raw_10.tif", "label0010.png")]


@pytest.mark.parametrize("name", ["cell.v2", "images.010", "a.b.c", "x.tif.backup"])
def test_what_looks_like_a_suffix_is_part_of_the_name(name: str) -> None:
    assert names(natural_pairs(paths("i", f"{name}.tif"), paths("m", f"{name}.ome.tiff"))) == [
        (f"{name}.tif", f"{name}.ome.tiff")
    ]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True), st.randoms())
def test_any_order_of_files_pairs_equal_numbers(numbers: list[int], random: object) -> None:
    masks = [Path("m") / f"3D_{number:07}_mask.png" for number in sorted(numbers, key=str)]
    pairs = natural_pairs([Path("i") / f"img-{number}.tif" for number in numbers], masks)
    assert [int(image.stem[4:]) for image, _ in pairs] == sorted(numbers)
    assert all(int(image.stem[4:]) == int(mask.name[3:10]) for image, mask in pairs)


@pytest.mark.parametrize(
    ("images", "masks", "found"),
    [
        (["a.tif", "b.tif"], ["a.tif"], r"2 images and 1 masks; no mask for b\.tif;"),
        (["a.tif"], ["a.tif", "c.tif"], r"no image for c\.tif"),
        (["img1.tif", "img2.tif"], ["m2.tif", "m3.tif"], r"no mask for img1\.tif, img2\.tif; no image for m2\.tif"),
        (["a_x.tif"], ["a_y.tif"], r"no mask for a_x\.tif"),
        (["a1_1.tif", "a2_1.tif"], ["b1_1.tif", "b2_1.tif"], "no mask for a1_1"),
        (["a.tif", "a.png"], ["a.tif", "b.tif"], "several images called a"),
        ([f"{n}_x.tif" for n in range(9)], [], r"no mask for 0_x\.tif, 1_x\.tif, 2_x\.tif, …"),
    ],
)
def test_what_does_not_match_is_named(images: list[str], masks: list[str], found: str) -> None:
    with pytest.raises(DataError, match=found):
        natural_pairs(paths("data/images", *images), paths("data/masks", *masks))
