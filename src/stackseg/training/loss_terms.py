"""The terms of the segmentation losses: sums over pixels, and the ratios that turn summed sums into a loss.

Shapes: logits and probabilities (B, C, Y, X); target (B, Y, X) with ``ignore_index`` where there is no label; truth
(B, C, Y, X) bool, one-hot and all false where there is no label; valid (B, Y, X) bool.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_sums(
    logits_bcyx: Tensor, target_byx: Tensor, class_weights: Tensor, ignore_index: int, gamma: float
) -> Tensor:
    """Return (sum of weight · (1 - p)^gamma · -log p, sum of weight) over the labelled pixels."""
    num_pixels_c = torch.stack([(target_byx == index).sum() for index in range(len(class_weights))])
    sum_weight = (num_pixels_c * class_weights).sum()
    if gamma == 0:
        loss = F.cross_entropy(
            logits_bcyx, target_byx, weight=class_weights, ignore_index=ignore_index, reduction="sum"
        )
        return torch.stack([loss, sum_weight])
    loss_byx = F.cross_entropy(logits_bcyx, target_byx, ignore_index=ignore_index, reduction="none")
    weight_byx = class_weights[torch.where(target_byx == ignore_index, 0, target_byx)]
    # The floor keeps the slope of x^gamma finite where p rounds to 1 and gamma is below 1.
    focus_byx = (-torch.expm1(-loss_byx)).clamp_min(1e-7).pow(gamma)
    return torch.stack([(weight_byx * focus_byx * loss_byx).sum(), sum_weight])


def one_vs_rest_sums(logits_bcyx: Tensor, truth_bcyx: Tensor, valid_byx: Tensor, class_weights: Tensor) -> Tensor:
    """Return (sum of class weight · binary cross-entropy, sum of class weight) over labelled pixels and classes."""
    loss_bcyx = F.binary_cross_entropy_with_logits(logits_bcyx, truth_bcyx.float(), reduction="none")
    loss_c = (loss_bcyx * valid_byx[:, None]).sum((0, 2, 3))
    return torch.stack([(loss_c * class_weights).sum(), valid_byx.sum() * class_weights.sum()])


def overlap_sums(p_bcyx: Tensor, truth_bcyx: Tensor) -> Tensor:
    """Return per class the soft true positives, predicted and true pixels, concatenated to (3C,)."""
    truth_bcn = truth_bcyx.flatten(2).float()
    # The soft confusion matrix (predicted, true) as one product: a third of the time of masked sums.
    confusion_cc = torch.bmm(p_bcyx.flatten(2), truth_bcn.transpose(1, 2)).sum(0)
    return torch.cat([confusion_cc.diagonal(), confusion_cc.sum(1), truth_bcn.sum((0, 2))])


def one_minus_overlap(sums: Tensor, alpha: float, beta: float) -> Tensor:
    """Return 1 - Tversky index (alpha = beta = 0.5: Dice), mean over the classes that occur."""
    hit_c, predicted_c, true_c = sums.chunk(3)
    index_c = safe_ratio(hit_c, hit_c + alpha * (predicted_c - hit_c) + beta * (true_c - hit_c))
    occurs_c = true_c > 0
    return safe_ratio(((1.0 - index_c) * occurs_c).sum(), occurs_c.sum())


def lovasz_sums(p_bcyx: Tensor, truth_bcyx: Tensor, valid_byx: Tensor) -> Tensor:
    """Return (sum over images of the Lovász-softmax loss, number of images with a valid pixel)."""
    truth_bcn = truth_bcyx.flatten(2).float()
    error_bcn = (truth_bcn - p_bcyx.flatten(2)).abs()
    # Ignored pixels sort behind all others, where they change no set that the extension runs through.
    error_bcn = error_bcn.masked_fill(~valid_byx.flatten(1)[:, None], -1.0)
    error_bcn, order_bcn = error_bcn.sort(dim=2, descending=True)
    with torch.no_grad():
        sorted_bcn = truth_bcn.gather(2, order_bcn)
        num_true_bc1 = sorted_bcn.sum(2, keepdim=True)
        hit_bcn = num_true_bc1 - sorted_bcn.cumsum(2)
        union_bcn = num_true_bc1 + (1.0 - sorted_bcn).cumsum(2)
        jaccard_bcn = 1.0 - hit_bcn / union_bcn
        slope_bcn = torch.diff(jaccard_bcn, dim=2, prepend=torch.zeros_like(num_true_bc1))
    loss_bc = (error_bcn.clamp_min(0.0) * slope_bcn).sum(2)
    occurs_bc = num_true_bc1[..., 0] > 0
    loss_b = safe_ratio((loss_bc * occurs_bc).sum(1), occurs_bc.sum(1))
    return torch.stack([loss_b.sum(), occurs_bc.any(1).sum().float()])


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the ratio, and 0 with zero gradient where the denominator is 0 (nothing was there to sum)."""
    return numerator / torch.where(denominator > 0, denominator, 1.0) * (denominator > 0)
