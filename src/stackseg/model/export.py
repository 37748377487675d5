"""A bundle for another runtime than torch."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stackseg.errors import ModelError
from stackseg.model.bundle import (
    BundleSpec,
    ExportRecord,
    Segmenter,
    compile_network,
    load_bundle,
    loaded_network,
    precision_of,
    read_bundle,
    save_bundle,
)
from stackseg.model.devices import hardware_name
from stackseg.model.runtimes import CONVERTED_FILES, convert, require_runtime
from stackseg.params.inference import Runtime

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_CPU = torch.device("cpu")


def export_bundle(
    folder: Path, runtime: Runtime, out: Path, compare: Callable[[Segmenter, Segmenter], DataclassInstance]
) -> BundleSpec:
    """Convert a bundle, compare it with what torch gives, and save it with the figures in the place of `out`.

    Parameters
    ----------
    folder
        The bundle, which torch computes.
    compare
        Given the model by torch and by the runtime, returns the figures of an `ExportRecord`.

    Raises
    ------
    ModelError
        The runtime is not installed or cannot take the network, or the bundle is an export itself.
    """
    require_runtime(runtime)  # first: the comparison takes long
    spec, weights = read_bundle(folder)
    if spec.inference.runtime != "torch":
        raise ModelError(
            f"an export to {spec.inference.runtime} itself",
            expected="the model that it was made of",
            where=str(folder),
        )
    inference = spec.inference.model_copy(update={"runtime": runtime})
    precision = precision_of(inference, _CPU)
    with tempfile.TemporaryDirectory() as name:
        converted = Path(name)
        network = loaded_network(spec, weights, _CPU, str(folder))
        convert(network, runtime, converted, in_channels=inference.network.in_channels, tile=inference.tile)
        exported = Segmenter(inference, compile_network(network, inference, precision, converted))
        record = ExportRecord(
            files={one: hashlib.sha256((converted / one).read_bytes()).hexdigest() for one in CONVERTED_FILES[runtime]},
            versions={one: version(one) for one in ("torch", runtime)},
            hardware=hardware_name(_CPU),
            **asdict(compare(load_bundle(folder), exported)),
        )
        return save_bundle(
            out,
            inference,
            weights,
            validation=spec.validation,
            seen=spec.seen,
            profile=spec.profile,
            lineage=spec.lineage,
            exported=record,
            converted=converted,
        )
