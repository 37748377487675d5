"""Bundles like one that was trained, with other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stackseg.model.bundle import WEIGHTS_FILE, load_bundle, save_bundle


def another(model: Path, folder: Path, *, offset: float = 0.0, **changes: Any) -> Path:
    """Save a bundle like `model` with other weights, whose intensities were measured on brighter planes."""
    bundle = load_bundle(model)
    inference = bundle.inference
    statistics = tuple(
        one.model_copy(update={"low": one.low + offset, "high": one.high + offset / 2, "mean": one.mean + offset})
        for one in inference.intensity.statistics or ()
    )
    policy = inference.intensity.model_copy(update={"statistics": statistics or None})
    weights = load_file(model / WEIGHTS_FILE)
    torch.manual_seed(5)
    moved = {
        name: one + 0.05 * torch.randn_like(one) if name.endswith("weight") else one for name, one in weights.items()
    }
    save_bundle(
        folder,
        inference.model_copy(update={"intensity": policy} | changes),
        moved,
        validation=bundle.spec.validation,
        seen=bundle.spec.seen.model_copy(update={"training": ("ab" * 32,)}),
        profile=bundle.spec.profile,
        lineage=bundle.spec.lineage,
    )
    return folder
