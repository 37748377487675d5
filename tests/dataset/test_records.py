"""The catalogue: what training may know is fitted on the training part, and what is wrong is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackseg.catalog.build import build_catalog
from stackseg.dataset.fingerprints import data_digest, pixel_digest, require_same_planes
from stackseg.dataset.records import PARTS, label_table, read_catalog, require_described_by, write_catalog
from stackseg.errors import DataError, ParamsError
from stackseg.params import Params

CLASSES = [
    {"name": "void", "raw": 0, "display": "#000000"},
    {"name": "grain", "raw": 5, "display": "#ffffff"},
]
SMALL: dict[str, Any] = {"data.classes": CLASSES, "split.gap": 1, "split.validation": 0.2, "split.test": 0.2}


def params(**more: Any) -> Params:
    return Params().override({**SMALL, **{key.replace("__", "."): value for key, value in more.items()}})


def stacks(num_planes: int = 12, seed: int = 0, shape_yx: tuple[int, int] = (24, 20)) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    masks = (random.random((num_planes, *shape_yx)) < 0.4).astype(np.uint8) * 5
    images = (masks.astype(np.int64) * 400 + random.integers(0, 900, masks.shape)).astype(np.uint16)
    return images, masks


def write(folder: Path, images: Any, masks: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, stack in (("images.tif", images), ("masks.tif", masks)):
        tifffile.imwrite(folder / name, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    return folder


def test_it_says_what_is_there(tmp_path: Path) -> None:
    images, masks = stacks()
    data = write(tmp_path / "data" / "rock", images, masks).parent
    asked: list[tuple[int, int]] = []
    catalog = build_catalog(data, params(), progress=lambda done, all_: asked.append((done, all_)))
    (rock,) = catalog.specimens
    assert (rock.name, rock.num_planes, rock.num_channels, rock.dtype, rock.is_stack) == ("rock", 12, 1, "uint16", True)
    assert asked == [(n, 12) for n in range(1, 13)]
    assert catalog.data_md5 == data_digest(data)
    for plane in rock.planes:
        assert plane.shape_yx == (24, 20)
        assert plane.class_pixels == ((masks[plane.z] == 0).sum(), (masks[plane.z] == 5).sum())
        assert plane.image_sha256 == pixel_digest(images[plane.z][..., None])
        assert plane.mask_sha256 == pixel_digest((masks[plane.z] == 5).astype(np.uint8))
    # every plane is in one part, and fractions are of that part's pixels
    assert sorted(ref.z for part in PARTS for ref, _ in catalog.planes(part)) == list(range(12))
    for part, fractions in catalog.class_fractions.items():
        held = masks[[ref.z for ref, _ in catalog.planes(part)]]
        assert fractions == pytest.approx([(held == 0).mean(), (held == 5).mean()], abs=1e-6)
    assert {"training", "validation", "test", "gap"} == set(catalog.class_fractions)
    assert catalog.table == label_table(params())


def test_masks_that_number_objects(tmp_path: Path) -> None:
    images, masks = stacks()
    masks = masks.astype(np.uint16)
    masks[:, :4, :4], masks[:, :4, 4:8] = 900, 30000
    asked = params(data__instances=True)
    catalog = build_catalog(write(tmp_path / "data", images, masks), asked)
    ((ref, plane), *_) = catalog.planes("training")
    assert plane.class_pixels == ((masks[ref.z] == 0).sum(), (masks[ref.z] != 0).sum())
    write_catalog(tmp_path / "catalog.json", catalog)
    read = read_catalog(tmp_path / "catalog.json")
    assert (read, read.table) == (catalog, label_table(asked))
    require_described_by(catalog, asked, tmp_path)
    with pytest.raises(ParamsError, match=r"^[^:]*: data\.instances of params\.yaml changed"):
        require_described_by(catalog, params(), tmp_path)
    require_same_planes(catalog, tmp_path / "data", "training")
    masks[ref.z][masks[ref.z] == 900] = 30000  # two objects become one, and the classes stay
    write(tmp_path / "data", images, masks)
    with pytest.raises(DataError, match=f"{ref}: the mask has changed"):
        require_same_planes(catalog, tmp_path / "data", "training")


def test_a_catalogue_of_classes_is_written_as_by_earlier_versions(tmp_path: Path) -> None:
    catalog = build_catalog(write(tmp_path / "data", *stacks()), params())
    assert "instances" not in catalog.model_dump(mode="json")


def test_a_written_catalogue_comes_back(tmp_path: Path) -> None:
    catalog = build_catalog(write(tmp_path / "data", *stacks()), params())
    path = tmp_path / "outputs" / "catalog.json"
    write_catalog(path, catalog)
    assert read_catalog(path) == catalog
    assert read_catalog(path).digest() == catalog.digest()
    assert [one.name for one in path.parent.iterdir()] == ["catalog.json"]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), scope=st.sampled_from(["dataset", "specimen", "plane"]))
def test_statistics_do_not_see_what_is_held_out(
    tmp_path_factory: pytest.TempPathFactory, seed: int, scope: str
) -> None:
    folder = tmp_path_factory.mktemp("held-out")
    images, masks = stacks(seed=seed)
    asked = params(intensity__scope=scope)
    before = build_catalog(write(folder / "a", images, masks), asked)
    held_out = [ref.z for ref, _ in before.planes("validation", "test", "gap")]
    assert held_out
    noise = images.copy()
    noise[held_out] = np.random.default_rng(1).integers(0, 65535, noise[held_out].shape)
    after = build_catalog(write(folder / "b", noise, masks), asked)
    assert after.intensity == before.intensity
    assert (before.intensity.statistics is not None) == (scope == "dataset")
    assert after.digest() != before.digest()
    training = images.copy()
    training[before.planes("training")[0][0].z] += 700
    if scope == "dataset":
        assert build_catalog(write(folder / "c", training, masks), asked).intensity != before.intensity


def test_the_digest_is_of_data_classes_and_split_not_of_the_folder(tmp_path: Path) -> None:
    images, masks = stacks()
    here, there = write(tmp_path / "here", images, masks), write(tmp_path / "there", images, masks)
    digest = build_catalog(here, params()).digest()
    assert build_catalog(there, params()).digest() == digest
    assert build_catalog(here, params(seed=1)).digest() != digest
    assert build_catalog(here, params(split__gap=0)).digest() != digest
    renamed = [{**CLASSES[0], "name": "pore"}, CLASSES[1]]
    assert build_catalog(here, params(data__classes=renamed)).digest() != digest


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"split__method": "explicit", "split__explicit": {"test": ["specimen/0-5"]}}, ""),
        ({"split__method": "explicit", "split__explicit": {"test": ["specimen/6-11"]}}, "class grain has no pixel in"),
    ],
)
def test_a_class_that_is_not_in_training_is_refused(tmp_path: Path, more: Mapping[str, Any], words: str) -> None:
    images, masks = stacks()
    masks[:6] = 0
    held = {"validation": ["specimen/10"] if not words else ["specimen/5"], "unused": []}
    explicit = {**more["split__explicit"], **held}
    data = write(tmp_path / "data", images, masks)
    asked = params(**{**more, "split__explicit": explicit})
    if words:
        with pytest.raises(DataError, match=words):
            build_catalog(data, asked)
    else:
        catalog = build_catalog(data, asked)
        assert any("class grain has no pixel in the test part" in one for one in catalog.warnings)


def test_constant_planes_are_counted_and_refused_where_all_of_training_is(tmp_path: Path) -> None:
    images, masks = stacks()
    images[:2] = 7
    catalog = build_catalog(write(tmp_path / "some", images, masks), params())
    assert [one for one in catalog.warnings if "constant" in one] == ["2 constant planes (first: specimen/0)"]
    assert [plane.constant for plane in catalog.specimens[0].planes] == [True] * 2 + [False] * 10
    images[:] = 7
    with pytest.raises(DataError, match=r"all .* training planes are constant"):
        build_catalog(write(tmp_path / "all", images, masks), params())


def test_specimens_of_another_kind_are_refused(tmp_path: Path) -> None:
    images, masks = stacks()
    write(tmp_path / "data" / "a", images, masks)
    write(tmp_path / "data" / "b", images.astype(np.uint8), masks)
    with pytest.raises(DataError, match="pixels of type uint8; expected uint16"):
        build_catalog(tmp_path / "data", params())


def test_groups_come_from_a_file_or_a_size(tmp_path: Path) -> None:
    data = write(tmp_path / "data", *stacks())
    by_size = build_catalog(data, params(split__method="groups", split__group_size=2))
    for _, plane in by_size.planes(*PARTS):
        assert plane.group == f"specimen:{plane.z // 2}"
    asked = params(split__method="groups")
    with pytest.raises(DataError, match=r"groups.csv: no such file"):
        build_catalog(data, asked)
    rows = "".join(f"specimen,{z},{'abcdef'[z % 6]}\n" for z in range(12))
    (data / "groups.csv").write_text("specimen,plane,group\n" + rows)
    by_file = build_catalog(data, asked)
    parts: dict[str, set[str]] = {}
    for _, plane in by_file.planes("training", "validation", "test"):
        parts.setdefault(str(plane.group), set()).add(plane.part)
    assert len(parts) == 6
    assert all(len(one) == 1 for one in parts.values())
    (data / "groups.csv").write_text("specimen,plane,group\n" + rows.replace("specimen,3,d\n", ""))
    with pytest.raises(DataError, match="no group for specimen/3"):
        build_catalog(data, asked)


def test_without_a_table_there_is_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"data.classes names 0 classes"):
        build_catalog(write(tmp_path / "data", *stacks()), Params())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a catalogue"),
        ("\xe9", "not a catalogue"),
        ("[]", "not a catalogue"),
        ("{}", "not a catalogue"),
        ('{"format": 99}', "format 99; expected 1"),
    ],
)
def test_a_damaged_catalogue_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "catalog.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=words) as caught:
        read_catalog(path)
    assert "\n" not in caught.value.sentence()
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_catalog(path)
