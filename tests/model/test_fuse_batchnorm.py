"""Folding keeps the function: only normalisation that alone reads a convolution goes into it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stackseg.model.fuse_batchnorm import fold_normalisation
from stackseg.model.network import NetworkSpec, build_network, size_multiple


def with_statistics(network: nn.Module) -> nn.Module:
    """Give each normalisation statistics, scales and shifts of its own, as training would."""
    torch.manual_seed(5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
    return network.eval()


def num_left(network: nn.Module) -> int:
    return sum(isinstance(one, nn.BatchNorm2d) for one in network.modules())


def difference(network: nn.Module, side: int) -> float:
    """Fold a copy; return the largest difference of the logits, relative to their range."""
    folded = copy.deepcopy(network)
    image_bcyx = torch.randn(1, 1, side, side)
    fold_normalisation(folded, image_bcyx)
    with torch.inference_mode():
        before, after = network(image_bcyx), folded(image_bcyx)
    return float((before - after).abs().max() / before.abs().max())


@pytest.mark.parametrize(
    ("architecture", "encoder", "left"),
    [
        ("Unet", "resnet18", 0),
        ("Linknet", "resnet18", 5),  # normalises behind transposed convolutions, too
        ("FPN", "densenet121", 62),  # normalises what several layers have joined
        ("PSPNet", "mobilenet_v2", 34),  # does not use the deep end of its encoder
        ("Unet", "tu-resnetv2_50", 48),  # normalises before its convolutions
        ("UPerNet", "tu-convnext_atto", 0),
    ],
)
def test_folded_networks_give_the_same_logits(architecture: str, encoder: str, left: int) -> None:
    spec = NetworkSpec(architecture=architecture, encoder=encoder, in_channels=1, num_classes=3)
    network = with_statistics(build_network(spec, encoder_weights=None))
    side = size_multiple(network)
    assert 0 < difference(network, side) < 1e-5
    fold_normalisation(network, torch.empty(1, 1, side, side))
    assert num_left(network) == left


class Branching(nn.Module):
    """Its convolution's output is normalised, and read once more by whatever `second` says."""

    def __init__(self, second: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 3, 1)
        self.second = second

    def forward(self, image_bcyx: Tensor) -> Any:
        convolved = self.first(image_bcyx)
        if self.second == "shortcut":
            return self.last(self.norm(convolved) + convolved)
        if self.second == "shared normalisation":
            return self.last(self.norm(convolved) + self.norm(convolved.relu()))
        if self.second == "shared convolution":
            return self.last(self.norm(convolved) + self.first(image_bcyx * 2))
        return self.last(self.norm(convolved))


@pytest.mark.parametrize("second", ["shortcut", "shared normalisation", "shared convolution", "none"])
def test_what_others_read_is_left_alone(second: str) -> None:
    network = with_statistics(Branching(second))
    assert difference(network, 16) < 1e-5
    fold_normalisation(network, torch.empty(1, 1, 16, 16))
    assert num_left(network) == (0 if second == "none" else 1)


def test_weights_that_are_not_trained_are_folded_too() -> None:
    network = with_statistics(Branching("none")).requires_grad_(False)
    assert difference(network, 16) < 1e-5
    fold_normalisation(network, torch.empty(1, 1, 16, 16))
    assert num_left(network) == 0
