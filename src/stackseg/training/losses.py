"""Segmentation losses as sums that add up across processes, then as ratios of those sums."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stackseg.errors import ParamsError
from stackseg.training import loss_terms

TERM_NAMES = ("cross_entropy", "bce", "dice", "focal", "lovasz", "tversky")


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


def num_processes() -> int:
    """Return the number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all processes, differentiably; ``values`` itself where there is one process.

    When W processes backpropagate the same function of the sum, each receives W times its gradient, and
    DistributedDataParallel's mean over W then leaves exactly the gradient of the loss on the global batch.
    """
    summed: Tensor = values if num_processes() == 1 else _AllReduceSum.apply(values)
    return summed


def _identity(values: Tensor) -> Tensor:
    return values


class SegmentationLoss(nn.Module):
    """Weighted sum of loss terms; build it with :func:`build_loss`, which documents it."""

    class_weights: Tensor

    def __init__(
        self,
        terms: Mapping[str, float],
        class_weights: Sequence[float],
        ignore_index: int,
        reduce_sum: Callable[[Tensor], Tensor],
        focal_gamma: float,
        tversky_alpha: float,
        tversky_beta: float,
    ) -> None:
        super().__init__()
        self.terms = dict(terms)
        self.ignore_index = ignore_index
        self.reduce_sum = reduce_sum
        self.focal_gamma = focal_gamma
        self.tversky_alpha = tversky_alpha
        self.tversky_beta = tversky_beta
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
                weight * self._ratio(name, part) for (name, weight), part in zip(self.terms.items(), parts, strict=True)
            ]
            return torch.stack(losses).sum()

    def _local_sums(self, name: str, logits_bcyx: Tensor, target_byx: Tensor) -> Tensor:
        """Return the sums over this process's pixels that ``_ratio`` turns into the term."""
        if name in ("cross_entropy", "focal"):
            gamma = self.focal_gamma if name == "focal" else 0.0
            return loss_terms.cross_entropy_sums(logits_bcyx, target_byx, self.class_weights, self.ignore_index, gamma)
        valid_byx = target_byx != self.ignore_index
        class_cyx = torch.arange(logits_bcyx.shape[1], device=logits_bcyx.device)[:, None, None]
        truth_bcyx = (target_byx[:, None] == class_cyx) & valid_byx[:, None]
        if name == "bce":
            return loss_terms.one_vs_rest_sums(logits_bcyx, truth_bcyx, valid_byx, self.class_weights)
        if name == "lovasz":
            return loss_terms.lovasz_sums(logits_bcyx.softmax(1), truth_bcyx, valid_byx)
        return loss_terms.overlap_sums(logits_bcyx.softmax(1), truth_bcyx)

    def _ratio(self, name: str, total: Tensor) -> Tensor:
        if name == "dice":
            return loss_terms.one_minus_overlap(total, 0.5, 0.5)
        if name == "tversky":
            return loss_terms.one_minus_overlap(total, self.tversky_alpha, self.tversky_beta)
        return loss_terms.safe_ratio(total[0], total[1])


def build_loss(
    terms: Mapping[str, float],
    *,
    num_classes: int,
    class_weights: Sequence[float] | None = None,
    ignore_index: int = 255,
    reduce_sum: Callable[[Tensor], Tensor] = _identity,
    focal_gamma: float = 2.0,
    tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7,
) -> SegmentationLoss:
    """Return a callable ``loss(logits_bcyx, target_byx)`` that gives the weighted sum of ``terms`` as a scalar.

    Every term is a ratio of sums over the valid pixels of the whole batch. With ``reduce_sum=all_reduce_sum`` the
    sums are those of all processes, so every process returns the loss of the global batch. Pixels of
    ``ignore_index`` enter no sum and get no gradient; a batch without a valid pixel gives 0.

    Parameters
    ----------
    terms
        Name to positive weight:
        ``cross_entropy``: mean over pixels, weighted by the class of the pixel.
        ``bce``: binary cross-entropy of each class against the rest, mean over pixels and (weighted) classes.
        ``focal``: softmax focal loss, (1 - p)^gamma times the cross-entropy (Lin et al. 2017, arXiv:1708.02002).
        ``dice``: 1 - soft Dice per class over the whole batch (Milletari et al. 2016, arXiv:1606.04797).
        ``tversky``: as Dice, with weights for false positives and negatives (Salehi et al. 2017, arXiv:1706.05721).
        ``lovasz``: Lovász-softmax per image, mean over images (Berman et al. 2018, arXiv:1705.08790).
    num_classes
        Channels of the logits.
    class_weights
        One positive weight per class for ``cross_entropy``, ``bce`` and ``focal``. The other terms average over
        classes and so balance them by themselves: a weight there would do it twice.
    ignore_index
        Target value of pixels without a label.
    reduce_sum
        Differentiable sum over processes.
    focal_gamma, tversky_alpha, tversky_beta
        Focus on hard pixels; cost of false positives; cost of false negatives.

    Notes
    -----
    ``dice`` and ``tversky`` average over the classes that occur in the batch, ``lovasz`` over those in the image.
    A class that does not occur is neither rewarded nor free to grow: under softmax, what a pixel gives to it is
    missing from the class that the pixel has.

    Raises
    ------
    ParamsError
        For unknown or no terms, or weights and options out of range.
    """
    _check_terms(terms)
    weights = [1.0] * num_classes if class_weights is None else [float(weight) for weight in class_weights]
    if len(weights) != num_classes:
        raise ParamsError(
            f"{len(weights)} class weights",
            expected=f"{num_classes}, one per class",
            where="train.class_weights",
            remedy="list one weight per class, or use 'balanced' or 'none'",
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ParamsError(f"class weights {weights}", expected="finite numbers above 0", where="train.class_weights")
    # beta above 0 keeps every denominator positive: a class that occurs is partly found or partly missed.
    for option, value, in_range in (
        ("focal_gamma", focal_gamma, focal_gamma >= 0),
        ("tversky_alpha", tversky_alpha, tversky_alpha >= 0),
        ("tversky_beta", tversky_beta, tversky_beta > 0),
    ):
        if not (math.isfinite(value) and in_range):
            raise ParamsError(
                f"{option} = {value}",
                expected="a finite number above 0" if option == "tversky_beta" else "a finite number of 0 or more",
                where="train.loss",
            )
    return SegmentationLoss(terms, weights, ignore_index, reduce_sum, focal_gamma, tversky_alpha, tversky_beta)


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


def _check_terms(terms: Mapping[str, float]) -> None:
    unknown = [name for name in terms if name not in TERM_NAMES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], TERM_NAMES, n=1, cutoff=0.0)[0]
        raise ParamsError(
            f"unknown loss term '{unknown[0]}'",
            expected=f"one of {', '.join(TERM_NAMES)}",
            where="train.loss",
            remedy=f"did you mean '{near}'?",
        )
    if not terms or not all(math.isfinite(weight) and weight > 0 for weight in terms.values()):
        raise ParamsError(
            f"loss terms {dict(terms)}",
            expected="at least one term, each with a finite weight above 0",
            where="train.loss",
            remedy="write for example cross_entropy: 1.0 and dice: 1.0",
        )
