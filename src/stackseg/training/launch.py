"""Where a training runs: device, precision and processes, opened by Lightning Fabric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from lightning.fabric import Fabric

from stackseg.errors import MachineError, ParamsError
from stackseg.model.devices import pick_device, resolve_precision
from stackseg.params.train import TrainParams

FabricPrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
FABRIC_PRECISION: dict[str, FabricPrecision] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Machine:
    """Where training runs: device name, processes, and loader workers per process."""

    device: str = "auto"
    num_processes: int = 1
    num_workers: int = 0


def launch(machine: Machine, options: TrainParams) -> Fabric:
    """Return Fabric with all processes started; with several, this command runs again in each of the others.

    Raises
    ------
    MachineError
        Device or precision are not there, or fewer GPUs than processes.
    ParamsError
        The processes cannot share a batch evenly.
    """
    device = pick_device(machine.device)
    precision = resolve_precision(options.precision, device)
    if machine.num_processes > 1:
        _check_processes(machine.num_processes, device, options.batch_size)
    fabric = Fabric(
        accelerator=device.type,
        devices=machine.num_processes if device.index is None else [device.index],
        strategy="ddp" if machine.num_processes > 1 else "auto",
        precision=FABRIC_PRECISION[precision],
    )
    fabric.launch()
    return fabric


def _check_processes(num_processes: int, device: torch.device, batch_size: int) -> None:
    if ":" in str(device):
        raise MachineError(
            f"one GPU is named for {num_processes} processes", where="--device", remedy="choose --device cuda or auto"
        )
    if device.type == "cuda" and num_processes > torch.cuda.device_count():
        raise MachineError(
            f"{torch.cuda.device_count()} CUDA devices for {num_processes} processes",
            where="--processes",
            remedy="ask for as many processes as GPUs, or choose --device cpu",
        )
    if batch_size % num_processes:
        raise ParamsError(
            f"train.batch_size is {batch_size}",
            expected=f"a multiple of the {num_processes} processes",
            where="params.yaml",
            remedy="change train.batch_size",
        )
