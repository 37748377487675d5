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
    ("images", "masks"),
    [
        (["img_t1_z3.tif", "img_t2_z3.tif"], ["mask_t1_z3.png", "mask_t2_z3.png"]),
        (["0001.png", "0010.png"], ["1.png", "10.png"]),
        (["0001.png"], ["1.png"]),
        (["images.010"], ["mitos_3D.010"]),
        (["alpha.tif", "beta.tif"], ["alpha_mask.tif", "beta_mask.tif"]),
        (["alpha.tif"], ["alpha-gt.tif"]),
        (["cell A.tif", "cell B.tif"], ["cell A_labels.tif", "cell B_labels.tif"]),
        (["control_1.tif", "drug_A_1.tif"], ["seg_control_1.tif", "seg_drug_A_1.tif"]),
        (["2026-01-05_s_1.tif", "2026-01-05_s_2.tif"], ["2026-02-11_s_1_seg.tif", "2026-02-11_s_2_seg.tif"]),
        (["2026-01-05_1.tif", "2026-01-06_1.tif"], ["mask 2026-01-05_1.tif", "mask 2026-01-06_1.tif"]),
        (["A1.TIF", "B1.TIF"], ["a1.tif", "b1.tif"]),
        # the same name as Linux and as macOS write it
        (["probe_\u00e9.tif", "probe_e.tif"], ["probe_e\u0301_mask.tif", "probe_e_mask.tif"]),
        (["probe_\u00e9.tif"], ["probe_e\u0301.tif"]),
        (["sandstone_Versa0000_image.tif"], ["sandstone_Versa0000_mask_rgb_lzw.tif"]),
        (["cdeep3m_010_image.png"], ["cdeep3m_010_label_palette.png"]),
        (["vnc_01_raw.tif", "vnc_02_raw.tif"], ["vnc_01_mito_1bit.png", "vnc_02_mito_1bit.png"]),
    ],
)
def test_decoration_padding_case_and_accents_do_not_matter(images: list[str], masks: list[str]) -> None:
    wanted = list(zip(images, masks, strict=True))
    assert sorted(names(natural_pairs(paths("i", *images), paths("m", *reversed(masks))))) == sorted(wanted)


@given(st.data())
def test_names_of_several_numbers_are_paired_right_or_not_at_all(data: st.DataObject) -> None:
    number = st.integers(0, 12)
    places = data.draw(st.lists(st.tuples(number, number, number), min_size=1, max_size=12, unique=True))
    patterns = st.sampled_from(["{}_{}_{}", "t{}_z{}_c{}", "t{:03}z{}-{}", "run 7_{}_{}_{}"])
    image_pattern, mask_pattern = data.draw(st.tuples(patterns, patterns))
    before, after = data.draw(st.sampled_from(["", "mask_", "3D_"])), data.draw(st.sampled_from(["", "_seg", "-gt"]))
    images = {Path("i") / f"{image_pattern.format(*place)}.tif": place for place in places}
    changed = data.draw(st.none() | st.tuples(st.sampled_from(range(len(places))), st.integers(0, 2), number))
    if changed:
        index, axis, value = changed
        odd = [*places[index]]
        odd[axis] = value
        places[index] = (odd[0], odd[1], odd[2])
    masks = {Path("m") / f"{before}{mask_pattern.format(*place)}{after}.png": place for place in places}
    agree = sorted(masks.values()) == sorted(images.values())
    try:
        pairs = natural_pairs(data.draw(st.permutations(list(images))), data.draw(st.permutations(list(masks))))
    except DataError:
        # one pattern on both sides always suffices
        assert not agree or image_pattern != mask_pattern
    else:
        # what all images have in common, and all masks, may differ between them
        telling = [axis for axis in range(3) if len({place[axis] for place in images.values()}) > 1]
        assert {tuple(images[i][axis] - masks[m][axis] for axis in telling) for i, m in pairs} == {(0,) * len(telling)}


@pytest.mark.parametrize(
    ("images", "masks", "found"),
    [
        (["a.tif", "b.tif"], ["a.tif"], r"2 images and 1 masks; no mask for b\.tif;"),
        (["a.tif"], ["a.tif", "c.tif"], r"no image for c\.tif"),
        (["img1.tif", "img2.tif"], ["m2.tif", "m3.tif"], r"no mask for img1\.tif; no image for m3\.tif"),
        (["a_x.tif"], ["a_y.tif"], r"no mask for a_x\.tif"),
        (["a.tif", "a.png"], ["a.tif", "b.tif"], r"images that nothing tells apart: a\.png, a\.tif"),
        (
            ["t1_z3.tif", "t2_z4.tif"],
            ["t1_z4_mask.tif", "t2_z3_mask.tif"],
            r"no mask for t1_z3\.tif, t2_z4\.tif; no image for t1_z4_mask\.tif, t2_z3_mask\.tif",
        ),
        # one file each, one folder of another t each, rows and columns the other way round
        (["t1_z3.tif"], ["t2_z3_mask.tif"], r"no mask for t1_z3\.tif; no image for t2_z3_mask"),
        (["t1_z3.tif", "t1_z4.tif"], ["t2_z3.tif", "t2_z4.tif"], r"no mask for t1_z3\.tif, t1_z4"),
        (["1_3.tif", "2_3.tif"], ["3_1.tif", "3_2.tif"], r"no mask for 1_3\.tif, 2_3\.tif"),
        (["x1_y2.tif", "x2_y1.tif"], ["y1_x2.tif", "y2_x1.tif"], r"no mask for x1_y2"),
        # words differ though numbers agree
        (["cat_1.tif", "dog_2.tif"], ["dog_1_mask.tif", "cat_2_mask.tif"], r"no mask for cat_1\.tif, dog_2"),
        (["1.tif", "01.tif"], ["1_mask.tif", "01_mask.tif"], r"no mask for 1\.tif, 01\.tif"),
        ([f"{n}_x.tif" for n in range(9)], [], r"no mask for 0_x\.tif, 1_x\.tif, 2_x\.tif, …"),
    ],
)
def test_what_does_not_match_is_named(images: list[str], masks: list[str], found: str) -> None:
    with pytest.raises(DataError, match=found):
        natural_pairs(paths("data/images", *images), paths("data/masks", *masks))
