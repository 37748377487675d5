"""Several networks as one: the mean of what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from stackseg.dataset.normalisation import ChannelStatistics
from stackseg.model.network import NetworkSpec, build_network, size_multiple


class Member(BaseModel):
    """A network of an ensemble, and the intensity statistics that it was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkSpec
    statistics: tuple[ChannelStatistics, ...] | None


class EnsembleNetwork(nn.Module):
    """Networks that see the same image, each standardised as in its training; gives the logarithm of their mean.

    So the softmax of its output is the mean of the members' probabilities.

    Parameters
    ----------
    networks
        (B, I, Y, X) → logits (B, C, Y, X) each.
    members
        What each was trained with.
    statistics
        By which the image is standardised when it comes; None where each plane or stack is its own reference.
    """

    def __init__(
        self, networks: Sequence[nn.Module], members: Sequence[Member], statistics: tuple[ChannelStatistics, ...] | None
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)
        rows_mcr = [
            [(0.0, 0.0, 1.0, 0.0)] if own is None or statistics is None else list(map(_restandardise, statistics, own))
            for own in (one.statistics for one in members)
        ]
        self._restandardises = statistics is not None
        # derived from bundle.json, and so no part of the weights
        self.register_buffer("_lines_mcr", torch.tensor(rows_mcr), persistent=False)

    def forward(self, image_bcyx: Tensor) -> Tensor:
        """Return the logarithm of the mean probability (B, C, Y, X)."""
        return self.member_probabilities(image_bcyx).mean(0).log()

    def member_probabilities(self, image_bcyx: Tensor) -> Tensor:
        """Return the probabilities (M, B, C, Y, X) of each member."""
        return torch.stack(
            [network(self._seen_by(place, image_bcyx)).float().softmax(1) for place, network in enumerate(self.members)]
        )

    def _seen_by(self, place: int, image_bcyx: Tensor) -> Tensor:
        if not self._restandardises:
            return image_bcyx
        lines_cr = self._lines_mcr[place]  # type: ignore[index]  # a buffer
        num_planes = image_bcyx.shape[1] // len(lines_cr)
        low, high, slope, offset = lines_cr.repeat(num_planes, 1).T[:, None, :, None, None]
        seen_bcyx: Tensor = image_bcyx.clamp(low, high) * slope + offset
        return seen_bcyx


def build_for_inference(
    network: NetworkSpec, members: Sequence[Member], statistics: tuple[ChannelStatistics, ...] | None
) -> nn.Module:
    """Return the network of a bundle, before its weights are loaded: one, or an ensemble of its members."""
    if not members:
        return build_network(network, encoder_weights=None)
    return EnsembleNetwork([build_network(one.network, encoder_weights=None) for one in members], members, statistics)


def tile_multiple(network: nn.Module) -> int:
    """Return the number of pixels of which tile sides must be multiples."""
    networks = network.members if isinstance(network, EnsembleNetwork) else [network]
    return math.lcm(*(size_multiple(one) for one in networks))


def _restandardise(given: ChannelStatistics, own: ChannelStatistics) -> tuple[float, float, float, float]:
    """Return limits, slope and offset that turn a channel standardised by `given` into one standardised by `own`."""
    given_std, own_std = given.std or 1.0, own.std or 1.0
    low, high = ((limit - given.mean) / given_std for limit in (own.low, own.high))
    return low, high, given_std / own_std, (given.mean - own.mean) / own_std
