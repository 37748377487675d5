from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stackseg.dataset.labels.table import IGNORE_INDEX as IGNORE
from stackseg.errors import ParamsError
from stackseg.params.train import LossName, TrainParams
from stackseg.training.losses import (
    SegmentationLoss,
    all_reduce_sum,
    balanced_weights,
    merge_into_first,
    training_loss,
)

TERM_NAMES = get_args(LossName)
ALL_TERMS = {name: 1.0 + index / 10 for index, name in enumerate(TERM_NAMES)}
quick = settings(deadline=None, max_examples=15)
one_term = pytest.mark.parametrize("name", TERM_NAMES)


def example(
    seed: int, *, batch: int = 3, classes: int = 4, size: int = 9, ignored: float = 0.2
) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, size, size + 2, generator=random)
    target = torch.randint(classes, (batch, size, size + 2), generator=random)
    target[torch.rand(target.shape, generator=random) < ignored] = IGNORE
    return logits.requires_grad_(), target


def build_loss(
    terms: dict[Any, float], *, num_classes: int, class_weights: Sequence[float] | None = None, **options: Any
) -> SegmentationLoss:
    return SegmentationLoss(terms, class_weights or [1.0] * num_classes, **options)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


def test_cross_entropy_is_torchs_weighted_mean() -> None:
    logits, target = example(0)
    weights = [0.5, 1.0, 2.0, 0.1]
    expected = F.cross_entropy(logits, target, weight=torch.tensor(weights), ignore_index=IGNORE)
    found = build_loss({"cross_entropy": 1.0}, num_classes=4, class_weights=weights)(logits, target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits))


def test_focal_is_smps() -> None:
    logits, target = example(1, ignored=0.0)
    expected = smp.losses._functional.softmax_focal_loss_with_logits(logits, target, gamma=2.0)
    torch.testing.assert_close(build_loss({"focal": 1.0}, num_classes=4)(logits, target), expected)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    shares_n = weights[target.flatten()] / weights[target].sum()
    each_n = smp.losses._functional.softmax_focal_loss_with_logits(logits, target, gamma=2.0, reduction="none")
    found = build_loss({"focal": 1.0}, num_classes=4, class_weights=weights.tolist())(logits, target)
    torch.testing.assert_close(found, (each_n.flatten() * shares_n).sum())


def test_focal_gradient_is_finite_at_certain_pixels() -> None:
    logits = torch.tensor([60.0, -60.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4).clone().requires_grad_()
    loss = build_loss({"focal": 1.0}, num_classes=2)(logits, torch.zeros(1, 4, 4, dtype=torch.long))
    assert loss.item() == 0.0
    assert gradient(loss, logits).isfinite().all()


def test_bce_is_the_mean_over_pixels_and_classes() -> None:
    logits, target = example(2, ignored=0.0)
    one_hot = F.one_hot(target, 4).permute(0, 3, 1, 2).float()
    expected = F.binary_cross_entropy_with_logits(logits, one_hot)
    torch.testing.assert_close(build_loss({"bce": 1.0}, num_classes=4)(logits, target), expected)
    weights = torch.tensor([1.0, 2.0, 4.0, 1.0])
    weighted = F.binary_cross_entropy_with_logits(logits, one_hot, weight=(weights / weights.mean())[:, None, None])
    found = build_loss({"bce": 1.0}, num_classes=4, class_weights=weights.tolist())(logits, target)
    torch.testing.assert_close(found, weighted)


def test_overlap_terms_agree_with_smp_where_all_classes_occur() -> None:
    logits, target = example(3)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)(logits, target)
    torch.testing.assert_close(build_loss({"dice": 1.0}, num_classes=4)(logits, target), dice, rtol=1e-5, atol=1e-6)
    tversky = smp.losses.TverskyLoss("multiclass", ignore_index=IGNORE, alpha=0.3, beta=0.7)(logits, target)
    torch.testing.assert_close(
        build_loss({"tversky": 1.0}, num_classes=4)(logits, target), tversky, rtol=1e-5, atol=1e-6
    )


def test_lovasz_agrees_with_smp_per_image_in_value_and_gradient() -> None:
    logits, target = example(5)
    target[1] = torch.where(target[1] == 2, 0, target[1])
    expected = smp.losses.LovaszLoss("multiclass", per_image=True, ignore_index=IGNORE)(logits, target)
    found = build_loss({"lovasz": 1.0}, num_classes=4)(logits, target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits), rtol=1e-4, atol=1e-7)


@one_term
def test_perfect_prediction_costs_nothing_and_a_wrong_one_much(name: str) -> None:
    _, target = example(6, ignored=0.0)
    right = 80.0 * F.one_hot(target, 4).permute(0, 3, 1, 2) - 40.0
    wrong = 80.0 * F.one_hot((target + 1) % 4, 4).permute(0, 3, 1, 2) - 40.0
    loss = build_loss({name: 1.0}, num_classes=4)
    assert loss(right, target).item() < 1e-5
    assert loss(wrong, target).item() > 0.9


@one_term
@pytest.mark.parametrize("truth", [0, 3])
def test_an_absent_class_that_is_predicted_everywhere_costs(name: str, truth: int) -> None:
    target = torch.full((2, 6, 6), truth)
    logits = torch.zeros(2, 4, 6, 6)
    logits[:, 1] = 20.0
    logits.requires_grad_()
    loss = build_loss({name: 1.0}, num_classes=4)(logits, target)
    assert loss.item() > 0.9
    if name not in ("dice", "tversky", "lovasz"):  # those are flat where the softmax is saturated
        assert gradient(loss, logits)[:, truth].max() < 0


@pytest.mark.parametrize("name", ["dice", "tversky", "lovasz"])
def test_absent_classes_leave_the_mean(name: str) -> None:
    logits, target = example(7, classes=3)
    more = torch.cat([logits, torch.full_like(logits[:, :2], -math.inf)], 1)
    # a class without probability and without pixels changes nothing, where a mean over all classes would shrink
    torch.testing.assert_close(
        build_loss({name: 1.0}, num_classes=5)(more.clamp_min(-1e4), target),
        build_loss({name: 1.0}, num_classes=3)(logits, target),
    )


@quick
@given(seed=st.integers(0, 10**6), ignored=st.floats(0.0, 0.95))
def test_ignored_pixels_change_nothing_and_get_no_gradient(seed: int, ignored: float) -> None:
    logits, target = example(seed, ignored=ignored)
    loss = build_loss(ALL_TERMS, num_classes=4, class_weights=[1, 2, 3, 4])
    hidden = (target == IGNORE)[:, None].expand_as(logits)
    found = loss(logits, target)
    grad = gradient(found, logits)
    assert grad.isfinite().all()
    assert (grad[hidden] == 0).all()
    changed = logits.detach().masked_fill(hidden, 1e4).requires_grad_()
    torch.testing.assert_close(loss(changed, target), found, rtol=1e-6, atol=0)
    assert (gradient(loss(changed, target), changed)[hidden] == 0).all()


@quick
@given(seed=st.integers(0, 10**6), ignored=st.floats(0.0, 0.9))
@pytest.mark.parametrize("name", TERM_NAMES)
def test_ignored_pixels_count_as_if_they_were_cut_away(name: str, seed: int, ignored: float) -> None:
    logits, target = example(seed, batch=2, size=6, ignored=ignored)
    cut = target.clone()
    cut[:, :, 5:] = IGNORE
    loss = build_loss({name: 1.0}, num_classes=4)
    torch.testing.assert_close(loss(logits, cut), loss(logits[..., :5], target[..., :5]))


@one_term
def test_a_batch_without_labels_gives_zero_and_no_gradient(name: str) -> None:
    logits, target = example(8)
    loss = build_loss({name: 1.0}, num_classes=4)(logits, torch.full_like(target, IGNORE))
    assert loss.item() == 0.0
    assert (gradient(loss, logits) == 0).all()


@one_term
def test_an_image_without_labels_leaves_the_others_alone(name: str) -> None:
    logits, target = example(9)
    target[1] = IGNORE
    loss = build_loss({name: 1.0}, num_classes=4)
    torch.testing.assert_close(loss(logits, target), loss(logits[[0, 2]], target[[0, 2]]))


@quick
@given(seed=st.integers(0, 10**6), first=st.integers(1, 4))
@pytest.mark.parametrize("name", TERM_NAMES)
def test_parts_of_a_batch_give_the_loss_and_gradient_of_the_whole(name: str, seed: int, first: int) -> None:
    """Two processes in one: the second part's loss, given the sums of the first, is the loss of both together."""
    logits, target = example(seed, batch=5)
    target[-1][target[-1] == 3] = 0  # classes differ between the parts
    weights = [1.0, 2.0, 0.5, 3.0]
    whole = build_loss({name: 1.0}, num_classes=4, class_weights=weights)(logits, target)
    sums_of_first: list[Tensor] = []
    build_loss(
        {name: 1.0}, num_classes=4, class_weights=weights, reduce_sum=lambda sums: sums_of_first.append(sums) or sums
    )(logits[:first], target[:first])
    together = build_loss(
        {name: 1.0}, num_classes=4, class_weights=weights, reduce_sum=lambda sums: sums + sums_of_first[0]
    )
    parts = together(logits[first:], target[first:])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(parts, logits), gradient(whole, logits), rtol=1e-4, atol=1e-7)


def test_terms_add_up_by_weight_through_one_reduction() -> None:
    logits, target = example(10)
    calls: list[int] = []
    loss = build_loss(ALL_TERMS, num_classes=4, reduce_sum=lambda sums: calls.append(len(sums)) or sums)
    expected = sum(
        weight * build_loss({name: 1.0}, num_classes=4)(logits, target) for name, weight in ALL_TERMS.items()
    )
    torch.testing.assert_close(loss(logits, target), expected)
    assert len(calls) == 1


@one_term
def test_half_precision_logits_are_reckoned_in_float32(name: str) -> None:
    logits, target = example(11)
    half = logits.detach().bfloat16()
    loss = build_loss({name: 1.0}, num_classes=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(half, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(half.float(), target), rtol=0, atol=0)


@one_term
def test_gradient_is_the_slope_of_the_loss(name: str) -> None:
    logits, target = example(12, batch=1, classes=3, size=3)
    loss = build_loss({name: 1.0}, num_classes=3, class_weights=[1, 2, 3])
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-2
    slope = (loss(logits + step * direction, target) - loss(logits - step * direction, target)) / (2 * step)
    torch.testing.assert_close((gradient(loss(logits, target), logits) * direction).sum(), slope, rtol=2e-2, atol=2e-3)


def test_one_process_reduces_nothing() -> None:
    values = torch.arange(3.0)
    assert all_reduce_sum(values) is values


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=8))
@quick
def test_balanced_weights_are_inverse_to_frequency_with_mean_one(counts: list[int]) -> None:
    weights = balanced_weights(counts)
    products = [weight * count for weight, count in zip(weights, counts, strict=True)]
    assert sum(weights) / len(weights) == pytest.approx(1.0)
    assert all(math.isfinite(weight) and weight > 0 for weight in weights)
    assert products == pytest.approx([products[0]] * len(products))


def test_balanced_weights_refuse_a_class_without_pixels() -> None:
    with pytest.raises(ParamsError, match=r"train\.class_weights: no training pixel of class index 1, 3"):
        balanced_weights([10, 0, 5, 0])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0]])
def test_class_weights_are_one_per_class(weights: list[float]) -> None:
    with pytest.raises(ParamsError, match=rf"train\.class_weights: {len(weights)} class weights; expected 2"):
        training_loss(TrainParams(class_weights=weights), [5, 5])


def test_the_params_choose_terms_and_weights() -> None:
    options = TrainParams(loss={"focal": 0.5, "lovasz": 2.0}, class_weights="balanced")
    loss = training_loss(options, [10, 30])
    assert loss.terms == {"focal": 0.5, "lovasz": 2.0}
    assert loss.class_weights.tolist() == [1.5, 0.5]
    assert training_loss(TrainParams(), [10, 30]).class_weights.tolist() == [1.0, 1.0]
    assert training_loss(TrainParams(class_weights=[2, 3]), [10, 30]).class_weights.tolist() == [2.0, 3.0]


def test_interior_and_boundary_of_objects_weigh_as_their_class() -> None:
    loss = training_loss(TrainParams(class_weights=[2, 3]), [10, 30], instances=True)
    assert loss.class_weights.tolist() == [2.0, 3.0, 3.0]


def test_images_of_which_no_class_is_missing_keep_their_logits() -> None:
    logits, target = example(13)
    merged = merge_into_first(logits, torch.zeros(3, 4, dtype=torch.bool))
    assert torch.equal(merged, logits)
    loss = build_loss(ALL_TERMS, num_classes=4)
    assert torch.equal(gradient(loss(merged, target), logits), gradient(loss(logits, target), logits))


def test_a_missing_class_is_one_with_the_first_and_others_keep_their_probability() -> None:
    logits, _ = example(14)
    missing = torch.tensor([[False, False, True, False], [False] * 4, [False, True, False, True]])
    p, merged = logits.softmax(1), merge_into_first(logits, missing).softmax(1)
    torch.testing.assert_close(merged[0, 0], p[0, 0] + p[0, 2])
    torch.testing.assert_close(merged[2, 0], p[2, 0] + p[2, 1] + p[2, 3])
    assert (merged[missing] == 0).all()
    kept = ~missing
    kept[:, 0] = False
    torch.testing.assert_close(merged[kept], p[kept])


@one_term
def test_without_the_missing_class_the_term_is_that_of_a_network_without_it(name: str) -> None:
    logits, target = example(15, ignored=0.3)
    target[target == 3] = IGNORE
    missing = torch.tensor([[False, False, False, True]]).expand(3, -1)
    found = build_loss({name: 1.0}, num_classes=4)(merge_into_first(logits, missing), target)
    three = torch.cat([torch.logaddexp(logits[:, :1], logits[:, 3:]), logits[:, 1:3]], 1)
    expected = build_loss({name: 1.0}, num_classes=3)(three, target)
    # bce is a mean over the four classes, to which the missing one adds nothing
    torch.testing.assert_close(found, expected * (0.75 if name == "bce" else 1.0))
    torch.testing.assert_close(
        gradient(found, logits), gradient(expected * (0.75 if name == "bce" else 1.0), logits), rtol=1e-4, atol=1e-7
    )


@one_term
def test_the_missing_class_costs_nothing_on_the_first(name: str) -> None:
    target = torch.zeros(1, 6, 6, dtype=torch.long)
    logits = torch.zeros(1, 3, 6, 6)
    logits[:, 2] = 20.0  # what the network says
    logits[:, 1] = -20.0
    loss = build_loss({name: 1.0}, num_classes=3)
    assert loss(logits, target).item() > 0.9
    assert loss(merge_into_first(logits, torch.tensor([[False, False, True]])), target).item() < 1e-6
