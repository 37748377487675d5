"""Packed convolutions give the bits that plain ones give."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stackseg.model.bundle import cast_weights
from stackseg.model.devices import has_bf16
from stackseg.model.network import NetworkSpec, build_network, smallest_size
from stackseg.model.prepack_conv import PackedConvolution, pack_convolutions

pytestmark = pytest.mark.skipif(
    not has_bf16(torch.device("cpu")), reason="this CPU has no bfloat16 units; nothing is packed on it"
)


def logits(network: nn.Module, image_bcyx: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        done: torch.Tensor = network(image_bcyx)
    return done


def num_packed(network: nn.Module) -> int:
    return sum(isinstance(one, PackedConvolution) for one in network.modules())


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("Unet", "resnet18"),
        ("Unet", "mobilenet_v2"),  # depthwise
        ("DeepLabV3Plus", "resnet18"),  # dilated
        ("Linknet", "resnet18"),  # transposed convolutions stay
        ("Unet", "tu-resnetv2_50"),  # standardises its weights: a subclass, stays
        ("FPN", "tu-efficientnet_lite0"),
        ("UPerNet", "tu-convnext_atto"),
        ("Segformer", "mit_b0"),
    ],
)
def test_packed_networks_give_the_same_bits(architecture: str, encoder: str) -> None:
    torch.manual_seed(3)
    spec = NetworkSpec(architecture=architecture, encoder=encoder, in_channels=2, num_classes=3)
    network = build_network(spec, encoder_weights=None).eval().to(memory_format=torch.channels_last)
    side = smallest_size(network, 2)
    cast_weights(network)
    packed = copy.deepcopy(network)
    pack_convolutions(packed)
    assert num_packed(packed) > 0
    for height, width in ((side, side), (2 * side, side), (side, 3 * side)):  # packed for none of them
        image_bcyx = torch.randn(1, height, width, 2).permute(0, 3, 1, 2)
        assert torch.equal(logits(network, image_bcyx), logits(packed, image_bcyx))


def test_what_another_operator_convolves_stays() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Conv2d(4, 4, 1),
    ).to(torch.bfloat16)
    network.append(nn.Conv2d(4, 4, 1))
    pack_convolutions(network)
    assert [isinstance(one, PackedConvolution) for one in network] == [False, False, False, True, False]
