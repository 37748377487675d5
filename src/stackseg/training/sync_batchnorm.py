"""Batch normalisation over the batches of all processes, on the CPU too, where torch.nn.SyncBatchNorm refuses."""

from __future__ import annotations

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stackseg.errors import ModelError
from stackseg.training.losses import all_reduce_sum, num_processes


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of (B, C, Y, X) whose training statistics are those of all processes together.

    Parameters, buffers, state dict and evaluation are those of torch.nn.BatchNorm2d, and so is training in one process.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised (B, C, Y, X) in the type of ``input``; statistics are taken in float32 or better."""
        if not self.training or num_processes() == 1:
            local: Tensor = super().forward(input)
            return local
        num_here = input.numel() // input.shape[1]
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        variance_c, mean_c = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        # One message: (number of pixels, sum, sum of squares). In float64 their difference loses nothing that counts.
        mean_c, variance_c = mean_c.double(), variance_c.double()
        sums = torch.cat([mean_c.new_ones(1), mean_c, variance_c + mean_c.square()]) * num_here
        num_pixels, sum_c, square_c = torch.split(all_reduce_sum(sums), [1, self.num_features, self.num_features])
        mean_c = sum_c / num_pixels
        variance_c = (square_c / num_pixels - mean_c.square()).clamp_min(0.0)
        self._update_running(mean_c.detach(), variance_c.detach(), num_pixels.detach())

        scale_c = torch.rsqrt(variance_c + self.eps)
        if self.weight is not None:
            scale_c = scale_c * self.weight
        shift_c = -mean_c * scale_c
        if self.bias is not None:
            shift_c = shift_c + self.bias
        scale_cyx, shift_cyx = (one_c.to(wide.dtype)[:, None, None] for one_c in (scale_c, shift_c))
        return (wide * scale_cyx + shift_cyx).to(input.dtype)

    def _update_running(self, mean_c: Tensor, variance_c: Tensor, num_pixels: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased_c = variance_c * (num_pixels / (num_pixels - 1))
        self.running_mean.lerp_(mean_c.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_c.to(self.running_var.dtype), share)


class GlobalBatchNormAct2d(GlobalBatchNorm2d):
    """The same with timm's dropout and activation behind it, as timm.layers.BatchNormAct2d has them."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised and activated (B, C, Y, X)."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


def globalise_batch_norm(network: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Return the network with batch normalisation over all processes, so that W processes train as one would.

    On a GPU these are torch's synchronised layers (through timm, which keeps the activation that some of its own layers
    hold); on the CPU ours. Parameters and buffers are shared, keys of the state dict stay, and so does the mode.

    Parameters
    ----------
    network
        Changed in place, or replaced where it is a layer itself.
    device
        Where it will train; by default where its parameters are.

    Raises
    ------
    ModelError
        On the CPU, for batch normalisation of anything but images.
    """
    kinds = {device.type} if device else {parameter.device.type for parameter in network.parameters()}
    if "cuda" in kinds:
        synchronised: nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # timm's has no types
        return synchronised
    if isinstance(network, _BatchNorm):
        return _globalised(network)
    for name, child in network.named_children():
        setattr(network, name, globalise_batch_norm(child, device))
    return network


def _globalised(layer: _BatchNorm) -> nn.Module:
    if type(layer) not in (nn.BatchNorm2d, BatchNormAct2d):
        raise ModelError(
            f"a layer of type {type(layer).__name__}",
            expected="BatchNorm2d, the only batch normalisation that several CPU processes can share",
            where="model.encoder",
            remedy="train in one process, on GPUs, or choose another encoder",
        )
    sizes = (layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    replacement = GlobalBatchNorm2d(*sizes)
    if isinstance(layer, BatchNormAct2d):
        replacement = GlobalBatchNormAct2d(*sizes)
        replacement.drop, replacement.act = layer.drop, layer.act
    replacement.weight, replacement.bias = layer.weight, layer.bias
    replacement.running_mean, replacement.running_var = layer.running_mean, layer.running_var
    replacement.num_batches_tracked = layer.num_batches_tracked
    return replacement.train(layer.training)
