"""Optimisers, schedules and the moving average."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.params.train import TrainParams
from stackseg.training.optim import PLATEAU_FACTOR, PLATEAU_PATIENCE, Schedule, build_average, build_optimizer

SCHEDULES = ("constant", "cosine", "one_cycle", "plateau")


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))


def steps(net: torch.nn.Module, optimizer: Any, schedule: Schedule, first: int, last: int) -> list[float]:
    """Take steps on data that depend on the step; a validation every second one. Returns the rates they were taken at."""  # noqa: E501
    rates = []
    for step in range(first, last):
        draw = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        net(torch.rand(2, 1, 8, 8, generator=draw)).square().mean().backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_step()
        if step % 2:
            schedule.after_validation(1 / (1 + step))
    return rates


def rates_of(num_steps: int, **options: Any) -> list[float]:
    params = TrainParams(**options)
    net = network()
    optimizer = build_optimizer(net, params)
    return steps(net, optimizer, Schedule(optimizer, params, num_steps), 0, num_steps)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_optimisers_decay_kernels_only(kind: Any) -> None:
    net = network()
    optimizer = build_optimizer(net, TrainParams(optimizer=kind, lr=0.125, weight_decay=0.25))
    assert type(optimizer).__name__.lower() == kind
    decayed, kept = optimizer.param_groups
    assert {id(one) for one in decayed["params"]} == {id(one) for one in net.parameters() if one.ndim == 4}
    assert {id(one) for one in kept["params"]} == {id(one) for one in net.parameters() if one.ndim == 1}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.25, 0)
    assert (decayed["lr"], kept["lr"]) == (0.125, 0.125)
    if kind == "sgd":
        assert (decayed["momentum"], decayed["nesterov"]) == (0.9, True)


def test_frozen_parameters_are_left_out() -> None:
    net = network()
    net[0].requires_grad_(False)  # type: ignore[operator, index]
    optimizer = build_optimizer(net, TrainParams())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


@settings(max_examples=60, deadline=None)
@given(num_steps=st.integers(1, 60), optimizer=st.sampled_from(["adamw", "adam", "sgd"]))
def test_one_cycle_rises_to_its_peak_and_falls_to_nothing(num_steps: int, optimizer: Any) -> None:
    rates = rates_of(num_steps, schedule="one_cycle", lr=0.01, optimizer=optimizer)
    assert all(0 < rate <= 0.01 * (1 + 1e-9) for rate in rates)
    if num_steps > 1:
        peak = rates.index(max(rates))
        assert peak <= max(1, 0.2 * num_steps)
        assert all(one < other for one, other in itertools.pairwise(rates[: peak + 1]))
        assert all(one > other for one, other in itertools.pairwise(rates[peak:]))
        assert rates[-1] == pytest.approx(0.01 / 25 / 1e4)
    if num_steps >= 10:
        assert max(rates) > 0.009


def test_cosine_falls_along_its_wave() -> None:
    rates = rates_of(10, schedule="cosine", lr=0.01)
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])


def test_constant_stays() -> None:
    assert set(rates_of(10, schedule="constant", lr=0.01)) == {0.01}


def test_plateau_falls_when_validations_stop_gaining() -> None:
    params = TrainParams(schedule="plateau", lr=0.01)
    net = network()
    optimizer = build_optimizer(net, params)
    schedule = Schedule(optimizer, params, 100)
    for score in (0.1, 0.2, *[0.2] * PLATEAU_PATIENCE):
        schedule.after_step()
        schedule.after_validation(score)
    assert optimizer.param_groups[0]["lr"] == 0.01
    schedule.after_validation(0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01 * PLATEAU_FACTOR] * 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [1, 7, 20])
def test_a_stored_schedule_goes_on_as_if_nothing_had_been(schedule: Any, optimizer: Any, stop: int) -> None:
    params = TrainParams(schedule=schedule, optimizer=optimizer, lr=0.01)
    net = network()
    whole = build_optimizer(net, params)
    expected = steps(net, whole, Schedule(whole, params, 20), 0, 20)

    broken = network()
    first = build_optimizer(broken, params)
    ahead = Schedule(first, params, 20)
    rates = steps(broken, first, ahead, 0, stop)
    stored = copy.deepcopy((broken.state_dict(), first.state_dict(), ahead.state_dict()))
    pickle.dumps(stored)

    resumed = network()
    second = build_optimizer(resumed, params)
    behind = Schedule(second, params, 20)
    resumed.load_state_dict(stored[0])
    second.load_state_dict(stored[1])
    behind.load_state_dict(stored[2])
    rates += steps(resumed, second, behind, stop, 20)
    assert rates == expected
    for one, other in zip(resumed.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_moving_average_is_one_of_weights_and_of_statistics() -> None:
    net = network()
    average = build_average(net, 0.75)
    assert average is not None
    assert build_average(net, None) is None
    values = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    for value in values:
        with torch.no_grad():
            for tensor in (*net.parameters(), net[1].running_mean):  # type: ignore[index]
                tensor.fill_(value)
        average.update_parameters(net)
    # the first is taken as it is; from 26 steps on the decay is the one that was asked for
    expected = values[0]
    for step, value in enumerate(values[1:], 1):
        decay = 0.75 if step >= 26 else (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * value
    for tensor in (*average.module.parameters(), average.module[1].running_mean):
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected))
    assert all(torch.equal(one, torch.full_like(one, values[-1])) for one in net.parameters())
