"""Scores of a bundle: counts first, summed over planes; intervals over what is independent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from stackseg.catalog.build import build_catalog
from stackseg.dataset.specimens import find_specimens
from stackseg.dataset.splits import PlaneRef
from stackseg.errors import DataError, ParamsError
from stackseg.evaluation.bootstrap import tile_counts
from stackseg.evaluation.boundary_metrics import boundary_counts
from stackseg.evaluation.evaluate import PlaneCounts, _DecodedOnce, count_planes, evaluate, summarise
from stackseg.evaluation.object_scores import object_counts, object_scores
from stackseg.evaluation.report import headline, score_metrics
from stackseg.model.bundle import Bundle, Segmenter, load_bundle
from stackseg.model.confusion import confusion_counts
from stackseg.model.segment import segment
from stackseg.params.evaluate import EvaluateParams
from stackseg.tracking.descriptions import score_table

QUICK = EvaluateParams(bootstrap_samples=100)


@pytest.fixture(scope="session")
def bundle(trained: tuple[Any, Any]) -> Bundle:
    """The trained bundle, loaded."""
    return load_bundle(trained[0].folder / "model")


def counted(catalog: Any, masks: dict[PlaneRef, tuple[Any, Any]]) -> list[PlaneCounts]:
    """Return the counts of pairs (truth, prediction) without a network."""
    records = {PlaneRef(one.name, plane.z): plane for one in catalog.specimens for plane in one.planes}
    num = len(catalog.classes)
    return [
        PlaneCounts(
            ref,
            records[ref],
            confusion_counts(truth_yx, found_yx, num),
            tile_counts(truth_yx, found_yx, num, 128),
            boundary_counts(truth_yx, found_yx, num, tolerance_px=2),
            None,
        )
        for ref, (truth_yx, found_yx) in masks.items()
    ]


def random_masks(catalog: Any, part: str = "test", num_classes: int = 3) -> dict[PlaneRef, tuple[Any, Any]]:
    random = np.random.default_rng(0)
    masks = {}
    for ref, plane in catalog.planes(part):
        truth_yx = random.integers(0, num_classes, plane.shape_yx).astype(np.uint8)
        wrong_yx = random.random(plane.shape_yx) < 0.3
        masks[ref] = (truth_yx, np.where(wrong_yx, (truth_yx + 1) % num_classes, truth_yx).astype(np.uint8))
    return masks


def summary(planes: list[PlaneCounts], catalog: Any, params: EvaluateParams = QUICK) -> Any:
    return summarise(planes, catalog, params, part="test", bundle_digest="d", device="cpu", precision="fp32")


@pytest.mark.parametrize("part", ["validation", "test", "training"])
def test_scores_are_those_of_all_pixels_of_the_part(trained: tuple[Any, Any], bundle: Bundle, part: Any) -> None:
    project, result = trained
    progress: list[tuple[int, int]] = []
    scored = evaluate(
        bundle, project.catalog, project.data, QUICK, part=part, progress=lambda *done: progress.append(done)
    )
    raw_zyx = tifffile.imread(project.data / "rock" / "masks.tif")
    numbers = [ref.z for ref, _ in project.catalog.planes(part)]
    truth = np.searchsorted([0, 3, 7], raw_zyx[numbers])
    (specimen,) = find_specimens(project.data)
    found = np.stack([plane.mask_yx for plane in segment(specimen, bundle, planes=numbers)])
    confusion = [[int(((truth == t) & (found == p)).sum()) for p in range(3)] for t in range(3)]
    assert scored.scores.confusion == tuple(map(tuple, confusion))
    ious = [(truth == c)[found == c].sum() / ((truth == c) | (found == c)).sum() for c in range(3)]
    assert [one.iou for one in scored.scores.classes] == pytest.approx(ious, abs=1e-12)
    assert scored.mean_iou == scored.scores.mean_iou == pytest.approx(np.mean(ious), abs=1e-12)
    assert scored.scores.pixel_accuracy == pytest.approx((truth == found).mean(), abs=1e-12)
    assert [(one.specimen, one.plane) for one in scored.planes] == [("rock", z) for z in numbers]
    assert (scored.part, scored.bundle_digest, scored.catalog_digest) == (
        part, result.spec.digest, project.catalog.digest()
    )  # fmt: skip
    assert (scored.device, scored.precision) == ("cpu", "fp32")
    assert progress == [(done + 1, len(numbers)) for done in range(len(numbers))]
    assert set(project.catalog.warnings) <= set(scored.warnings)


def test_context_planes_are_decoded_once_too(shared_project: Any, bundle: Bundle) -> None:
    (specimen,) = find_specimens(shared_project.data)
    decoded: list[int] = []

    class Noting:
        def __len__(self) -> int:
            return len(specimen)

        def plane(self, z: int) -> Any:
            decoded.append(z)
            return specimen.plane(z)

    source = _DecodedOnce(Noting(), context_slices=2)  # type: ignore[arg-type]
    five_planes = Segmenter(bundle.inference.model_copy(update={"context_slices": 2}), torch.nn.Conv2d(5, 3, 1))
    for plane in segment(source, five_planes, planes=[0, 1, 2, 5, 9]):
        np.testing.assert_array_equal(source.plane(plane.z), specimen.plane(plane.z))
    assert sorted(decoded) == list(range(10))


def test_pooling_folds_is_summing_their_counts(trained: tuple[Any, Any], bundle: Bundle) -> None:
    project, _ = trained
    parts = [count_planes(bundle, project.catalog, project.data, QUICK, part=part) for part in ("validation", "test")]
    pooled = summary([*parts[0], *parts[1]], project.catalog)
    single = [summary(planes, project.catalog) for planes in parts]
    sums = np.sum([one.scores.confusion for one in single], axis=0)
    assert pooled.scores.confusion == tuple(map(tuple, sums.tolist()))
    assert pooled.scores.num_planes == sum(one.scores.num_planes for one in single)
    assert pooled.planes == (*single[0].planes, *single[1].planes)


@pytest.mark.parametrize("changed", ["images.tif", "masks.tif"])
def test_planes_that_changed_since_the_catalogue_are_refused(
    make_project: Any, bundle: Bundle, tmp_path: Path, changed: str
) -> None:
    project = make_project(tmp_path)
    path = project.data / "rock" / changed
    stack_zyx = tifffile.imread(path)
    (ref, _), *_ = project.catalog.planes("test")
    stack_zyx[ref.z, 0, 0] = 7 if stack_zyx[ref.z, 0, 0] != 7 else 3
    tifffile.imwrite(path, stack_zyx, metadata={"axes": "ZYX"})
    word = changed.removesuffix("s.tif")
    with pytest.raises(DataError, match=rf"{ref}: the {word} has changed since the catalogue was made") as caught:
        evaluate(bundle, project.catalog, project.data, QUICK)
    assert "\n" not in caught.value.sentence()
    # the other parts are as they were
    assert evaluate(bundle, project.catalog, project.data, QUICK, part="validation").mean_iou is not None


def test_a_missing_specimen_is_named(make_project: Any, bundle: Bundle, tmp_path: Path) -> None:
    project = make_project(tmp_path)
    (project.data / "rock").rename(project.data / "stone")
    with pytest.raises(DataError, match="no specimen rock"):
        evaluate(bundle, project.catalog, project.data, QUICK)


def test_a_model_of_other_classes_is_refused(trained: tuple[Any, Any], bundle: Bundle) -> None:
    project, _ = trained
    other = replace(bundle, inference=bundle.inference.model_copy(update={"classes": bundle.inference.classes[::-1]}))
    with pytest.raises(DataError, match=r"knows the classes ore, grain, void; expected void, grain, ore"):
        evaluate(other, project.catalog, project.data, QUICK)


@pytest.mark.parametrize("name", ["grain", "nothing"])
def test_a_membrane_is_one_of_two_classes(trained: tuple[Any, Any], bundle: Bundle, name: str) -> None:
    project, _ = trained
    with pytest.raises(ParamsError, match=rf"membrane_class is '{name}' and the classes are void, grain, ore"):
        evaluate(bundle, project.catalog, project.data, EvaluateParams(membrane_class=name))


def test_rand_and_vi_scores_come_with_a_membrane_only(make_project: Any, tmp_path: Path, stack_files: Any) -> None:
    _, write_specimen = stack_files
    masks_zyx = np.zeros((10, 40, 48), np.uint8)
    masks_zyx[:, ::8] = 7
    masks_zyx[:, :, ::8] = 7
    images = np.random.default_rng(0).normal(20000 + 3000.0 * masks_zyx, 2000).astype(np.uint16)
    classes = [{"name": "cell", "raw": 0, "display": "#ffffff"}, {"name": "membrane", "raw": 7, "display": "#000000"}]
    spare = make_project(tmp_path / "spare")
    write_specimen(tmp_path / "cells" / "data" / "rock", images, masks_zyx)
    project = replace(spare, folder=tmp_path / "cells").having({"data.classes": classes, "train.epochs": 1})
    project.train()
    two = load_bundle(tmp_path / "cells" / "model")
    without = evaluate(two, project.catalog, project.data, QUICK)
    params = EvaluateParams(bootstrap_samples=100, membrane_class="membrane")
    scored = evaluate(two, project.catalog, project.data, params)
    assert without.rand_vi is None
    assert scored.rand_vi is not None
    assert scored.scores == without.scores
    planes = count_planes(two, project.catalog, project.data, params)
    assert all(one.rand_vi is not None for one in planes)


def test_a_class_that_is_absent_scores_null_and_is_reported(shared_project: Any) -> None:
    scored = summary(
        counted(shared_project.catalog, random_masks(shared_project.catalog, num_classes=2)), shared_project.catalog
    )
    ore = scored.scores.classes[2]
    assert ore.absent
    assert (ore.iou, ore.dice, ore.boundary_f1, ore.boundary_iou) == (None, None, None, None)
    assert scored.scores.absent_classes == ("ore",)
    assert "class ore is absent: its score is null" in scored.warnings
    ious = [one.iou for one in scored.scores.classes[:2]]
    assert scored.mean_iou == pytest.approx(np.mean(ious))
    assert all(one.iou["ore"] is None for one in scored.planes)


UNITS = {
    "a stack, blocks": ({}, "block of 8 planes"),
    "a stack, named planes": (
        {"split.method": "explicit", "split.explicit.validation": ["rock/1"], "split.explicit.test": ["rock/2-9"]},
        "block of 8 planes",
    ),
    "a stack, short blocks": ({"evaluate.block_planes": 1, "split.test": 0.6}, "block of 1 planes"),
    "random planes": ({"split.method": "random", "split.test": 0.6}, "plane"),
    "groups": ({"split.method": "groups", "split.group_size": 2, "split.test": 0.6}, "group"),
}


@pytest.mark.parametrize(("settings", "unit"), UNITS.values(), ids=UNITS)
def test_what_is_resampled_is_what_the_split_holds_independent(
    shared_project: Any, settings: dict[str, Any], unit: str
) -> None:
    project = shared_project.having({"evaluate.bootstrap_samples": 100, **settings})
    planes = counted(project.catalog, random_masks(project.catalog))
    scored = summary(planes, project.catalog, project.params.evaluate)
    interval = scored.mean_iou_interval
    assert interval.unit == unit
    refs = [ref for ref, _ in project.catalog.planes("test")]
    num_units = {
        "group": len({plane.group for _, plane in project.catalog.planes("test")}),
        "block of 8 planes": 1,
    }.get(unit, len(refs))
    assert interval.num_units == num_units
    if num_units < 5:
        assert (interval.low, interval.high) == (None, None)
        assert f"{num_units} independent units" in interval.reason
    else:
        assert interval.low < scored.mean_iou < interval.high
    within = scored.mean_iou_interval_within_planes
    assert within.unit == "128-pixel tile within plane"
    assert within.num_units == len(refs)  # planes of 40 × 48 are a tile each


def test_whole_specimens_are_resampled_where_they_were_split(
    make_project: Any, stack_files: Any, tmp_path: Path
) -> None:
    tiny_stack, write_specimen = stack_files
    spare = make_project(tmp_path / "spare")
    for number in range(9):
        write_specimen(tmp_path / "data" / f"s{number}", *tiny_stack(3, seed=number))
    params = spare.params.override({"split.method": "specimens", "split.test": 0.6})
    catalog = build_catalog(tmp_path / "data", params)
    interval = summary(counted(catalog, random_masks(catalog)), catalog).mean_iou_interval
    assert (interval.unit, interval.num_units) == ("specimen", 5)
    assert interval.low is not None


def test_single_images_are_resampled_one_by_one(make_project: Any, stack_files: Any, tmp_path: Path) -> None:
    tiny_stack, _ = stack_files
    spare = make_project(tmp_path / "spare")
    images, masks_zyx = tiny_stack(10)
    for kind, stack in (("images", images), ("masks", masks_zyx)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for z, plane_yx in enumerate(stack):
            tifffile.imwrite(tmp_path / "data" / kind / f"{z}.tif", plane_yx)
    catalog = build_catalog(tmp_path / "data", spare.params.override({"split.test": 0.6}))
    interval = summary(counted(catalog, random_masks(catalog)), catalog).mean_iou_interval
    assert (interval.unit, interval.num_units) == ("plane", 6)


def test_equal_evaluations_have_equal_intervals(trained: tuple[Any, Any], bundle: Bundle) -> None:
    project, _ = trained
    first, again = (evaluate(bundle, project.catalog, project.data, QUICK, part="training") for _ in range(2))
    assert first == again


def test_objects_are_scored_plane_by_plane_and_pooled(trained_on_discs: tuple[Any, Any]) -> None:
    project, _ = trained_on_discs
    bundle = load_bundle(project.folder / "model")
    scored = evaluate(bundle, project.catalog, project.data, QUICK, part="training")
    (specimen,) = find_specimens(project.data)
    raw_zyx = tifffile.imread(project.data / "discs" / "masks.tif")
    numbers = [ref.z for ref, _ in project.catalog.planes("training")]
    found = {one.z: one.objects_yx for one in segment(specimen, bundle, planes=numbers, objects=True)}
    counts = [object_counts(np.unique(raw_zyx[z], return_inverse=True)[1].reshape(64, 64), found[z]) for z in numbers]
    assert scored.objects is not None
    assert scored.objects == object_scores(counts, scored.objects.f1_interval)
    assert scored.objects.num_truth == 8 * len(numbers)
    assert scored.objects.f1_interval.unit == scored.mean_iou_interval.unit
    metrics = score_metrics(scored)
    assert metrics["training/f1/0.5"] == headline(scored)["f1"] == scored.objects.f1["0.5"]
    assert metrics["training/mean_ap"] == headline(scored)["mean_ap"] == scored.objects.mean_ap
    assert metrics["training/ap_of_planes/0.75"] == scored.objects.ap_of_planes["0.75"]
    assert f"F1 **{scored.objects.f1['0.5']:.4f}**" in score_table(scored)


def test_of_a_model_of_classes_the_regions_are_the_objects(trained_on_discs: tuple[Any, Any]) -> None:
    project, _ = trained_on_discs
    bundle = load_bundle(project.folder / "model")

    class Sure(torch.nn.Module):
        """Says of each bright pixel that it is of a disc."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image_bcyx: torch.Tensor) -> torch.Tensor:
            smooth_bcyx = torch.nn.functional.avg_pool2d(image_bcyx, 3, 1, 1)
            return torch.cat([-smooth_bcyx, smooth_bcyx], 1) + self.bias

    spec = bundle.inference
    of_classes = spec.model_copy(
        update={"instances": False, "network": spec.network.model_copy(update={"num_classes": 2})}
    )
    classes = replace(bundle, inference=of_classes, network=Sure())
    scored = evaluate(classes, project.catalog, project.data, QUICK, part="training")
    assert scored.objects is not None
    num_planes = scored.scores.num_planes
    assert (scored.objects.num_truth, scored.objects.num_predicted) == (8 * num_planes, 4 * num_planes)
    assert scored.objects.f1["0.5"] < 0.5  # type: ignore[operator]


def test_units_of_several_planes_give_an_interval_of_f1(trained_on_discs: tuple[Any, Any]) -> None:
    project, _ = trained_on_discs
    bundle = load_bundle(project.folder / "model")
    single = EvaluateParams(bootstrap_samples=100, block_planes=1)
    scored = evaluate(bundle, project.catalog, project.data, single, part="training")
    assert scored.objects is not None
    interval, f1 = scored.objects.f1_interval, scored.objects.f1["0.5"]
    assert interval.low is not None
    assert interval.high is not None
    assert f1 is not None
    assert interval.low <= f1 <= interval.high


def test_a_class_that_nobody_annotated_is_not_scored_on_that_specimen(
    stack_files: Any, bundle: Bundle, make_project: Any, tmp_path: Path
) -> None:
    tiny_stack, write_specimen = stack_files
    spare = make_project(tmp_path / "spare")
    for seed, name in enumerate(("a", "b")):
        write_specimen(tmp_path / "data" / name, *tiny_stack(seed=seed))
    masks: list[dict[PlaneRef, Any]] = [{}, {}]
    counts = []
    for kept, partial in zip(masks, ({}, {"b": ["grain", "ore"]}), strict=True):
        catalog = build_catalog(tmp_path / "data", spare.params.override({"data.partial": partial}))
        counts.append(count_planes(bundle, catalog, tmp_path / "data", QUICK, on_mask=kept.__setitem__))
    for before, after in zip(*counts, strict=True):
        if after.ref.specimen == "a":
            assert (after.counts_cc == before.counts_cc).all()
            continue
        # all that is left is void, and whatever is predicted counts as that
        assert before.counts_cc[0, 1:].sum() > 0
        num_void = before.counts_cc[0].sum()
        assert after.counts_cc.tolist() == [[num_void, 0, 0], [0, 0, 0], [0, 0, 0]]
        assert after.tiles_tcc.sum(0).tolist() == after.counts_cc.tolist()
        assert after.boundary.num_predicted == (0, 0, 0)
        assert not masks[1][after.ref].any()
        assert masks[0][after.ref].any()
