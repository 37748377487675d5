"""train(): a function with callbacks. Fabric supplies devices, precision and processes; the loop is ours."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from lightning.fabric import Fabric

from stackseg.dataset.records import Catalog
from stackseg.errors import ModelError
from stackseg.model.bundle import BundleSpec
from stackseg.model.code_digest import code_digest
from stackseg.model.devices import resolve_precision
from stackseg.model.weights_file import weights_origin
from stackseg.params import Params
from stackseg.training.augmentation import build_augmentation, check_augmentation, load_pipeline
from stackseg.training.callbacks import Callback, EpochReport, TrainingStart
from stackseg.training.checkpoints import Checkpoints, checkpoint_key
from stackseg.training.export import bundle_training, inference_spec, trained_with
from stackseg.training.launch import Machine, launch
from stackseg.training.learner import Learner
from stackseg.training.parent import Parent, check_parent
from stackseg.training.patches import EpochSampler, PatchDataset, PatchPlan, patch_loader
from stackseg.training.validation import Validation, sum_over_processes

__all__ = ["Callback", "EpochReport", "Machine", "TrainingResult", "TrainingStart", "inference_spec", "train"]


@dataclass(frozen=True)
class TrainingResult:
    """The bundle that was saved, and its history."""

    spec: BundleSpec
    history: tuple[EpochReport, ...]


def train(
    params: Params,
    catalog: Catalog,
    *,
    data: Path,
    model: Path,
    checkpoints: Path,
    parent: Parent | None = None,
    git: tuple[str | None, bool | None] = (None, None),
    machine: Machine = Machine(),  # noqa: B008  # it is frozen
    callbacks: Sequence[Callback] = (),
) -> TrainingResult | None:
    """Train a network on the training part and save the bundle of its best epoch.

    Parameters
    ----------
    params
        Model, augmentation, training and inference are read; the classes and the split are the catalogue's.
    catalog
        The data set.
    data
        Folder of the specimens.
    model
        Folder into which the bundle is put, at the end and whole.
    checkpoints
        Folder of the checkpoints; an equal training that was interrupted goes on from there. They stay when training
        has ended: until its outputs are recorded, a kill must not cost all of it.
    parent
        The model that `model.init` names, from `read_parent`; None where that is null.
    git
        Commit and whether the tree is dirty, for the lineage.
    machine
        Device, processes and workers.
    callbacks
        Called on the first process.

    Returns
    -------
    TrainingResult
        On the first process; None on the others.

    Raises
    ------
    ParamsError, ModelError, DataError, MachineError
        What was asked for cannot be done, or an equal training is running.
    """
    catalog.require_test_apart(params.model.context_slices)
    check_parent(parent, params, catalog)
    fabric = launch(machine, params.train)
    kept = Checkpoints(checkpoints, _key(params, catalog, fabric, parent))
    with kept.held() if fabric.is_global_zero else nullcontext():
        training = _Training(params, catalog, data, kept, fabric, machine, parent)
        training.run(callbacks if fabric.is_global_zero else ())
        if not fabric.is_global_zero:
            return None
        best = kept.load_best()
        if best is None:
            raise ModelError("no best epoch was kept", where=str(kept.folder), remedy="train again")
        spec = bundle_training(
            model,
            inference_spec(params, catalog),
            best["weights"],
            EpochReport(**best["report"]),
            params=params,
            catalog=catalog,
            git=git,
            device=fabric.device,
            parent=parent,
        )
    return TrainingResult(spec, tuple(training.history))


def _key(params: Params, catalog: Catalog, fabric: Fabric, parent: Parent | None) -> str:
    """Return what only an equal training shares: the same params, data, first weights, code and kind of machine."""
    # params name the files and the parent only
    pipeline = None if params.augment.file is None else load_pipeline(params.augment.file)
    origin = weights_origin(params.model.encoder, params.model.encoder_weights)
    files = (pipeline, None if origin is None else origin.sha256, None if parent is None else parent.record.digest)
    precision = resolve_precision(params.train.precision, fabric.device)
    machine = (fabric.device.type, fabric.world_size, precision, torch.__version__)
    return checkpoint_key(trained_with(params), files, catalog.digest(), code_digest(), machine)


class _Training:
    """The loop of one training, on one process."""

    def __init__(
        self,
        params: Params,
        catalog: Catalog,
        data: Path,
        checkpoints: Checkpoints,
        fabric: Fabric,
        machine: Machine,
        parent: Parent | None,
    ) -> None:
        options = params.train
        inference = inference_spec(params, catalog)
        self._params = params
        self._parent = None if parent is None else parent.record
        self._checkpoints = checkpoints
        self._fabric = fabric
        self._sampler = EpochSampler(
            options.patches_per_epoch, options.batch_size, rank=fabric.global_rank, num_processes=fabric.world_size
        )
        self._learner = Learner(params, catalog, inference, fabric, options.epochs * len(self._sampler), parent)
        augmentation = build_augmentation(params.augment.preset, file=params.augment.file)
        # said here rather than in a loader process in mid-training
        check_augmentation(augmentation, (options.patch_size, options.patch_size, inference.network.in_channels))
        plan = PatchPlan(
            options.patch_size, options.patches_per_epoch, options.rare_share, params.model.context_slices, params.seed
        )
        num_loaders = machine.num_processes * max(1, machine.num_workers)
        self._loader = patch_loader(
            PatchDataset(catalog, data, plan, augmentation, memory_share=1 / num_loaders),
            self._sampler,
            machine.num_workers,
            pin_memory=fabric.device.type == "cuda",
        )
        self._validation = Validation(catalog, data, inference, fabric)
        self._best_score = -math.inf
        self._num_bad = 0
        self.history: list[EpochReport] = []

    def run(self, callbacks: Sequence[Callback]) -> None:
        """Train to the last epoch, from where an interrupted training stopped."""
        options = self._params.train
        set_aside = self._resume()
        start = TrainingStart(
            num_epochs=options.epochs,
            steps_per_epoch=len(self._sampler),
            first_epoch=len(self.history),
            device=str(self._fabric.device),
            precision=resolve_precision(options.precision, self._fabric.device),
            num_parameters=self._learner.num_parameters,
            checkpoint_folder=self._checkpoints.folder,
            history=tuple(self.history),
            damaged_checkpoints=set_aside,
            parent=self._parent,
        )
        for one in callbacks:
            one.on_start(start)
        while len(self.history) < options.epochs and not self._patience_is_over():
            report = self._epoch(len(self.history), callbacks)
            if report.epoch + 1 == options.epochs or (report.epoch + 1) % options.validate_every == 0:
                report = self._validate(report, callbacks)
            self.history.append(report)
            if len(self.history) == options.epochs or self._patience_is_over():
                self._checkpoints.finish()  # so that the last state of all is not left out
            self._save()
            for one in callbacks:
                one.on_epoch(report)
        self._checkpoints.finish()
        self._fabric.barrier()

    def _patience_is_over(self) -> bool:
        patience = self._params.train.early_stopping
        return patience is not None and self._num_bad >= patience

    def _epoch(self, epoch: int, callbacks: Sequence[Callback]) -> EpochReport:
        # dropout is the only randomness left in the loop: seeded per epoch, it needs no place in a checkpoint
        torch.manual_seed(self._params.seed * 1_000_003 + epoch)
        self._sampler.epoch = epoch
        self._learner.begin_epoch()
        started = time.perf_counter()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._fabric.device)
        pixels_2 = torch.zeros(2, dtype=torch.int64, device=self._fabric.device)
        for step, batch in enumerate(self._loader):
            loss, step_pixels_2 = self._learner.step(*batch)
            loss_sum += loss
            pixels_2 += step_pixels_2
            for one in callbacks:
                one.on_step(epoch, step, loss)
        mean_loss = loss_sum.item() / len(self._sampler)
        seconds = time.perf_counter() - started
        if not math.isfinite(mean_loss):
            raise ModelError(
                f"the loss is {mean_loss} in epoch {epoch + 1}",
                where="training",
                remedy="lower train.lr, or set train.clip_norm",
            )
        num_right, num_valid = sum_over_processes(self._fabric, pixels_2).tolist()
        return EpochReport(
            epoch=epoch,
            loss=mean_loss,
            training_pixel_accuracy=num_right / max(1, num_valid),
            lr=self._learner.lr,
            seconds=seconds,
            patches_per_second=len(self._sampler) * self._params.train.batch_size / seconds,
        )

    def _validate(self, report: EpochReport, callbacks: Sequence[Callback]) -> EpochReport:
        """Score the epoch, and keep its weights if they are the best so far."""
        network = self._learner.kept_network
        scored, shown = self._validation.score(network, report)
        # without a labelled pixel there is no score: then the first epoch is as good as any
        score = -1.0 if scored.validation_mean_iou is None else scored.validation_mean_iou
        self._learner.after_validation(score)
        if score <= self._best_score:
            self._num_bad += 1
        else:
            self._best_score, self._num_bad = score, 0
            scored = replace(scored, best=True)
            if self._fabric.is_global_zero:
                self._checkpoints.save_best({"weights": network.state_dict(), "report": asdict(scored)})
        for one in callbacks:
            one.on_validation(scored, shown)
        return scored

    def _save(self) -> None:
        if self._fabric.is_global_zero:
            state = {
                "learner": self._learner.state_dict(),
                "best_score": self._best_score,
                "num_bad": self._num_bad,
                "history": [asdict(one) for one in self.history],
            }
            self._checkpoints.save_last_meanwhile(state)

    def _resume(self) -> Path | None:
        """Go on from the checkpoints; return where they are if they were damaged, so that training begins anew."""
        set_aside = self._checkpoints.set_aside_damaged() if self._fabric.is_global_zero else None
        self._fabric.barrier()
        held = self._checkpoints.load_last()
        if held is not None:
            self._learner.load_state_dict(held["learner"])
            self._best_score, self._num_bad = held["best_score"], held["num_bad"]
            self.history = [EpochReport(**one) for one in held["history"]]
        return set_aside
