"""Fold batch normalisation into the convolution before it: the same function with fewer passes over memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.fusion import fuse_conv_bn_eval

_NORMALISATIONS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def fold_normalisation(network: nn.Module, image_bcyx: Tensor) -> None:
    """Fold every batch normalisation that alone reads a convolution's output into that convolution, in place.

    Who reads what is taken from the graph that autograd draws of one forward pass, on the meta device; so it holds for
    any architecture. The results differ from before by rounding.

    Parameters
    ----------
    network
        In evaluation mode; its statistics are final.
    image_bcyx
        An image (B, C, Y, X) of a size that the network takes; only its shape is read.
    """
    parents = {child: (parent, name) for parent in network.modules() for name, child in parent.named_children()}
    for convolution, normalisation in _foldable_pairs(network, image_bcyx):
        parent, name = parents[convolution]
        setattr(parent, name, fuse_conv_bn_eval(convolution, normalisation))
        parent, name = parents[normalisation]
        setattr(parent, name, nn.Identity())


def _foldable_pairs(network: nn.Module, image_bcyx: Tensor) -> list[tuple[nn.Conv2d, Any]]:
    """Return the convolutions whose output goes into one batch normalisation and nowhere else."""
    made: dict[Any, list[nn.Module]] = {}  # node of the graph → the layers that returned its output

    def remember(layer: nn.Module, _: Any, output: Tensor) -> None:
        made.setdefault(output.grad_fn, []).append(layer)

    # subclasses may do something else with their weights or output
    layers = [one for one in network.modules() if type(one) is nn.Conv2d or type(one) in _NORMALISATIONS]
    hooks = [one.register_forward_hook(remember) for one in layers]
    state = {
        name: torch.empty_like(one, device="meta")
        for name, one in [*network.named_parameters(), *network.named_buffers()]
    }
    try:
        with torch.enable_grad():  # the graph is drawn back to the image, whether or not weights are trained
            logits_bcyx = functional_call(network, state, (image_bcyx.to("meta").requires_grad_(),))
    finally:
        for hook in hooks:
            hook.remove()
    readers = _readers(logits_bcyx.grad_fn)
    calls = Counter(one for layers_of_node in made.values() for one in layers_of_node)
    pairs: list[tuple[nn.Conv2d, Any]] = []
    for node, (layer, *_) in made.items():
        source = node.next_functions[0][0]
        before = made.get(source, [layer])[0]
        if not isinstance(layer, _NORMALISATIONS) or not isinstance(before, nn.Conv2d):
            continue
        if readers[source] == calls[layer] == calls[before] == 1:
            pairs.append((before, layer))
    return pairs


def _readers(root: Any) -> Counter[Any]:
    """Return how many times each node of the graph is read by others."""
    readers: Counter[Any] = Counter()
    waiting, seen = [root], {root}
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None:
                continue
            readers[node] += 1
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return readers
