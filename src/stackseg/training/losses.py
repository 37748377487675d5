"""Segmentation losses as sums that add up across processes, then as ratios of those sums.

Shapes: logits and probabilities (B, C, Y, X); target (B, Y, X) with `IGNORE_INDEX` where there is no label; truth
(B, C, Y, X) bool, one-hot and all false where there is no label; valid (B, Y, X) bool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.errors import ParamsError
from stackseg.params.train import LossName, TrainParams

# logit of a class that is not there: no exponential of it is more than 0 in float32
_NOWHERE = -1e4
# how much the focal loss turns to hard pixels
FOCAL_GAMMA = 2.0
# what the Tversky loss charges for false positives and false negatives
TVERSKY_ALPHA, TVERSKY_BETA = 0.3, 0.7


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes whose gradient is the sum of the processes' gradients.

    torch.distributed.nn.functional.all_reduce is the same but deprecated in newer torch releases.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum of `values` over all processes, differentiably; `values` itself where there is one process.

    When W processes backpropagate the same function of the sum, each receives W times its gradient, and
    DistributedDataParallel's mean over W then leaves exactly the gradient of the loss on the global batch.
    """
    alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
    summed: Tensor = values if alone else _AllReduceSum.apply(values)
    return summed


class SegmentationLoss(nn.Module):
    """Weighted sum of loss terms, a function of (logits, target).

    Every term is a ratio of sums over the valid pixels of the whole batch, so every process returns the loss of the
    global batch. Ignored pixels enter no sum and get no gradient; a batch without a valid pixel gives 0.

    Parameters
    ----------
    terms
        Name to positive weight:
        ``cross_entropy``: mean over pixels, weighted by the class of the pixel.
        ``bce``: binary cross-entropy of each class against the rest, mean over pixels and (weighted) classes.
        ``focal``: softmax focal loss, (1 - p)^2 times the cross-entropy (Lin et al. 2017, arXiv:1708.02002).
        ``dice``: 1 - soft Dice per class over the whole batch (Milletari et al. 2016, arXiv:1606.04797).
        ``tversky``: as Dice, but missed pixels cost more than wrong ones (Salehi et al. 2017, arXiv:1706.05721).
        ``lovasz``: Lovász-softmax per image, mean over images (Berman et al. 2018, arXiv:1705.08790).
    class_weights
        One positive weight per class for ``cross_entropy``, ``bce`` and ``focal``. The other terms average over
        classes and so balance them by themselves: a weight there would do it twice.
    reduce_sum
        Differentiable sum over processes.

    Notes
    -----
    ``dice`` and ``tversky`` average over the classes that occur in the batch, ``lovasz`` over those in the image.
    A class that does not occur is neither rewarded nor free to grow: under softmax, what a pixel gives to it is
    missing from the class that the pixel has.
    """

    class_weights: Tensor

    def __init__(
        self,
        terms: Mapping[LossName, float],
        class_weights: Sequence[float],
        *,
        reduce_sum: Callable[[Tensor], Tensor] = all_reduce_sum,
    ) -> None:
        super().__init__()
        self.terms = dict(terms)
        self.reduce_sum = reduce_sum
        self.register_buffer("class_weights", torch.tensor(class_weights, dtype=torch.float32), persistent=False)

    def forward(self, logits_bcyx: Tensor, target_byx: Tensor) -> Tensor:
        """Return the scalar loss, in float32 also under autocast."""
        with torch.autocast(logits_bcyx.device.type, enabled=False):
            logits_bcyx, target_byx = logits_bcyx.float(), target_byx.long()
            sums = {name: self._local_sums(name, logits_bcyx, target_byx) for name in self.terms}
            # One message for all terms: the latency of a reduction outweighs its few numbers.
            total = self.reduce_sum(torch.cat(list(sums.values())))
            parts = torch.split(total, [len(values) for values in sums.values()])
            losses = [
                weight * _ratio(name, part) for (name, weight), part in zip(self.terms.items(), parts, strict=True)
            ]
            return torch.stack(losses).sum()

    def _local_sums(self, name: LossName, logits_bcyx: Tensor, target_byx: Tensor) -> Tensor:
        """Return the sums over this process's pixels that `_ratio` turns into the term."""
        if name in ("cross_entropy", "focal"):
            gamma = FOCAL_GAMMA if name == "focal" else 0.0
            return _cross_entropy_sums(logits_bcyx, target_byx, self.class_weights, gamma)
        valid_byx = target_byx != IGNORE_INDEX
        class_cyx = torch.arange(logits_bcyx.shape[1], device=logits_bcyx.device)[:, None, None]
        truth_bcyx = (target_byx[:, None] == class_cyx) & valid_byx[:, None]
        if name == "bce":
            return _one_vs_rest_sums(logits_bcyx, truth_bcyx, valid_byx, self.class_weights)
        if name == "lovasz":
            return _lovasz_sums(logits_bcyx.softmax(1), truth_bcyx, valid_byx)
        return _overlap_sums(logits_bcyx.softmax(1), truth_bcyx)


def merge_into_first(logits_bcyx: Tensor, missing_bc: Tensor) -> Tensor:
    """Return logits (B, C, Y, X) of the same images where the missing classes of each are one with its first class.

    The first class gets the probability of all of them (log-sum-exp of the logits) and they get none. Where nobody
    annotated a class, its pixels are among those of the first, and the marginal probability is all that the labels
    speak of; every term of the loss is then the same as for a network without that class.

    Parameters
    ----------
    logits_bcyx
        From the network.
    missing_bc
        (B, C) bool: which classes nobody annotated on which image; never the first. Images where there is none keep
        their logits to the bit.
    """
    logits_bcyx = logits_bcyx.float()
    missing_bc11 = missing_bc[:, :, None, None]
    merged_bc11 = missing_bc11.clone()
    merged_bc11[:, 0] = True
    first_b1yx = logits_bcyx.masked_fill(~merged_bc11, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([first_b1yx, logits_bcyx.masked_fill(missing_bc11, _NOWHERE)[:, 1:]], 1)


def training_loss(options: TrainParams, class_pixels: Sequence[int], *, instances: bool = False) -> SegmentationLoss:
    """Return the loss that the params name, given the labelled training pixels of each class.

    With `instances`, interior and boundary of objects both weigh as the objects' class does.

    Raises
    ------
    ParamsError
        The class weights are not one per class, or balanced ones are asked for and a class has no pixel.
    """
    asked = options.class_weights
    if asked == "balanced":
        weights = balanced_weights(class_pixels)
    elif asked == "none":
        weights = [1.0] * len(class_pixels)
    elif len(asked) == len(class_pixels):
        weights = list(asked)
    else:
        raise ParamsError(
            f"{len(asked)} class weights",
            expected=f"{len(class_pixels)}, one per class",
            where="train.class_weights",
            remedy="list one weight per class, or use 'balanced' or 'none'",
        )
    return SegmentationLoss(options.loss, [*weights, weights[1]] if instances else weights)


def balanced_weights(num_pixels_per_class: Sequence[int]) -> list[float]:
    """Return inverse-frequency class weights, scaled to mean 1, from the labelled pixels of each class.

    The rule behind scikit-learn's ``class_weight="balanced"`` (King & Zeng 2001); after the scaling it equals
    median-frequency balancing. A class with few pixels gets a large but finite weight, at most the number of classes.

    Raises
    ------
    ParamsError
        If a class has no pixel.
    """
    empty = [str(index) for index, num_pixels in enumerate(num_pixels_per_class) if num_pixels <= 0]
    if empty:
        raise ParamsError(
            f"no training pixel of class index {', '.join(empty)}",
            expected="at least one of every class for balanced weights",
            where="train.class_weights",
            remedy="label that class, choose another split, or set class_weights to none or to a list",
        )
    inverse = [1.0 / num_pixels for num_pixels in num_pixels_per_class]
    mean = math.fsum(inverse) / len(inverse)
    return [value / mean for value in inverse]


def _ratio(name: LossName, total: Tensor) -> Tensor:
    if name == "dice":
        return _one_minus_overlap(total, 0.5, 0.5)
    if name == "tversky":
        return _one_minus_overlap(total, TVERSKY_ALPHA, TVERSKY_BETA)
    return _safe_ratio(total[0], total[1])


def _cross_entropy_sums(logits_bcyx: Tensor, target_byx: Tensor, class_weights: Tensor, gamma: float) -> Tensor:
    """Return (sum of weight · (1 - p)^gamma · -log p, sum of weight) over the labelled pixels."""
    num_pixels_c = torch.stack([(target_byx == index).sum() for index in range(len(class_weights))])
    sum_weight = (num_pixels_c * class_weights).sum()
    if gamma == 0:
        loss = F.cross_entropy(
            logits_bcyx, target_byx, weight=class_weights, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return torch.stack([loss, sum_weight])
    loss_byx = F.cross_entropy(logits_bcyx, target_byx, ignore_index=IGNORE_INDEX, reduction="none")
    weight_byx = class_weights[torch.where(target_byx == IGNORE_INDEX, 0, target_byx)]
    focus_byx = (-torch.expm1(-loss_byx)).pow(gamma)
    return torch.stack([(weight_byx * focus_byx * loss_byx).sum(), sum_weight])


def _one_vs_rest_sums(logits_bcyx: Tensor, truth_bcyx: Tensor, valid_byx: Tensor, class_weights: Tensor) -> Tensor:
    """Return (sum of class weight · binary cross-entropy, sum of class weight) over labelled pixels and classes."""
    loss_bcyx = F.binary_cross_entropy_with_logits(logits_bcyx, truth_bcyx.float(), reduction="none")
    loss_c = (loss_bcyx * valid_byx[:, None]).sum((0, 2, 3))
    return torch.stack([(loss_c * class_weights).sum(), valid_byx.sum() * class_weights.sum()])


def _overlap_sums(p_bcyx: Tensor, truth_bcyx: Tensor) -> Tensor:
    """Return per class the soft true positives, predicted and true pixels, concatenated to (3C,)."""
    truth_bcn = truth_bcyx.flatten(2).float()
    # The soft confusion matrix (predicted, true) as one product: a third of the time of masked sums.
    confusion_cc = torch.bmm(p_bcyx.flatten(2), truth_bcn.transpose(1, 2)).sum(0)
    return torch.cat([confusion_cc.diagonal(), confusion_cc.sum(1), truth_bcn.sum((0, 2))])


def _one_minus_overlap(sums: Tensor, alpha: float, beta: float) -> Tensor:
    """Return 1 - Tversky index (alpha = beta = 0.5: Dice), mean over the classes that occur."""
    hit_c, predicted_c, true_c = sums.chunk(3)
    index_c = _safe_ratio(hit_c, hit_c + alpha * (predicted_c - hit_c) + beta * (true_c - hit_c))
    occurs_c = true_c > 0
    return _safe_ratio(((1.0 - index_c) * occurs_c).sum(), occurs_c.sum())


def _lovasz_sums(p_bcyx: Tensor, truth_bcyx: Tensor, valid_byx: Tensor) -> Tensor:
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
    loss_b = _safe_ratio((loss_bc * occurs_bc).sum(1), occurs_bc.sum(1))
    return torch.stack([loss_b.sum(), occurs_bc.any(1).sum().float()])


def _safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the ratio, and 0 with zero gradient where the denominator is 0 (nothing was there to sum)."""
    return numerator / torch.where(denominator > 0, denominator, 1.0) * (denominator > 0)
