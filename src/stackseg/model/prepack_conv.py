"""Convolution weights laid out once for the CPU's bfloat16 units: the same bits, without a rearrangement per window."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedConvolution(nn.Module):
    """A convolution of bfloat16 whose weights lie as oneDNN wants them. Takes and returns (B, C, Y, X)."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.bias = convolution.bias
        self._geometry = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        # the operators that torch's own compiler calls; torch has no public name for them
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(convolution.weight.detach(), *self._geometry, None)

    def forward(self, image_bcyx: Tensor) -> Tensor:
        """Return the convolved image, in bfloat16."""
        convolve = torch.ops.mkldnn._convolution_pointwise
        convolved_bcyx: Tensor = convolve(
            image_bcyx.to(torch.bfloat16), self._weight, self.bias, *self._geometry, "none", [], ""
        )
        return convolved_bcyx


def pack_convolutions(network: nn.Module) -> None:
    """Put packed convolutions in the place of plain ones whose weights are bfloat16 and on the CPU, in place."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is not nn.Conv2d:  # a subclass may do something else with its weights
                continue
            elsewhere = child.padding_mode != "zeros" or isinstance(child.padding, str)  # other operators do these
            if child.weight.dtype == torch.bfloat16 and child.weight.device.type == "cpu" and not elsewhere:
                setattr(parent, name, PackedConvolution(child))
