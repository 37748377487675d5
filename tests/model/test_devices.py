"""Devices: what was asked for, or an error."""

from __future__ import annotations

import re

import pytest
import torch

from stackseg.errors import MachineError, ParamsError
from stackseg.model.devices import hardware_name, has_bf16, pick_device, resolve_precision
from stackseg.params.train import TrainParams
from stackseg.training.launch import Machine, launch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def num_gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Let torch count so many GPUs."""
    number: int = request.param
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    return number


@pytest.mark.parametrize(
    "asked", ["tpu", "mps", "gpu", "cpu:0", "cuda:x", "cuda:", "cuda:-1", "", "meta", "CUDA", "xpu"]
)
def test_an_unknown_device_is_refused(asked: str) -> None:
    with pytest.raises(MachineError, match=r"^--device: device '.*'; expected auto, cpu, cuda or cuda:<n>$"):
        pick_device(asked)


@pytest.mark.parametrize("num_gpus", [0], indirect=True)
@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "cuda:3"])
def test_an_absent_gpu_is_never_replaced_by_the_cpu(num_gpus: int, asked: str) -> None:
    with pytest.raises(MachineError, match=f"0 CUDA devices; expected {asked}. Choose --device cpu or auto"):
        pick_device(asked)


@pytest.mark.parametrize("num_gpus", [2], indirect=True)
def test_gpus_are_counted_from_0(num_gpus: int) -> None:
    assert pick_device("cuda") == pick_device("auto") == CUDA
    assert pick_device("cuda:1") == torch.device("cuda:1")
    for asked in ("cuda:2", "cuda:99"):
        with pytest.raises(MachineError, match="2 CUDA devices"):
            pick_device(asked)
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("num_gpus", [0], indirect=True)
def test_auto_is_the_cpu_where_there_is_no_gpu(num_gpus: int) -> None:
    assert pick_device("auto") == CPU


@pytest.mark.parametrize(
    ("machine", "batch_size", "kind", "words"),
    [
        (Machine("cuda:1", num_processes=2), 4, MachineError, "one GPU is named for 2 processes"),
        (Machine("cuda", num_processes=3), 6, MachineError, "2 CUDA devices for 3 processes"),
        (Machine("auto", num_processes=2), 5, ParamsError, "batch_size is 5; expected a multiple of the 2 processes"),
        (Machine("cpu", num_processes=4), 6, ParamsError, "batch_size is 6; expected a multiple of the 4 processes"),
    ],
)
@pytest.mark.parametrize("num_gpus", [2], indirect=True)
def test_processes_that_cannot_be_are_refused_before_any_starts(
    num_gpus: int, machine: Machine, batch_size: int, kind: type[Exception], words: str
) -> None:
    # fp32, for the precision of a GPU that is not there cannot be asked for
    with pytest.raises(kind, match=words):
        launch(machine, TrainParams(batch_size=batch_size, precision="fp32"))


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(MachineError, match=r"train\.precision: fp16 on a CPU\. Set train\.precision to auto"):
        resolve_precision("fp16", CPU)
    assert resolve_precision("fp16", CUDA) == "fp16"


@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_automatic_precision_is_what_the_hardware_multiplies(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, name: str
) -> None:
    for one in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, one, lambda: False)
    monkeypatch.setattr(torch.cpu, name, lambda: hardware)
    assert has_bf16(CPU) is hardware
    assert resolve_precision("auto", CPU) == ("bf16" if hardware else "fp32")
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("fp32", CPU) == "fp32"


def test_hardware_is_named_with_its_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert re.fullmatch(r"\S.*\S, 1 thread", hardware_name(CPU))
        torch.set_num_threads(2)
        assert hardware_name(CPU).endswith(", 2 threads")
    finally:
        torch.set_num_threads(before)
