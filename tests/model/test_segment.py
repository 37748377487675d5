"""segment(): the one inference path."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.dataset.normalisation import ChannelStatistics, IntensityPolicy
from stackseg.dataset.records import ClassRecord
from stackseg.errors import DataError
from stackseg.model.bundle import InferenceSpec, Segmenter, load_bundle, prepare_network
from stackseg.model.devices import has_bf16
from stackseg.model.network import NetworkSpec
from stackseg.model.objects import find_objects
from stackseg.model.segment import segment
from stackseg.params.intensity import IntensityParams

CLASSES = tuple(ClassRecord(name=name, raw=(place,), display="#000000") for place, name in enumerate("abc"))
SHAPES = [(1, 1), (31, 70), (64, 64), (65, 1), (300, 513)]


@dataclass(frozen=True)
class Planes:
    """Planes in memory."""

    images: list[Any]

    def __len__(self) -> int:
        return len(self.images)

    def plane(self, z: int) -> Any:
        return self.images[z]


class PixelByPixel(torch.nn.Module):
    """A 1 × 1 convolution: a window around a pixel makes no difference, and none is shown in what it gets."""

    def __init__(self, in_channels: int, num_classes: int, kernel: int = 1) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(in_channels, num_classes, kernel, padding=kernel // 2)
        self.seen: list[torch.Size] = []

    def forward(self, image_bcyx: torch.Tensor) -> torch.Tensor:
        self.seen.append(image_bcyx.shape)
        logits: torch.Tensor = self.layer(image_bcyx)
        return logits


def bundle_of(
    *, channels: int = 1, context: int = 0, tile: int = 64, overlap: int = 16, scope: Any = "plane", kernel: int = 1,
    precision: Any = "fp32",
) -> Segmenter:  # fmt: skip
    torch.manual_seed(3)
    in_channels = channels * (2 * context + 1)
    network = PixelByPixel(in_channels, 3, kernel)
    with torch.no_grad():
        network.layer.weight *= 3
    unit = ChannelStatistics(low=0.0, high=60000.0, mean=30000.0, std=15000.0)
    spec = InferenceSpec(
        network=NetworkSpec(architecture="Unet", encoder="resnet18", in_channels=in_channels, num_classes=3),
        classes=CLASSES,
        intensity=IntensityPolicy(
            params=IntensityParams(scope=scope),
            colour="keep",
            statistics=(unit,) * channels if scope == "dataset" else None,
        ),
        num_channels=channels,
        context_slices=context,
        tile=tile,
        overlap=overlap,
        precision=precision,
        voxel_size_zyx_um=None,
    )
    prepared = prepare_network(network, spec, torch.device("cpu"))
    network.seen.clear()
    return Segmenter(spec, prepared)


def noise(num_planes: int, shape_yx: tuple[int, int], channels: int = 1, seed: int = 0) -> Planes:
    random = np.random.default_rng(seed)
    return Planes([random.integers(0, 60000, (*shape_yx, channels)).astype(np.uint16) for _ in range(num_planes)])


def by_hand(source: Planes, bundle: Segmenter, z: int) -> Any:
    """Return the probabilities (C, Y, X) of a plane without tiles, for a network that looks at single pixels."""
    spec = bundle.inference
    last = len(source) - 1
    around = [abs(z + offset) for offset in range(-spec.context_slices, spec.context_slices + 1)]
    around = [last - abs(last - one) for one in around]
    reference = spec.intensity.reference(source)
    image_yxc = np.concatenate([spec.intensity.apply(source.plane(one), reference, "") for one in around], axis=2)
    layer = bundle.network.layer  # type: ignore[union-attr]
    weight, bias = layer.weight[:, :, 0, 0].numpy(force=True), layer.bias.numpy(force=True)  # type: ignore[union-attr, index, operator]
    logits_cyx = np.einsum("kc,yxc->kyx", weight.astype(np.float64), image_yxc) + bias[:, None, None]
    odds_cyx = np.exp(logits_cyx - logits_cyx.max(0))
    return odds_cyx / odds_cyx.sum(0)


@pytest.mark.parametrize("shape_yx", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("context", [0, 1])
def test_a_plane_of_any_size_is_segmented_as_a_whole(shape_yx: tuple[int, int], context: int) -> None:
    bundle = bundle_of(channels=2, context=context)
    source = noise(3, shape_yx, 2)
    planes = list(segment(source, bundle, probabilities=True))
    assert [plane.z for plane in planes] == [0, 1, 2]
    for plane in planes:
        assert plane.probabilities_cyx is not None
        assert plane.mask_yx.shape == shape_yx
        assert plane.mask_yx.dtype == np.uint8
        assert plane.probabilities_cyx.dtype == np.float32
        expected_cyx = by_hand(source, bundle, plane.z)
        np.testing.assert_allclose(plane.probabilities_cyx, expected_cyx, atol=1e-6)
        np.testing.assert_allclose(plane.probabilities_cyx.sum(0), 1, atol=1e-6)
        np.testing.assert_array_equal(plane.mask_yx, plane.probabilities_cyx.argmax(0))


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    block=st.sampled_from([40, 64, 100]),
    tta=st.sampled_from(["none", "flips", "d4"]),
    scope=st.sampled_from(["plane", "dataset"]),
    context=st.integers(0, 1),
)
def test_blocks_of_a_large_plane_equal_the_plane(
    height: int, width: int, block: int, tta: Any, scope: Any, context: int
) -> None:
    source = noise(2, (height, width), 2)
    bundle = bundle_of(channels=2, kernel=3, context=context, scope=scope)
    planes = list(segment(source, bundle, probabilities=True, tta=tta))
    blocks = list(segment(source, bundle, probabilities=True, tta=tta, block=block))
    for one, other in zip(planes, blocks, strict=True):
        np.testing.assert_array_equal(one.mask_yx, other.mask_yx)
        np.testing.assert_array_equal(one.probabilities_cyx, other.probabilities_cyx)


def test_a_large_plane_with_other_channels_is_refused() -> None:
    with pytest.raises(DataError, match=r"plane 0: .*channels"):
        list(segment(noise(1, (70, 70), 3), bundle_of(channels=2), block=64))


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    tile=st.sampled_from([64, 96]),
    overlap=st.integers(4, 16),
    kernel=st.sampled_from([1, 3]),
)
def test_tiled_equals_whole(height: int, width: int, tile: int, overlap: int, kernel: int) -> None:
    # a 3 × 3 convolution looks one pixel beyond its window, into the part of the overlap that is not used
    source = noise(1, (height, width))
    (whole,) = segment(source, bundle_of(tile=160, kernel=kernel), probabilities=True)
    bundle = bundle_of(tile=tile, overlap=overlap, kernel=kernel)
    (tiled,) = segment(source, bundle, probabilities=True)
    assert whole.probabilities_cyx is not None
    # what is made up beyond the plane's lower and right edge differs where the padding does
    rows, columns = (slice(0, size - kernel // 2) for size in (height, width))
    np.testing.assert_allclose(
        tiled.probabilities_cyx[:, rows, columns],
        whole.probabilities_cyx[:, rows, columns],
        atol=2e-6,  # type: ignore[index]
    )
    sides = {size for shape in bundle.network.seen for size in shape[2:]}  # type: ignore[union-attr]
    assert all(side % 32 == 0 and side <= tile for side in sides)
    assert {shape[0] for shape in bundle.network.seen} == {1}  # type: ignore[union-attr]


@pytest.mark.parametrize("scope", ["dataset", "specimen", "plane"])
def test_a_mask_depends_on_no_other_plane_that_was_asked_for(scope: str) -> None:
    bundle = bundle_of(context=2, scope=scope, kernel=3)
    source = noise(9, (40, 70))
    everything = {plane.z: plane.mask_yx for plane in segment(source, bundle)}
    assert list(everything) == list(range(9))
    for chosen in ([4], [8, 0], [3, 3], [7, 6, 5, 1], range(0, 9, 2), []):
        found = list(segment(source, bundle, planes=chosen))
        assert [plane.z for plane in found] == list(chosen)
        for plane in found:
            np.testing.assert_array_equal(plane.mask_yx, everything[plane.z])
            assert plane.probabilities_cyx is None


def test_a_trained_network_gives_the_same_mask_whatever_is_asked_beside_it(trained: tuple[Any, Any]) -> None:
    project, _ = trained
    bundle = load_bundle(project.folder / "model")
    source = noise(4, (75, 101))
    everything = {plane.z: plane for plane in segment(source, bundle, probabilities=True)}
    for plane in segment(source, bundle, planes=[3, 1], probabilities=True):
        np.testing.assert_array_equal(plane.probabilities_cyx, everything[plane.z].probabilities_cyx)


def test_planes_are_read_when_they_are_needed() -> None:
    read: list[int] = []

    class Noting(Planes):
        def plane(self, z: int) -> Any:
            read.append(z)
            return super().plane(z)

    masks = segment(Noting(noise(6, (20, 20)).images), bundle_of(context=1))
    assert read == []
    next(masks)
    assert read == [1, 0]
    list(masks)
    # each plane once, though three masks need it
    assert sorted(read) == [0, 1, 2, 3, 4, 5]


def test_planes_may_differ_in_size() -> None:
    source = Planes([*noise(1, (20, 30)).images, *noise(1, (90, 10)).images])
    assert [plane.mask_yx.shape for plane in segment(source, bundle_of())] == [(20, 30), (90, 10)]
    with pytest.raises(DataError, match=r"plane 0: neighbours of different sizes \(20×30, 90×10\)"):
        list(segment(source, bundle_of(context=1)))


@pytest.mark.parametrize("scope", ["dataset", "specimen", "plane"])
def test_other_channels_than_trainings_are_refused_in_one_line(scope: str) -> None:
    with pytest.raises(DataError, match=r"3 channels; expected 1, as in training") as caught:
        list(segment(noise(2, (20, 20), 3), bundle_of(scope=scope)))
    assert "\n" not in caught.value.sentence()


def test_bf16_is_used_where_it_is_asked_for() -> None:
    if not has_bf16(torch.device("cpu")):
        pytest.skip("this processor does not multiply bfloat16")
    source = noise(1, (40, 40))
    (exact,) = segment(source, bundle_of(kernel=3), probabilities=True)
    (rounded,) = segment(source, bundle_of(kernel=3, precision="bf16"), probabilities=True)
    (automatic,) = segment(source, bundle_of(kernel=3, precision="auto"), probabilities=True)
    np.testing.assert_array_equal(automatic.probabilities_cyx, rounded.probabilities_cyx)
    assert exact.probabilities_cyx is not None
    assert rounded.probabilities_cyx is not None
    difference = np.abs(exact.probabilities_cyx - rounded.probabilities_cyx).max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_the_served_function_takes_a_file(trained: tuple[Any, Any], segment_bytes: Any, suffix: str) -> None:
    from PIL import Image

    project, _ = trained
    bundle = load_bundle(project.folder / "model")
    source = noise(1 if suffix == "png" else 3, (35, 50))
    file = io.BytesIO()
    if suffix == "png":
        Image.fromarray(source.plane(0)[:, :, 0]).save(file, "png")
    else:
        stack_zyx = np.stack(source.images)[..., 0]
        tifffile.imwrite(file, stack_zyx, metadata={"axes": "ZYX"}, compression="zlib", photometric="minisblack")
    mask_zyx = segment_bytes(file.getvalue(), bundle)
    expected_zyx = np.stack([plane.mask_yx for plane in segment(source, bundle)])
    np.testing.assert_array_equal(mask_zyx, expected_zyx)


@pytest.mark.parametrize("body", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_the_served_function_refuses_what_is_no_image(
    trained: tuple[Any, Any], segment_bytes: Any, body: bytes
) -> None:
    from mlflow.exceptions import MlflowException

    project, _ = trained
    with pytest.raises(MlflowException) as caught:
        segment_bytes(body, load_bundle(project.folder / "model"))
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "\n" not in caught.value.message
    assert "/tmp" not in caught.value.message


@pytest.mark.parametrize(("tta", "passes"), [("none", 1), ("flips", 4), ("d4", 8)])
def test_augmented_probabilities_turn_with_the_plane(tta: Any, passes: int) -> None:
    bundle = bundle_of(kernel=3)
    with_tta = Segmenter(bundle.inference.model_copy(update={"tta": tta}), bundle.network)
    image_yxc = np.random.default_rng(5).random((40, 70, 1))

    def probabilities(plane_yxc: Any) -> Any:
        bundle.network.seen.clear()
        (one,) = segment(Planes([plane_yxc]), with_tta, probabilities=True)
        return one.probabilities_cyx

    upright_cyx = probabilities(image_yxc)
    windows = len(bundle.network.seen)
    assert windows == passes * 2
    np.testing.assert_allclose(upright_cyx.sum(0), 1, atol=1e-5)
    flipped_cyx = probabilities(image_yxc[::-1])
    turned_cyx = probabilities(np.rot90(image_yxc))
    assert np.allclose(flipped_cyx[:, ::-1], upright_cyx, atol=1e-5) == (tta != "none")
    assert np.allclose(np.rot90(turned_cyx, -1, (1, 2)), upright_cyx, atol=1e-5) == (tta == "d4")
    (asked,) = segment(Planes([image_yxc]), bundle, probabilities=True, tta=tta)
    np.testing.assert_array_equal(asked.probabilities_cyx, upright_cyx)


@pytest.mark.parametrize("tta", ["none", "flips"])
def test_a_model_of_objects_gives_classes_and_on_request_objects(tta: Any) -> None:
    bundle = bundle_of()
    source = noise(2, (70, 90))
    outputs = [one.probabilities_cyx for one in segment(source, bundle, probabilities=True, tta=tta)]
    spec = bundle.inference.model_copy(update={"classes": CLASSES[:2], "instances": True})
    objects = Segmenter(spec, bundle.network)
    for plain, found, outputs_oyx in zip(
        segment(source, objects, probabilities=True, tta=tta),
        segment(source, objects, objects=True, tta=tta),
        outputs,
        strict=True,
    ):
        assert outputs_oyx is not None
        assert plain.probabilities_cyx is not None
        assert found.objects_yx is not None
        np.testing.assert_array_equal(plain.probabilities_cyx, [outputs_oyx[0], outputs_oyx[1] + outputs_oyx[2]])
        np.testing.assert_array_equal(plain.mask_yx, plain.probabilities_cyx.argmax(0))
        np.testing.assert_array_equal(found.mask_yx, plain.mask_yx)
        np.testing.assert_array_equal(found.objects_yx, find_objects(outputs_oyx, plain.mask_yx))
        assert found.objects_yx.max() > 0
        assert plain.objects_yx is None
    assert all(one.objects_yx is None for one in segment(source, bundle, objects=True))
