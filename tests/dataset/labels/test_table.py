from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from skimage.measure import label
from skimage.transform import resize

from stackseg.dataset.files.stack import open_stack
from stackseg.dataset.labels.table import IGNORE_INDEX, IGNORED_OBJECT, LabelTable, RawCode, raw_counts
from stackseg.errors import DataError, ParamsError
from stackseg.intake.label_proposal import are_instances, instance_question, instance_table, propose_table

REAL = Path(__file__).parents[4] / "shared" / "data"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not here")


def table(*raw: RawCode | tuple[RawCode, ...], ignore: tuple[RawCode, ...] = ()) -> LabelTable:
    codes = tuple(code if isinstance(code, tuple) else (code,) for code in raw)
    names = tuple(f"class_{index}" for index in range(len(codes)))
    return LabelTable(names, codes, ("#123456",) * len(codes), ignore)


def colour(code: str) -> list[int]:
    return list(bytes.fromhex(code[1:]))


class TestTable:
    @pytest.mark.parametrize(
        ("raw", "ignore", "found"),
        [
            ((), (), "0 classes"),
            (tuple(range(255)), (), "255 classes; expected 1 to 254"),
            ((0, 1, 0), (), "the raw value 0 stands twice"),
            ((0, 1), (1,), "the raw value 1 stands twice"),
            (("#FF0000", "#ff0000"), (), "the raw value #ff0000 stands twice"),
            (("#ff0000ff", "#ff0000"), (), "the raw value #ff0000 stands twice"),
            (((0, 1), (2, 1)), (), "the raw value 1 stands twice"),
            (("red", 0), (), "'red' is no colour"),
            (((), 0), (), "every class needs"),
        ],
    )
    def test_what_is_refused(self, raw: tuple[RawCode, ...], ignore: tuple[RawCode, ...], found: str) -> None:
        with pytest.raises(ParamsError, match=f"^data.classes: {found}"):
            table(*raw, ignore=ignore)

    def test_parts_that_do_not_fit(self) -> None:
        with pytest.raises(ParamsError, match="every class needs"):
            LabelTable(("a", "b"), ((0,), (1,)), ("#000000",))
        with pytest.raises(ParamsError, match="is no colour"):
            LabelTable(("a", "b"), ((0,), (1,)), ("#000000", "#ffff"))

    def test_a_number_and_a_colour_may_mean_the_same_class(self) -> None:
        both = table((0, "#000000"), (255, "#ffffff"))
        grey_yxc = np.array([[[0], [255]]], np.uint8)
        assert both.map_plane(grey_yxc, where="").tolist() == [[0, 1]]
        assert both.map_plane(np.repeat(grey_yxc, 3, axis=2), where="").tolist() == [[0, 1]]


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]),
    num_classes=st.integers(1, 12),
)
def test_integers_map_by_the_table(data: st.DataObject, dtype: str, num_classes: int) -> None:
    kind = np.dtype(dtype)
    low, high = (-(2**20), 2**20) if kind.kind == "f" else (np.iinfo(kind).min, min(np.iinfo(kind).max, 2**62))
    codes = data.draw(
        st.lists(st.integers(int(low), int(high)), min_size=num_classes + 1, max_size=num_classes + 1, unique=True)
    )
    truth_yx = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, num_classes + 1, (7, 9))
    mask_yxc = np.array(codes, dtype)[truth_yx][:, :, None]
    labels_yx = table(*codes[:-1], ignore=(codes[-1],)).map_plane(mask_yxc, where="m.tif plane 0")
    assert labels_yx.dtype == np.uint8
    assert np.array_equal(labels_yx, np.where(truth_yx == num_classes, IGNORE_INDEX, truth_yx))
    assert raw_counts(mask_yxc) == dict(sorted(Counter(codes[index] for index in truth_yx.ravel()).items()))


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.integers(0, 2**24 - 1).map(lambda number: f"#{number:06x}"), min_size=2, max_size=9, unique=True),
    seed=st.integers(0, 99),
    order=st.booleans(),
)
def test_colours_map_by_the_table_and_never_by_rank(codes: list[str], seed: int, order: bool) -> None:
    named = sorted(codes, reverse=order)
    truth_yx = np.random.default_rng(seed).integers(0, len(named), (7, 9))
    mask_yxc = np.array([colour(code) for code in named], np.uint8)[truth_yx]
    assert np.array_equal(table(*named).map_plane(mask_yxc, where=""), truth_yx)
    assert raw_counts(mask_yxc) == dict(sorted(Counter(named[index] for index in truth_yx.ravel()).items()))
    opaque_yxc = np.concatenate([mask_yxc, np.full((7, 9, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(table(*named).map_plane(opaque_yxc, where=""), truth_yx)


def test_transparent_pixels_have_one_code_whatever_their_colour() -> None:
    mask_yxc = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [9, 9, 9, 0], [255, 0, 0, 128]]], np.uint8)
    assert raw_counts(mask_yxc) == {"#00000000": 2, "#ff000080": 1, "#ff0000": 1}
    known = table("#ff0000", "#ff000080", ignore=("#00000000",))
    assert known.map_plane(mask_yxc, where="").tolist() == [[0, IGNORE_INDEX, IGNORE_INDEX, 1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_what_is_in_no_class_is_ignored_where_it_is_not_annotated(dtype: Any) -> None:
    mask_yxc = np.array([[0, 1, 2, 9, 254, 255]], dtype)[..., None]
    scribbles = replace(table(1, 2, ignore=(255,)), ignores_unlabelled=True)
    assert scribbles.map_plane(mask_yxc, where="").tolist() == [[IGNORE_INDEX, 0, 1, *[IGNORE_INDEX] * 3]]
    # nor is what was drawn of a class that is said to be missing
    assert replace(scribbles, not_annotated=(1,)).map_plane(mask_yxc[:, :3], where="").tolist() == [
        [IGNORE_INDEX, 0, IGNORE_INDEX]
    ]


class TestUnknownValues:
    def test_value_file_plane_and_count_are_named(self) -> None:
        mask_yxc = np.zeros((10, 10, 1), np.uint8)
        mask_yxc[0, :7] = 9
        mask_yxc[1, :3] = 4
        with pytest.raises(DataError) as caught:
            table(0, 255).map_plane(mask_yxc, where="data/masks.tif plane 7")
        assert str(caught.value) == (
            "data/masks.tif plane 7: value 9 (7 pixels) is in no class, and so are 1 other values; expected one of "
            "0, 255, as data.classes has. Add it to data.classes or data.ignore in params.yaml, or mend the mask; "
            "data.unlabelled: ignore leaves out whatever is in no class"
        )

    @pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4"])
    def test_every_type_tells(self, dtype: str) -> None:
        mask_yxc = np.ones((4, 4, 1), dtype)
        mask_yxc[2, 2] = 3
        with pytest.raises(DataError, match=r"value 3 \(1 pixels\) is in no class;"):
            table(0, 1).map_plane(mask_yxc, where="m")

    def test_a_colour_mask_and_a_grey_table(self) -> None:
        with pytest.raises(DataError, match=r"value #000000 \(16 pixels\).*expected one of 0, 1,"):
            table(0, 1).map_plane(np.zeros((4, 4, 3), np.uint8), where="m")


@pytest.mark.parametrize(
    ("mask_yxc", "found"),
    [
        (np.full((4, 4, 1), 0.5, np.float32), "no whole numbers on 16 pixels"),
        (np.full((4, 4, 1), np.nan, np.float32), "no whole numbers on 16 pixels"),
        (np.full((4, 4, 1), np.inf, np.float64), "no whole numbers on 16 pixels"),
        (np.zeros((4, 4, 2), np.uint8), "a mask with 2 channels of uint8"),
        (np.zeros((4, 4, 3), np.uint16), "a mask with 3 channels of uint16"),
        (np.zeros((4, 4, 7), np.uint8), "a mask with 7 channels"),
        (np.full((4, 4, 1), 2**63 + 5, np.uint64), "a mask with the value 9223372036854775813"),
    ],
)
def test_masks_that_hold_no_labels(mask_yxc: np.ndarray, found: str) -> None:
    with pytest.raises(DataError, match=f"^m.tif plane 2: .*{found}"):
        raw_counts(mask_yxc, where="m.tif plane 2")
    with pytest.raises(DataError, match=f"^m.tif plane 2: .*{found}"):
        table(0, 1).map_plane(mask_yxc, where="m.tif plane 2")


class TestProposal:
    @pytest.mark.parametrize(
        "codes",
        [
            [0, 1],
            [0, 255],
            [255, 0],
            [0, 1, 2, 3],
            [1, 2],
            [0, 85, 170, 255],
            [0, 127, 255],
            [29, 76, 150, 226],
            [-1, 0, 1],
            [*range(21), 255],
            [*range(32)],
            [0, 1, 2, 254, 255],
            [1000, 2000, 3000],
            ["#0000ff", "#00ff00", "#ff0000", "#ffff00"],
            ["#000000", "#ffffff"],
        ],
    )
    @pytest.mark.parametrize("rarity", [1, 3, 50])
    def test_what_are_classes_is_taken_however_rare(self, codes: list[RawCode], rarity: int) -> None:
        counts = {code: max(10**8 // rarity**place, 1) for place, code in enumerate(codes)}
        found = propose_table(counts)
        assert [code for (code,) in found.raw] == sorted(codes)  # type: ignore[type-var]
        assert len(set(found.names)) == len(set(found.display)) == len(codes)
        assert found.ignore == ()

    def test_names_and_colours(self) -> None:
        assert propose_table({255: 5, 0: 9}).names == ("background", "foreground")
        assert propose_table({1: 5, 2: 9}).names == ("class_0", "class_1")
        assert propose_table({"#000000": 5, "#ff0000": 9}).names == ("background", "foreground")
        assert propose_table({"#0000ff": 5, "#ff0000": 9}).display == ("#0000ff", "#ff0000")
        assert propose_table({0: 5, 7: 9}).display[0] == "#000000"

    def test_counts_of_zero_are_no_classes(self) -> None:
        assert len(propose_table({0: 5, 1: 5, 2: 0}).names) == 2

    @pytest.mark.parametrize("counts", [{}, {0: 100}, {"#ff0000": 3}])
    def test_one_value_is_nothing_to_learn(self, counts: dict[RawCode, int]) -> None:
        with pytest.raises(DataError, match=r"expected two classes or more.*--classes FILE"):
            propose_table(counts)

    def test_instance_labels(self) -> None:
        counts = {0: 50_000, **{label: 300 + label for label in range(1, 121)}}
        with pytest.raises(DataError, match=r"^masks.tif: 121 distinct values: .*instance labels.*one value"):
            propose_table(counts, where="masks.tif")

    def test_an_image(self) -> None:
        rng = np.random.default_rng(0)
        image_yxc = rng.normal(120, 30, (200, 200, 1)).clip(0, 255).astype(np.uint8)
        with pytest.raises(DataError, match=r"looks anti-aliased or is an image.*--classes FILE"):
            propose_table(raw_counts(image_yxc))


@pytest.fixture
def blobs_yx() -> np.ndarray:
    """A class mask with round shapes of three grey values, 0, 128 and 255."""
    y, x = np.mgrid[:256, :256]
    mask_yx = np.zeros((256, 256), np.uint8)
    mask_yx[(y - 90) ** 2 + (x - 80) ** 2 < 60**2] = 128
    mask_yx[(y - 170) ** 2 + (x - 180) ** 2 < 50**2] = 255
    return mask_yx


class TestSpoiltLabels:
    """Two classes, and three, after what people do to label images."""

    def spoil(self, mask: np.ndarray, how: str) -> np.ndarray:
        if how.startswith("jpeg"):
            file = io.BytesIO()
            Image.fromarray(mask).save(file, "JPEG", quality=int(how[4:]))
            mask = np.asarray(Image.open(file))
        elif how == "smooth":
            mask = (resize(mask, (180, 180, *mask.shape[2:]), order=1) * 255).round().astype(np.uint8)
        else:
            factor = int(how[3:])
            mask = np.asarray(
                Image.fromarray(mask).resize((mask.shape[1] // factor, mask.shape[0] // factor), Image.Resampling.BOX)
            )
        return mask if mask.ndim == 3 else mask[:, :, None]

    @pytest.mark.parametrize("how", ["jpeg50", "jpeg75", "jpeg90", "jpeg95", "smooth", "box3", "box4", "box8"])
    @pytest.mark.parametrize("num_classes", [2, 3])
    @pytest.mark.parametrize("kind", ["grey", "colour"])
    def test_are_refused(self, blobs_yx: np.ndarray, how: str, num_classes: int, kind: str) -> None:
        mask_yx = np.where(blobs_yx == 128, 255, blobs_yx).astype(np.uint8) if num_classes == 2 else blobs_yx
        if kind == "colour":
            palette = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0]], np.uint8)
            mask_yx = palette[(mask_yx.astype(int) + 1) // 128]
        spoilt_yxc = self.spoil(mask_yx, how)
        assert len(raw_counts(spoilt_yxc)) > num_classes
        with pytest.raises(DataError, match=r"looks .*--classes FILE"):
            propose_table(raw_counts(spoilt_yxc))


@real_data
def test_real_masks_and_their_codes() -> None:
    found = {
        path.name: list(raw_counts(open_stack(path).plane(0)))
        for path in (REAL / "messy-originals").iterdir()
        if any(word in path.name for word in ("mask", "label", "mito"))
    }
    assert found == {
        "sandstone_Versa0000_mask_rgb_lzw.tif": ["#0000ff", "#00ff00", "#ff0000", "#ffff00"],
        "cdeep3m_010_label_palette.png": [0, 1],
        "isbi_00_label_0_255.png": [0, 255],
        "vnc_01_mito_1bit.png": [0, 1],
    }


@real_data
@pytest.mark.parametrize(
    ("found", "prepared", "codes"),
    [
        ("sandstone_Versa0000_mask_rgb_lzw.tif", "sandstone", ("#0000ff", "#00ff00", "#ff0000", "#ffff00")),
        ("isbi_00_label_0_255.png", "isbi2012", (255, 0)),
        ("cdeep3m_010_label_palette.png", "mito-cdeep3m", (0, 1)),
    ],
)
def test_real_masks_map_to_the_prepared_ones(found: str, prepared: str, codes: tuple[RawCode, ...]) -> None:
    labels_yx = table(*codes).map_plane(open_stack(REAL / "messy-originals" / found).plane(0), where=found)
    with open_stack(REAL / prepared / "masks.tif") as masks:
        assert np.array_equal(labels_yx, masks.plane(0)[:, :, 0])


@real_data
def test_real_instance_labels_and_images_are_refused() -> None:
    for name, found in (("dsb2018/instances.tif", "instance labels"), ("sandstone/images.tif", "is an image")):
        counts: Counter[RawCode] = Counter()
        with open_stack(REAL / name) as stack:
            for z in range(len(stack)):
                counts.update(raw_counts(stack.plane(z)))
        with pytest.raises(DataError, match=found):
            propose_table(counts)


class TestObjects:
    @settings(max_examples=60, deadline=None)
    @given(
        objects_yx=arrays.arrays(np.int64, (5, 6), elements=st.integers(0, 6)),
        values=st.lists(st.integers(1, 2**40), min_size=6, max_size=6, unique=True),
        dtype=st.sampled_from([np.int64, np.uint16, np.int8, np.float64]),
    )
    def test_any_values_with_gaps_number_the_same_objects(
        self, objects_yx: np.ndarray, values: list[int], dtype: type
    ) -> None:
        limit = 2**40 if dtype in (np.int64, np.float64) else int(np.iinfo(dtype).max)
        spread = sorted({1 + value % limit for value in values})
        raw_yx = np.array([0, *(spread * 6)[:6]], np.int64)[objects_yx]
        codes = sorted(set(raw_yx.ravel().tolist()) - {0})
        found_yx = instance_table().number_objects(raw_yx[..., None].astype(dtype), where="m")
        assert found_yx.dtype == np.int32
        assert np.array_equal(found_yx, np.searchsorted([0, *codes], raw_yx))
        labels_yx = instance_table().map_plane(raw_yx[..., None].astype(dtype), where="m")
        assert labels_yx.dtype == np.uint8
        assert np.array_equal(labels_yx, raw_yx != 0)

    def test_one_value_may_be_ignored(self) -> None:
        ignoring = replace(instance_table(), ignore=(700,))
        raw_yxc = np.array([[[0], [700], [9], [1000]]], np.uint16)
        assert ignoring.number_objects(raw_yxc, where="m").tolist() == [[0, IGNORED_OBJECT, 1, 2]]
        assert ignoring.map_plane(raw_yxc, where="m").tolist() == [[0, IGNORE_INDEX, 1, 1]]

    def test_colours_are_refused(self) -> None:
        for read in (instance_table().map_plane, instance_table().number_objects):
            with pytest.raises(DataError, match=r"m\.png: colours in a mask of instances; expected an integer per obj"):
                read(np.zeros((4, 4, 3), np.uint8), where="m.png")

    def test_many_values_of_a_region_each_are_objects(self) -> None:
        planes = [frozenset({0, *range(40 * z + 1, 40 * z + 21)}) for z in range(3)]
        assert are_instances(planes, num_regions=63)
        assert not are_instances(planes, num_regions=200)  # an image has many regions of one value
        assert not are_instances([codes - {0} for codes in planes], num_regions=63)  # without a background
        assert not are_instances([frozenset({"#000000", *map(str, range(99))})], num_regions=99)


@real_data
def test_real_instance_labels_are_known() -> None:
    for name, expected in (
        ("dsb2018/instances.tif", True),
        ("dsb2018/masks.tif", False),
        ("sandstone/images.tif", False),
    ):
        with open_stack(REAL / name) as stack:
            planes_yx = [stack.plane(z)[:, :, 0] for z in range(min(40, len(stack)))]
        codes = [frozenset(np.unique(one).tolist()) for one in planes_yx]
        num_regions = sum(int(label(one.astype(np.int64), connectivity=2).max()) for one in planes_yx)
        assert are_instances(codes, num_regions) is expected, name


class TestChannelsAreNoColours:
    def test_one_channel_set_at_each_pixel_is_said_to_be_one_hot(self) -> None:
        one_hot_yxc = np.eye(4, dtype=np.uint8)[np.arange(64).reshape(8, 8) % 4] * 255
        with pytest.raises(DataError, match=r"m plane 0: a mask of 4 channels, one of which is set .*one-hot.*argmax"):
            table(0, 1).map_plane(one_hot_yxc, where="m plane 0")
        black_yxc = np.zeros((8, 8, 4), np.uint8)
        black_yxc[..., 3] = 255  # opaque black sets one channel, too
        assert raw_counts(black_yxc) == {"#000000": 64}


class TestCodingsAreQuestioned:
    def test_planes_that_say_1_and_planes_that_say_255(self) -> None:
        counts: dict[RawCode, int] = {0: 50, 1: 20, 255: 30}
        planes: list[frozenset[RawCode]] = [frozenset({0, 1}), frozenset({0, 255}), frozenset({0})]
        with pytest.raises(DataError, match=r"some planes hold 0 and 1, others 0 and 255.*raw: \[1, 255\]"):
            propose_table(counts, planes=planes)
        together = propose_table(counts, planes=[*planes, frozenset({0, 1, 255})])  # 255 is a third class
        assert together.raw == ((0,), (1,), (255,))

    def test_a_value_per_object_is_asked_about(self) -> None:
        objects = [frozenset(range(1 + n)) for n in (6, 9, 7)]  # numbered anew in each plane
        assert "22 values in 3 planes" in instance_question(objects, num_regions=23)
        assert not are_instances(objects, num_regions=23)  # they may be classes of a region each
        assert instance_question(objects, num_regions=60) == ""  # of a class there are several regions
        assert instance_question([frozenset({0, 1, 2})] * 3, num_regions=6) == ""  # few values: classes may be so
        assert instance_question([frozenset({"#000000", *(f"#0000{n}0" for n in range(6))})], num_regions=6) == ""

    def test_values_that_a_lossy_file_smeared_are_one_class(self) -> None:
        counts: dict[RawCode, int] = {0: 700, 1: 70, 2: 40, 252: 6, 253: 50, 255: 690}
        with pytest.raises(DataError, match=r"crowd at 0 to 2 and 252 to 255"):
            propose_table(counts)
        found = propose_table(counts, may_be_lossy=True)
        assert found.names == ("background", "foreground")
        assert found.raw == ((0, 1, 2), (255, 253, 252))
        with pytest.raises(DataError, match="anti-aliased"):  # all values in between are there, too
            propose_table({0: 700, 255: 600, **dict.fromkeys(range(10, 250, 10), 9)}, may_be_lossy=True)
        counted: dict[RawCode, int] = {0: 500, 1: 300, 2: 400}
        assert propose_table(counted, may_be_lossy=True).raw == ((0,), (1,), (2,))
