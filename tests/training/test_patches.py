"""Patches: a pure function of (seed, epoch, index), and the very intensities that segment() feeds."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.catalog.build import build_catalog
from stackseg.dataset.records import Catalog
from stackseg.dataset.specimens import find_specimens
from stackseg.errors import DataError
from stackseg.model.segment import prepare, stack_context
from stackseg.training.augmentation import Augmentation, build_augmentation
from stackseg.training.export import inference_spec
from stackseg.training.instance_targets import instance_target
from stackseg.training.patches import EpochSampler, PatchDataset, PatchPlan, patch_loader

IGNORE = 255


def unchanged(image_yxc: Any, labels_yx: Any, seed: int) -> tuple[Any, Any]:
    return image_yxc, labels_yx


def dataset_of(
    catalog: Catalog, data: Path, *, augmentation: Augmentation = unchanged, memory_share: float = 1.0, **plan: Any
) -> PatchDataset:
    settings = {"patch_size": 32, "patches_per_epoch": 12, "rare_share": 0.5, "context_slices": 0, "seed": 7, **plan}
    return PatchDataset(catalog, data, PatchPlan(**settings), augmentation, memory_share=memory_share)


def epochs_of(dataset: PatchDataset, num_workers: int, num_epochs: int = 2) -> list[torch.Tensor]:
    """Return the images and labels of some epochs, as a loader hands them out."""
    sampler = EpochSampler(len(dataset), 4)
    loader = patch_loader(dataset, sampler, num_workers, pin_memory=False)
    found: list[torch.Tensor] = []
    for epoch in range(num_epochs):
        sampler.epoch = epoch
        for image_bcyx, labels_byx, missing_bc in loader:
            assert image_bcyx.dtype == torch.float32
            assert labels_byx.dtype == torch.int64
            assert not missing_bc.any()
            found += [image_bcyx, labels_byx]
    return found


@pytest.mark.parametrize("preset", ["light", "micrograph"])
def test_patches_are_the_same_for_any_number_of_workers(shared_project: Any, preset: str) -> None:
    augmentation = build_augmentation(preset)
    dataset = dataset_of(shared_project.catalog, shared_project.data, augmentation=augmentation)
    alone = epochs_of(dataset, 0)
    for num_workers in (1, 2):
        fresh = dataset_of(shared_project.catalog, shared_project.data, augmentation=augmentation)
        helped = epochs_of(fresh, num_workers)
        assert len(helped) == len(alone) == 2 * 2 * 3
        assert all(torch.equal(one, other) for one, other in zip(alone, helped, strict=True))


def test_a_specimen_that_is_gone_since_the_catalogue_is_named(shared_project: Any) -> None:
    catalog = shared_project.catalog
    gone = catalog.specimens[0].model_copy(update={"name": "../gone"})
    with pytest.raises(DataError, match=r"no specimen \.\./gone"):
        dataset_of(catalog.model_copy(update={"specimens": (gone,)}), shared_project.data)


def test_loading_leaves_the_random_stream_of_dropout_alone(shared_project: Any) -> None:
    dataset = dataset_of(shared_project.catalog, shared_project.data)
    for num_workers in (0, 1):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        epochs_of(dataset, num_workers, 1)
        assert torch.equal(torch.rand(3), expected)


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(24)), seed=st.integers(0, 2**32 - 1))
def test_patches_depend_on_their_number_alone(shared_project: Any, order: list[int], seed: int) -> None:
    arguments = (shared_project.catalog, shared_project.data)
    augmentation = build_augmentation("light")
    straight = dataset_of(*arguments, augmentation=augmentation, seed=seed)
    # a cache that holds next to nothing must not matter either
    shuffled = dataset_of(*arguments, augmentation=augmentation, seed=seed, memory_share=1e-9)
    expected = [straight[number] for number in range(24)]
    for number in order[:8]:
        for one, other in zip(shuffled[number], expected[number], strict=True):
            assert torch.equal(one, other)


def test_epochs_and_seeds_differ(shared_project: Any) -> None:
    arguments = (shared_project.catalog, shared_project.data)
    first, other = dataset_of(*arguments), dataset_of(*arguments, seed=8)
    images = [first[number][0] for number in range(24)] + [other[number][0] for number in range(12)]
    drawn = Counter(image.numpy().tobytes() for image in images)
    assert len(drawn) > 30  # of 36, for two draws may coincide


def test_augmentation_gets_another_seed_for_every_patch(shared_project: Any) -> None:
    seeds: list[int] = []

    def noting(image_yxc: Any, labels_yx: Any, seed: int) -> tuple[Any, Any]:
        seeds.append(seed)
        return image_yxc, labels_yx

    dataset = dataset_of(shared_project.catalog, shared_project.data, augmentation=noting)
    for number in range(24):
        dataset[number]
    assert len(set(seeds)) == 24


@pytest.mark.parametrize("scope", ["dataset", "specimen", "plane"])
@pytest.mark.parametrize("context_slices", [0, 2])
def test_patches_are_cut_from_what_segment_feeds(
    make_project: Any, tmp_path: Path, scope: str, context_slices: int
) -> None:
    stack = {"channels": 3} if context_slices else {}
    project = make_project(
        tmp_path, {"intensity.scope": scope, "model.context_slices": context_slices}, shape_yx=(45, 61), **stack
    )
    (specimen,) = find_specimens(project.data)
    spec = inference_spec(project.params, project.catalog)
    reference = spec.intensity.reference(specimen)
    prepared = [prepare(specimen, z, spec, reference) for z in range(len(specimen))]
    last = len(specimen) - 1
    whole = {}
    for z in {ref.z for ref, _ in project.catalog.planes("training")}:
        # written out, and mirrored at the ends: the plane before 0 is 1
        around = [abs(z + offset) for offset in range(-context_slices, context_slices + 1)]
        around = [last - abs(last - one) for one in around]
        whole[z] = (stack_context([prepared[one] for one in around], z), specimen.labels(z, project.catalog.table))

    dataset = dataset_of(project.catalog, project.data, context_slices=context_slices)
    found_in: Counter[int] = Counter()
    for number in range(24):
        image_cyx, labels_yx = (one.numpy() for one in dataset[number][:2])
        places = [
            z
            for z, (image_yxc, truth_yx) in whole.items()
            for top in range(45 - 32 + 1)
            for left in range(61 - 32 + 1)
            if np.array_equal(image_yxc[top : top + 32, left : left + 32].transpose(2, 0, 1), image_cyx)
            and np.array_equal(truth_yx[top : top + 32, left : left + 32], labels_yx)
        ]
        assert len(places) == 1
        found_in.update(places)
    assert len(found_in) > 3  # of 6 training planes


def test_context_comes_from_unlabelled_planes_too(stack_files: Any, make_project: Any, tmp_path: Path) -> None:
    tiny_stack, _ = stack_files
    spare = make_project(tmp_path / "spare", {"model.context_slices": 1})
    folder = tmp_path / "data" / "rock"
    folder.mkdir(parents=True)
    images, masks_zyx = tiny_stack()
    tifffile.imwrite(folder / "images.tif", images, metadata={"axes": "ZYX"})
    labelled = [0, 2, 4, 6, 9]
    tifffile.imwrite(folder / "masks.tif", masks_zyx[labelled], metadata={"axes": "ZYX"})
    (folder / "specimen.yaml").write_text("planes: [0, 2, 4, 6, 9]\n")
    catalog = build_catalog(tmp_path / "data", spare.params)
    dataset = dataset_of(catalog, tmp_path / "data", context_slices=1, patch_size=64)
    spec = inference_spec(spare.params, catalog)
    (specimen,) = find_specimens(tmp_path / "data")
    reference = spec.intensity.reference(specimen)
    seen = set()
    for number in range(12):
        image_cyx = dataset[number][0].numpy()[:, :40, :48]
        (z,) = (z for z in labelled if np.array_equal(prepare(specimen, z, spec, reference)[:, :, 0], image_cyx[1]))
        for channel, beside in ((0, abs(z - 1)), (2, z + 1 if z < 9 else 8)):
            np.testing.assert_array_equal(image_cyx[channel], prepare(specimen, beside, spec, reference)[:, :, 0])
        seen.add(z)
    assert len(seen) > 1


@pytest.mark.parametrize("shape_yx", [(20, 27), (20, 90), (1, 3)])
def test_small_planes_are_mirrored_and_what_is_beyond_does_not_count(
    make_project: Any, tmp_path: Path, shape_yx: tuple[int, int]
) -> None:
    project = make_project(tmp_path / "enough", shape_yx=(40, 48))
    if shape_yx != (1, 3):
        project = make_project(tmp_path / "small", shape_yx=shape_yx)
    else:
        images = tifffile.imread(project.data / "rock" / "images.tif")[:, :1, :3]
        masks_zyx = np.tile(np.array([0, 3, 7], np.uint8), (10, 1, 1))
        for name, stack in (("images.tif", images), ("masks.tif", masks_zyx)):
            tifffile.imwrite(project.data / "rock" / name, stack, metadata={"axes": "ZYX"}, photometric="minisblack")
        project = project.having({})
    height, width = shape_yx[0], min(32, shape_yx[1])
    dataset = dataset_of(project.catalog, project.data)
    for number in range(12):
        image_cyx, labels_yx = (one.numpy() for one in dataset[number][:2])
        assert image_cyx.shape == (1, 32, 32)
        assert (labels_yx[:height, :width] < 3).all()
        assert (labels_yx[height:] == IGNORE).all()
        assert (labels_yx[:, width:] == IGNORE).all()
        inside_yx = image_cyx[0, :height, :width]
        padded_yx = np.pad(inside_yx, [(0, 32 - height), (0, 32 - width)], mode="symmetric")
        np.testing.assert_array_equal(image_cyx[0], padded_yx)


def rare_stack(num_planes: int = 12) -> tuple[Any, Any]:
    """Return planes of one class with a lone pixel of a second one in each other plane, and a third class elsewhere."""
    masks_zyx = np.zeros((num_planes, 128, 128), np.uint8)
    masks_zyx[:, :8, :8] = 7
    masks_zyx[::2, 100, 64] = 3
    images = np.random.default_rng(0).integers(0, 60000, masks_zyx.shape).astype(np.uint16)
    return images, masks_zyx


def test_a_set_share_of_the_patches_is_centred_on_rare_classes(
    make_project: Any, tmp_path: Path, stack_files: Any
) -> None:
    _, write_specimen = stack_files
    spare = make_project(tmp_path / "spare")
    write_specimen(tmp_path / "data" / "rock", *rare_stack())
    catalog = build_catalog(tmp_path / "data", spare.params)
    num = 600
    for share in (0.0, 0.5, 1.0):
        dataset = dataset_of(catalog, tmp_path / "data", rare_share=share, patches_per_epoch=num)
        labels = [dataset[number][1].numpy() for number in range(num)]
        with_speck = sum((one == 1).any() for one in labels) / num
        with_corner = sum((one == 2).any() for one in labels) / num
        # by chance a patch holds the speck of every other plane in (32 / 97)² of 1/2 cases, the corner in 8² / 97²
        chance_speck, chance_corner = (32 / 97) ** 2 / 2, (8 / 97) ** 2
        # each of the two rare classes gets half the share; four standard errors
        assert with_speck == pytest.approx(share / 2 + (1 - share) * chance_speck, abs=4 * 0.5 / num**0.5)
        assert with_corner == pytest.approx(share / 2 + (1 - share) * chance_corner, abs=4 * 0.5 / num**0.5)
        if share == 1.0:
            places = np.array([np.argwhere(one == 1)[0] for one in labels if (one == 1).any()])
            # around the middle, and not always in it
            assert places.min() >= 8
            assert places.max() < 24
            assert len(np.unique(places, axis=0)) > 100


def test_patches_of_common_pixels_are_even_over_the_plane(shared_project: Any) -> None:
    dataset = dataset_of(shared_project.catalog, shared_project.data, rare_share=0.0)
    corners: Counter[tuple[int, int]] = Counter()
    planes: Counter[int] = Counter()
    for number in range(6000):
        random = np.random.Generator(np.random.PCG64([0, 0, number]))
        ref, top, left = dataset._choose(random)
        corners[top, left] += 1
        planes[ref.z] += 1
    training = {ref.z for ref, _ in shared_project.catalog.planes("training")}
    assert set(planes) == training
    assert set(corners) == {(top, left) for top in range(9) for left in range(17)}
    assert max(planes.values()) / min(planes.values()) < 1.25
    assert max(corners.values()) < 3 * 6000 / len(corners)


def test_larger_planes_give_more_patches(make_project: Any, stack_files: Any, tmp_path: Path) -> None:
    tiny_stack, write_specimen = stack_files
    spare = make_project(tmp_path / "spare")
    write_specimen(tmp_path / "data" / "large", *tiny_stack(shape_yx=(64, 128)))
    write_specimen(tmp_path / "data" / "small", *tiny_stack(shape_yx=(32, 64)))
    catalog = build_catalog(tmp_path / "data", spare.params)
    dataset = dataset_of(catalog, tmp_path / "data", rare_share=0.0)
    drawn = Counter(dataset._choose(np.random.Generator(np.random.PCG64(number)))[0].specimen for number in range(2000))
    assert drawn["large"] / drawn["small"] == pytest.approx(4, rel=0.25)


def test_constant_planes_are_not_drawn(make_project: Any, stack_files: Any, tmp_path: Path) -> None:
    tiny_stack, write_specimen = stack_files
    spare = make_project(tmp_path / "spare")
    images, masks_zyx = tiny_stack()
    images[2] = 500
    write_specimen(tmp_path / "data" / "rock", images, masks_zyx)
    catalog = build_catalog(tmp_path / "data", spare.params)
    assert 2 in {ref.z for ref, _ in catalog.planes("training")}
    dataset = dataset_of(catalog, tmp_path / "data")
    drawn = {dataset._choose(np.random.Generator(np.random.PCG64(number)))[0].z for number in range(300)}
    assert drawn == {ref.z for ref, _ in catalog.planes("training")} - {2}


def test_neighbours_of_another_size_are_refused(make_project: Any, stack_files: Any, tmp_path: Path) -> None:
    tiny_stack, _ = stack_files
    spare = make_project(tmp_path / "spare", {"model.context_slices": 1, "split.method": "random"})
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(6):
        images, masks_zyx = tiny_stack(1, (40, 48 + 8 * (number % 2)), seed=number)
        tifffile.imwrite(tmp_path / "data" / "images" / f"{number}.tif", images[0])
        tifffile.imwrite(tmp_path / "data" / "masks" / f"{number}.tif", masks_zyx[0])
    catalog = build_catalog(tmp_path / "data", spare.params)
    # a patch fits into both: the crops alone would not tell
    dataset = dataset_of(catalog, tmp_path / "data", context_slices=1)
    with pytest.raises(DataError, match=r"neighbours of different sizes \(40×48, 40×56\).*Model\.context_slices"):
        dataset[0]
    assert dataset_of(catalog, tmp_path / "data")[0][0].shape == (1, 32, 32)


def test_a_dataset_can_be_sent_to_a_spawned_worker(shared_project: Any) -> None:
    dataset = dataset_of(shared_project.catalog, shared_project.data, augmentation=build_augmentation("em"))
    expected = dataset[3]
    sent = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(one, other) for one, other in zip(sent[3], expected, strict=True))


def test_memory_for_decoded_planes_is_bounded(shared_project: Any) -> None:
    one_plane = 40 * 48 * 2
    small = dataset_of(shared_project.catalog, shared_project.data, memory_share=1e-12)
    assert small._cache.maxsize < one_plane
    small[0]
    assert small._cache.currsize == 0
    full = dataset_of(shared_project.catalog, shared_project.data)
    for number in range(24):
        full[number]
    assert full._cache.currsize == sum(array.nbytes for array in full._cache.values()) > 5 * one_plane
    # views would hold more than they are counted for
    assert all(array.base is None or array.base.nbytes <= array.nbytes for array in full._cache.values())


def test_many_pixels_of_a_rare_class_are_thinned_out(make_project: Any, tmp_path: Path) -> None:
    project = make_project(tmp_path, shape_yx=(160, 160))
    dataset = dataset_of(project.catalog, project.data, rare_share=1.0)
    for number in range(24):
        dataset[number]
    remembered = [
        array
        for key, array in dataset._cache.items()
        if isinstance(key, tuple) and isinstance(key[-1], int) and len(key) == 3
    ]
    assert remembered
    for array in remembered:
        assert len(array) <= 4096
        assert array.base is None


@given(
    num_patches=st.integers(1, 200),
    per_process=st.integers(1, 9),
    num_processes=st.integers(1, 4),
    epoch=st.integers(0, 5),
)
def test_processes_share_each_batch_evenly(num_patches: int, per_process: int, num_processes: int, epoch: int) -> None:
    batch_size = per_process * num_processes
    samplers = [
        EpochSampler(num_patches, batch_size, rank=rank, num_processes=num_processes) for rank in range(num_processes)
    ]
    (whole,) = [EpochSampler(num_patches, batch_size)]
    for sampler in (*samplers, whole):
        sampler.epoch = epoch
    batches = list(whole)
    assert len(batches) == len(whole) == num_patches // batch_size
    numbers = [number for batch in batches for number in batch]
    first = epoch * num_patches
    assert numbers == list(range(first, first + len(batches) * batch_size))
    for step, shares in enumerate(zip(*samplers, strict=True)):
        assert {len(share) for share in shares} == {per_process}
        assert sorted(number for share in shares for number in share) == batches[step]


def test_objects_become_targets_behind_the_augmentation(trained_on_discs: tuple[Any, Any]) -> None:
    project, _ = trained_on_discs
    seen: list[Any] = []

    def noting(image_yxc: Any, codes_yx: Any, seed: int) -> tuple[Any, Any]:
        seen.append(codes_yx)
        return image_yxc, codes_yx[::-1]

    dataset = dataset_of(project.catalog, project.data, augmentation=noting, patch_size=96)
    for number in range(6):
        target_yx = dataset[number][1].numpy()
        (codes_yx,) = seen
        seen.clear()
        assert len(np.unique(codes_yx[codes_yx != IGNORE])) == 9  # eight discs and the background
        assert (codes_yx[64:] == IGNORE).all()  # the plane is smaller than the patch
        np.testing.assert_array_equal(target_yx, instance_target(codes_yx[::-1]))
        assert set(np.unique(target_yx)) == {0, 1, 2, IGNORE}


@pytest.mark.parametrize("preset", ["light", "em", "micrograph"])
def test_warped_objects_keep_their_numbers(trained_on_discs: tuple[Any, Any], preset: str) -> None:
    project, _ = trained_on_discs
    augment = build_augmentation(preset)
    codes: list[Any] = []

    def noting(image_yxc: Any, codes_yx: Any, seed: int) -> tuple[Any, Any]:
        image_yxc, varied_yx = augment(image_yxc, codes_yx, seed)
        codes.append((codes_yx, varied_yx))
        return image_yxc, varied_yx

    dataset = dataset_of(project.catalog, project.data, augmentation=noting, patch_size=64)
    for number in range(12):
        dataset[number]
    for given_yx, varied_yx in codes:
        assert varied_yx.dtype == np.uint16
        assert set(np.unique(varied_yx)) <= set(np.unique(given_yx))
    assert not all(np.array_equal(given, varied) for given, varied in codes)


def test_where_all_is_labelled_the_patches_are_those_of_earlier_versions(shared_project: Any) -> None:
    dataset = dataset_of(shared_project.catalog, shared_project.data)
    drawn = [dataset._choose(np.random.Generator(np.random.PCG64([7, 0, number]))) for number in range(10)]
    assert [(ref.z, top, left) for ref, top, left in drawn] == [
        *[(5, 5, 13), (2, 6, 12), (2, 0, 16), (5, 5, 16), (5, 3, 3)],
        *[(1, 5, 13), (0, 8, 5), (3, 1, 16), (0, 0, 13), (5, 8, 11)],
    ]


@pytest.mark.parametrize("rare_share", [0.0, 0.5])
def test_patches_lie_around_labels_where_there_are_few(
    make_project: Any, stack_files: Any, tmp_path: Path, rare_share: float
) -> None:
    tiny_stack, write_specimen = stack_files
    spare = make_project(tmp_path / "spare", {"data.ignore": 99})
    images, masks_zyx = tiny_stack(shape_yx=(128, 128))
    sparse_zyx = np.full_like(masks_zyx, 99)
    sparse_zyx[0] = masks_zyx[0]  # wholly labelled
    # of the others a corner of two classes and one dot, and nothing at all of plane 2
    sparse_zyx[:, :4, :4], sparse_zyx[:, 4:8, :4], sparse_zyx[:, 100, 90] = 0, 3, 7
    sparse_zyx[2] = 99
    write_specimen(tmp_path / "data" / "rock", images, sparse_zyx)
    catalog = build_catalog(tmp_path / "data", spare.params)
    num = 300
    dataset = dataset_of(catalog, tmp_path / "data", rare_share=rare_share, patches_per_epoch=num)
    labels = [dataset[number][1].numpy() for number in range(num)]
    assert all((one != IGNORE).any() for one in labels)
    drawn = [dataset._choose(np.random.Generator(np.random.PCG64([3, number]))) for number in range(num)]
    training = {ref.z for ref, _ in catalog.planes("training")}
    assert {ref.z for ref, _, _ in drawn} == training - {2}
    if not rare_share:
        # each of the 33 labelled pixels is as likely as another, and the whole plane is drawn from evenly
        dots = sum(top > 60 for ref, top, _ in drawn if ref.z) / sum(ref.z > 0 for ref, _, _ in drawn)
        assert dots == pytest.approx(1 / 33, abs=0.03)
        assert len({(top, left) for ref, top, left in drawn if ref.z == 0}) > 40


def test_planes_that_are_half_labelled_are_drawn_from_as_before(
    make_project: Any, stack_files: Any, tmp_path: Path
) -> None:
    tiny_stack, write_specimen = stack_files
    spare = make_project(tmp_path / "spare", {"data.ignore": 99})
    images, masks_zyx = tiny_stack()
    write_specimen(tmp_path / "whole" / "rock", images, masks_zyx)
    masks_zyx[:, :, 24:] = 99
    write_specimen(tmp_path / "half" / "rock", images, masks_zyx)
    places = []
    for name in ("whole", "half"):
        catalog = build_catalog(tmp_path / name, spare.params)
        dataset = dataset_of(catalog, tmp_path / name, rare_share=0.0)
        places.append([dataset._choose(np.random.Generator(np.random.PCG64(number))) for number in range(40)])
    assert places[0] == places[1]


def test_a_patch_says_which_classes_nobody_annotated(make_project: Any, stack_files: Any, tmp_path: Path) -> None:
    tiny_stack, write_specimen = stack_files
    spare = make_project(tmp_path / "spare", {"data.partial": {}})
    for seed, name in enumerate(("a", "b")):
        write_specimen(tmp_path / "data" / name, *tiny_stack(seed=seed))
    catalog = build_catalog(tmp_path / "data", spare.params.override({"data.partial": {"b": ["ore"]}}))
    dataset = dataset_of(catalog, tmp_path / "data")
    seen = set()
    for number in range(24):
        ref, _, _ = dataset._choose(np.random.Generator(np.random.PCG64([7, *divmod(number, 12)])))
        _, labels_yx, missing_c = dataset[number]
        assert missing_c.tolist() == [False, False, ref.specimen == "b"]
        assert ref.specimen == "a" or not (labels_yx == 2).any()
        seen.add(ref.specimen)
    assert seen == {"a", "b"}
