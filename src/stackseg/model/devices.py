"""Devices and precisions: what the machine has, and what was asked of it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from stackseg.errors import MachineError


def pick_device(asked: str) -> torch.device:
    """Return the device asked for: "auto", "cpu", "cuda" or "cuda:<n>".

    Raises
    ------
    MachineError
        The device is not there; another one is never taken instead.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", asked):
        raise MachineError(f"device {asked!r}", expected="auto, cpu, cuda or cuda:<n>", where="--device")
    device = torch.device(asked)
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise MachineError(
            f"{num_gpus} CUDA devices", expected=f"{asked}", where="--device", remedy="choose --device cpu or auto"
        )
    return device


def has_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public question for this; both names are there from 2.11 to 2.15
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_precision(asked: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16" for what was asked, "auto" being bf16 where the hardware has it.

    Raises
    ------
    MachineError
        fp16 on a CPU.
    """
    if asked == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise MachineError(
            "fp16 on a CPU", where="train.precision", remedy="set train.precision to auto, or train on a GPU"
        )
    return asked


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware_name(device: torch.device) -> str:
    """Return what a device is, for people: the GPU's name, or the processor's and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor_name()}, {threads} thread{'s' * (threads > 1)}"


def _processor_name() -> str:
    # on Linux the platform module knows the architecture only
    known = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", known.read_text(), re.MULTILINE) if known.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
