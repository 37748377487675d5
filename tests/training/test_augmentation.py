from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.errors import ParamsError
from stackseg.training.augmentation import (
    Warp,
    WarpStrength,
    build_augmentation,
    check_augmentation,
    load_pipeline,
)

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31 - 1)
PRESETS = ("none", "light", "em", "micrograph")
varying = pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])


def patch(
    height: int = 48, width: int = 48, channels: int = 1, seed: int = 0, labels: int = 3
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Standardised noise and blobs of labels."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.standard_normal((height, width)), 5, mode="reflect")
    mask = np.digitize(smooth, np.quantile(smooth, np.arange(1, labels) / labels)).astype(np.uint8)
    return random.standard_normal((height, width, channels), dtype=np.float32), mask


def saved(tmp_path: Path, transform: Any, kind: str = "json") -> Path:
    path = tmp_path / f"pipeline.{kind}"
    A.save(transform, path, data_format=kind)
    return path


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(48, 48, 1), (33, 57, 3), (32, 32, 7), (40, 64, 20)])
@quick
@given(seed=seeds)
def test_shape_type_and_input_are_kept_and_no_label_is_made_up(
    preset: str, shape: tuple[int, int, int], seed: int
) -> None:
    image, mask = patch(*shape)
    mask[0, :5] = 255
    image_before, mask_before = image.copy(), mask.copy()
    new_image, new_mask = build_augmentation(preset)(image, mask, seed)
    assert (new_image.shape, new_image.dtype) == (image.shape, image.dtype)
    assert (new_mask.shape, new_mask.dtype) == (mask.shape, mask.dtype)
    assert np.isfinite(new_image).all()
    assert set(np.unique(new_mask)) <= set(np.unique(mask))
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(mask, mask_before)


@varying
@quick
@given(seed=seeds)
def test_image_and_mask_stay_aligned(preset: str, seed: int) -> None:
    _, mask = patch(64, 64, seed=seed % 7, labels=2)
    # so strong that no change of contrast, brightness or noise hides which side of the threshold a pixel is on
    image, new_mask = build_augmentation(preset)(1000 * mask[..., None].astype(np.float32), mask, seed)
    inside = ndimage.binary_erosion(new_mask == 1, iterations=4)
    outside = ndimage.binary_erosion(new_mask == 0, iterations=4)
    assert inside.sum() + outside.sum() > 300
    assert (image[inside] > 400).all()
    assert (image[outside] < 300).all()


@quick
@given(seed=seeds, turn=st.floats(0, 180), zoom=st.floats(1, 2), bend=st.floats(0, 0.04))
def test_a_warp_resamples_image_and_mask_alike(seed: int, turn: float, zoom: float, bend: float) -> None:
    _, mask = patch(64, 64, seed=seed % 5, labels=2)
    warp = Warp(WarpStrength(turn, zoom, bend), p=1.0)
    warp.set_random_seed(seed)
    found = warp(image=mask[..., None].astype(np.float32), mask=mask)
    value = found["image"][..., 0]
    # where all pixels that the interpolation mixes agree, the nearest one does
    pure = (value < 1e-6) | (value > 1 - 1e-6)
    assert pure.mean() > 0.4
    np.testing.assert_array_equal(value[pure].round(), found["mask"][pure])


def test_a_warp_of_strength_zero_is_the_identity() -> None:
    image, mask = patch(40, 56, 6)
    found = Warp(WarpStrength(0.0, 1.0, 0.0), p=1.0)(image=image, mask=mask)
    np.testing.assert_array_equal(found["image"], image)
    np.testing.assert_array_equal(found["mask"], mask)


def test_a_quarter_turn_is_numpys() -> None:
    image, mask = patch(32, 32)
    warp = Warp(WarpStrength(90.0, 1.0, 0.0), p=1.0)

    class Extreme(np.random.Generator):
        def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
            return high

    warp.set_random_state(Extreme(np.random.PCG64(0)), warp.py_random)
    found = warp(image=image, mask=mask)
    assert any(np.array_equal(found["mask"], np.rot90(mask, turns)) for turns in (1, 3))
    assert any(np.allclose(found["image"], np.rot90(image, turns), atol=1e-3) for turns in (1, 3))


@varying
@quick
@given(seed=seeds)
def test_the_seed_alone_decides(preset: str, seed: int) -> None:
    image, mask = patch()
    augment = build_augmentation(preset)
    first = augment(image, mask, seed)
    augment(image, mask, seed + 1)
    copied = pickle.loads(pickle.dumps(augment))  # as a worker gets it
    for again in (augment(image, mask, seed), copied(image, mask, seed), build_augmentation(preset)(image, mask, seed)):
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])


@varying
def test_other_seeds_give_other_patches(preset: str) -> None:
    image, mask = patch()
    augment = build_augmentation(preset)
    assert len({augment(image, mask, seed)[0].tobytes() for seed in range(100)}) == 100
    assert len({augment(image, mask, seed)[1].tobytes() for seed in range(100)}) >= 8


@pytest.mark.parametrize("shape", [(16, 16), (12, 16)])
def test_each_flip_and_turn_comes_equally_often(shape: tuple[int, int]) -> None:
    """One seed for every transform, as Compose.set_random_seed gives, would flip both ways always or never."""
    mask = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
    augment = build_augmentation("light")
    seen: dict[bytes, int] = {}
    for seed in range(800):
        found = augment(np.zeros((*shape, 1), np.float32), mask, seed)[1].tobytes()
        seen[found] = seen.get(found, 0) + 1
    expected = 8 if shape[0] == shape[1] else 4
    assert len(seen) == expected
    assert min(seen.values()) > 0.6 * 800 / expected


def test_none_changes_nothing() -> None:
    image, mask = patch()
    found = build_augmentation("none")(image, mask, 3)
    assert found[0] is image
    assert found[1] is mask


@quick
@given(seed=seeds, scale=st.floats(0.5, 50))
def test_light_changes_contrast_and_brightness_without_clipping(seed: int, scale: float) -> None:
    image, mask = patch()
    image *= np.float32(scale)
    found = np.sort(build_augmentation("light")(image, mask, seed)[0], axis=None)
    gain, offset = np.polyfit(np.sort(image, axis=None).astype(float), found.astype(float), 1)
    np.testing.assert_allclose(found, gain * np.sort(image, axis=None) + offset, atol=1e-4 * scale)
    assert 1 / 1.1 - 1e-3 < gain < 1.1 + 1e-3
    assert abs(offset) < 0.1 + 1e-3


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_patches() -> None:
    batches = []
    for num_workers in (0, 2):
        context = "spawn" if num_workers else None
        loader = torch.utils.data.DataLoader(
            Patches(), batch_size=4, num_workers=num_workers, multiprocessing_context=context
        )
        batches.append(torch.cat(list(loader)))
    assert torch.equal(batches[0], batches[1])
    assert len({one.numpy().tobytes() for one in batches[0]}) == len(Patches())


class Patches(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self) -> None:
        self.augment = build_augmentation("em")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.augment(*patch(), index)[0].copy())


def test_albumentations_does_not_ask_for_updates() -> None:
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


# pipelines from a file


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_saved_pipeline_is_applied_to_standardised_patches(tmp_path: Path, kind: str) -> None:
    pipeline = A.Compose(
        [A.D4(p=1.0), A.RandomBrightnessContrast(brightness_limit=(0.1, 0.1), contrast_limit=0, p=1.0)]
    )
    path = saved(tmp_path, pipeline, kind)
    augment = build_augmentation("file", file=path)
    image, mask = patch(channels=5)
    image[0, 0] = -6.0
    image[0, 1] = 4.0
    found, _ = augment(image, mask, 5)
    # a tenth of the range -6..4 brighter; only what that pushes beyond the brightest pixel is cut, and nothing below
    np.testing.assert_allclose(np.sort(found, axis=None), np.minimum(np.sort(image, axis=None) + 1.0, 4.0), atol=1e-4)
    assert augment(image, mask, 5)[1].tobytes() == augment(image, mask, 5)[1].tobytes()
    check_augmentation(augment, (48, 48, 5))


def test_a_saved_pipeline_never_invents_labels(tmp_path: Path) -> None:
    rotate = A.Affine(rotate=(30, 30), p=1.0, mask_interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_CONSTANT)
    augment = build_augmentation("file", file=saved(tmp_path, A.Compose([A.OneOf([rotate], p=1.0)])))
    image, mask = patch(labels=2)
    mask = (mask * 7 + 2).astype(np.uint8)
    found = augment(image, mask, 0)[1]
    assert set(np.unique(found)) == {2, 9, IGNORE_INDEX}
    assert found[0, 0] == IGNORE_INDEX


def test_a_single_transform_may_be_saved(tmp_path: Path) -> None:
    image, mask = patch()
    found = build_augmentation("file", file=saved(tmp_path, A.HorizontalFlip(p=1.0)))(image, mask, 0)
    np.testing.assert_array_equal(found[1], mask[:, ::-1])
    np.testing.assert_allclose(found[0], image[:, ::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (A.Compose([A.Normalize()]), "it holds Normalize, but patches are standardised"),
        (A.Compose([A.OneOf([A.ToFloat(), A.HorizontalFlip()])]), "it holds ToFloat"),
    ],
)
def test_unfit_transforms_are_refused_when_read(tmp_path: Path, transform: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=rf"augment\.file: {message}"):
        load_pipeline(saved(tmp_path, transform))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (A.RandomCrop(16, 16, p=1.0), r"it turns the image from float32 \(48, 48, 2\) into float32 \(16, 16, 2\)"),
        (A.ToGray(p=1.0), r"a transform fails on float32 patches of shape \(48, 48, 2\)"),
        (A.HueSaturationValue(p=1.0), r"a transform fails on float32 patches of shape \(48, 48, 2\)"),
    ],
)
def test_what_does_not_fit_the_patches_is_found_before_training(tmp_path: Path, transform: Any, message: str) -> None:
    augment = build_augmentation("file", file=saved(tmp_path, A.Compose([transform])))
    with pytest.raises(ParamsError, match=message) as caught:
        check_augmentation(augment, (48, 48, 2))
    assert "\n" not in str(caught.value)


def broken_files(tmp_path: Path) -> dict[str, tuple[str, str]]:
    good = A.to_dict(A.Compose([A.HorizontalFlip(p=0.5)]))
    other = json.loads(json.dumps(good))
    other["transform"]["transforms"][0]["__class_fullname__"] = "HorizontalFlap"
    argument = json.loads(json.dumps(good))
    argument["transform"]["transforms"][0]["speed"] = 3
    value = json.loads(json.dumps(good))
    value["transform"]["transforms"][0]["p"] = 7
    return {
        "torn.json": (json.dumps(good)[:-5], "cannot be read"),
        "torn.yaml": ("transform: [", "cannot be read"),
        "list.json": ("[]", "is not a pipeline of albumentations; expected what its A.save writes"),
        "name.json": (json.dumps(other), "unknown transform 'HorizontalFlap'"),
        "argument.json": (json.dumps(argument), "speed"),
        "value.yml": (json.dumps(value), "cannot build it"),
    }


@pytest.mark.parametrize("name", list(broken_files(Path())))
def test_broken_files_are_one_line(tmp_path: Path, name: str) -> None:
    text, message = broken_files(tmp_path)[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ParamsError, match=r"^augment\.file: .*" + message) as caught:
        build_augmentation("file", file=tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"nowhere\.json cannot be read"):
        build_augmentation("file", file=tmp_path / "nowhere.json")
