"""The model from whose weights a training begins, and what it must be for that."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from stackseg.dataset.records import PARTS, Catalog
from stackseg.errors import ModelError, ParamsError
from stackseg.model.bundle import BundleSpec, InferenceSpec, ParentRecord, load_weights, read_bundle
from stackseg.params import Params
from stackseg.training.export import inference_spec

WHERE = "model.init"


@dataclass(frozen=True)
class Parent:
    """A bundle in memory: what is recorded of it, its bundle.json, and its weights."""

    record: ParentRecord
    spec: BundleSpec
    weights: dict[str, torch.Tensor]

    def load_into(self, network: torch.nn.Module) -> None:
        """Put its weights into a network of its own make.

        Raises
        ------
        ModelError
            The installed versions build another network.
        """
        load_weights(network, self.weights, self.spec, self.record.reference)


def read_parent(folder: Path, reference: str, version: str | None = None) -> Parent:
    """Read the bundle that a training begins from, and verify its digest.

    Parameters
    ----------
    folder
        Where it lies, or a copy of it.
    reference, version
        What `model.init` says, and the number of the registered version that it means.

    Raises
    ------
    ModelError
        The folder is no bundle, or a damaged one.
    """
    spec, weights = read_bundle(folder)
    return Parent(ParentRecord(reference=reference, version=version, digest=spec.digest), spec, weights)


def check_parent(parent: Parent | None, params: Params, catalog: Catalog, *, folds: int | None = None) -> None:
    """Refuse a parent of another make, or one that has seen planes on which its child is to be scored.

    Parameters
    ----------
    parent
        What `model.init` names, or None where that is null.
    params, catalog
        The child's.
    folds
        Ask it of each of so many folds instead.

    Raises
    ------
    ParamsError, ModelError
        It does not go with params or data.
    """
    handed = None if parent is None else parent.record.reference
    if params.model.init != handed:
        raise ParamsError(
            f"it is {params.model.init}, and the weights that were handed over are those of {handed}",
            where=WHERE,
            remedy="pass parent=read_parent(FOLDER, params.model.init) to train()",
        )
    if parent is not None:
        _check_make(parent, inference_spec(params, catalog))
        _check_unseen(parent, catalog, folds)


def _check_make(parent: Parent, own: InferenceSpec) -> None:
    """Refuse a parent whose weights would not fit, or would mean other classes; intensities may differ."""
    other = parent.spec.inference
    if other.members:
        raise ModelError(
            f"{parent.record} is an ensemble", expected="a single model", where=WHERE, remedy="name one of its members"
        )
    pairs = (
        ("model.architecture", own.network.architecture, other.network.architecture),
        ("model.encoder", own.network.encoder, other.network.encoder),
        ("the number of image channels", own.num_channels, other.num_channels),
        ("model.context_slices", own.context_slices, other.context_slices),
        ("data.instances", own.instances, other.instances),
        ("data.classes", ", ".join(own.class_names), ", ".join(other.class_names)),
    )
    for what, found, expected in pairs:
        if found != expected:
            raise ModelError(
                f"{what} is {found}",
                expected=f"{expected}, as {parent.record} has it",
                where=WHERE,
                remedy="make it the same, name another model, or set model.init to null",
            )


def _check_unseen(parent: Parent, catalog: Catalog, folds: int | None) -> None:
    """Refuse planes that would flatter the child: it is tested on what its parent has never seen, as at the gate."""
    seen = parent.spec.seen
    known = {"test": {*seen.training, *seen.validation, *seen.gap}, "validation": set(seen.training)}
    planes = dict(catalog.planes(*PARTS))
    own = {ref: plane.part for ref, plane in planes.items()}
    # constant planes are all alike, and give nothing away
    digests = {ref: plane.image_sha256 for ref, plane in planes.items() if not plane.constant}
    for fold, parts in enumerate([own] if folds is None else catalog.fold_parts(folds)):
        found = Counter(part for ref, part in parts.items() if digests.get(ref) in known.get(part, ()))
        if found:
            sizes = Counter(parts.values())
            told = " and ".join(f"{num} of {sizes[part]} {part} planes" for part, num in sorted(found.items()))
            raise ParamsError(
                f"{parent.record} has seen {told}{'' if folds is None else f' of fold {fold}'}",
                expected="planes that are new to it, or the scores would flatter",
                where=WHERE,
                remedy="keep its split and seed, name new planes by split.method: explicit, or set model.init to null",
            )
