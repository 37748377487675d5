"""Optimisers, schedules and the moving average of the weights, from params."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from stackseg.params.train import TrainParams

# validations without gain before the plateau schedule divides the rate
PLATEAU_PATIENCE = 3
PLATEAU_FACTOR = 0.3


def build_optimizer(network: torch.nn.Module, params: TrainParams) -> torch.optim.Optimizer:
    """Return the optimiser; norms and biases are not decayed."""
    decayed: list[torch.nn.Parameter] = []
    kept: list[torch.nn.Parameter] = []
    for tensor in network.parameters():
        if tensor.requires_grad:
            (decayed if tensor.ndim > 1 else kept).append(tensor)
    groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    if params.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=params.lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if params.optimizer == "adamw" else torch.optim.Adam
    # one pass over the weights instead of several: half the time on a CPU
    return kind(groups, lr=params.lr, fused=True)


class Schedule:
    """The learning rate, moved after every step or after every validation."""

    def __init__(self, optimizer: torch.optim.Optimizer, params: TrainParams, num_steps: int) -> None:
        self._num_steps = num_steps
        self._plateau: ReduceLROnPlateau | None = None
        self._stepwise: LRScheduler | None = None
        if params.schedule == "plateau":
            self._plateau = ReduceLROnPlateau(optimizer, mode="max", factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE)
        elif params.schedule == "one_cycle" and num_steps > 1:
            # torch divides by the length of the rise, which must not be 0 in the shortest trainings
            rise = max(0.2, 1.5 / num_steps)
            self._stepwise = OneCycleLR(optimizer, max_lr=params.lr, total_steps=num_steps, pct_start=rise)
        elif params.schedule == "cosine":
            self._stepwise = CosineAnnealingLR(optimizer, T_max=num_steps)
        else:
            self._stepwise = LambdaLR(optimizer, lambda step: 1.0)

    def after_step(self) -> None:
        """Move the rate after an optimiser step; behind the last one there is nothing to move it for."""
        if self._stepwise is not None and self._stepwise.last_epoch + 1 < self._num_steps:
            self._stepwise.step()

    def after_validation(self, score: float) -> None:
        """Move the rate after a validation, by its mean IoU."""
        if self._plateau is not None:
            self._plateau.step(score)

    def state_dict(self) -> dict[str, object]:
        """Return what a resumed training needs."""
        state = (self._plateau or self._stepwise).state_dict()  # type: ignore[union-attr]
        # functions are rebuilt from params, and could not be stored without pickle
        return {key: value for key, value in state.items() if key not in ("lr_lambdas", "_anneal_func_type")}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a stored state."""
        scheduler = self._plateau or self._stepwise
        if isinstance(scheduler, LambdaLR):
            state = {**state, "lr_lambdas": [None, None]}
        scheduler.load_state_dict(state)  # type: ignore[union-attr]


def build_average(network: torch.nn.Module, decay: float | None) -> AveragedModel | None:
    """Return a moving average of weights and buffers, or None where none is asked for.

    Its horizon of 1 / (1 - decay) steps is grown into: what the weights were before they had learned anything would
    otherwise weigh on the scores of early epochs, by which a search prunes, and on short trainings.
    """
    if decay is None:
        return None

    def update(averaged: PARAM_LIST, current: PARAM_LIST, count: Tensor | int) -> None:
        # the count lies on the device, and to read it would wait for it; the average's own is on the host
        get_ema_multi_avg_fn(decay_at(decay, int(average.n_averaged)))(averaged, current, count)

    average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    return average


def decay_at(decay: float, step: int) -> float:
    """Return the decay of a moving average at a step, counted from 1: about the last tenth of all steps counts."""
    return min(decay, (1 + step) / (10 + step))
