"""train(): a function with callbacks. Fabric supplies devices, precision and processes; the loop is ours."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from lightning.fabric import Fabric

from stackseg.errors import ModelError, ParamsError
from stackseg.imaging.catalog import Catalog
from stackseg.imaging.counts import confusion_counts, iou_per_class, mean_iou, pixel_accuracy
from stackseg.imaging.specimens import find_specimens
from stackseg.learning.augmentation import build_augmentation, check_augmentation
from stackseg.learning.batches import EpochSampler, PatchDataset, PatchPlan, patch_loader
from stackseg.learning.bundle import (
    Bundle,
    BundleSpec,
    InferenceSpec,
    Lineage,
    SeenPlanes,
    ValidationScore,
    prepare_network,
    save_bundle,
)
from stackseg.learning.checkpoints import BEST_FILE, LAST_FILE, Checkpoints, checkpoint_key
from stackseg.learning.code import code_digest
from stackseg.learning.devices import pick_device, resolve_precision
from stackseg.learning.losses import all_reduce_sum, balanced_weights, build_loss
from stackseg.learning.network import NetworkSpec, build_network, check_forward
from stackseg.learning.normalisation_layers import globalise_batch_norm
from stackseg.learning.optimisation import Schedule, build_average, build_optimizer
from stackseg.learning.segmentation import segment
from stackseg.params import Params

FabricPrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
FABRIC_PRECISION: dict[str, FabricPrecision] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Machine:
    """Where training runs: device name, processes, loader workers per process, and Fabric's strategy for several."""

    device: str = "auto"
    num_processes: int = 1
    num_workers: int = 0
    strategy: str = "ddp"


@dataclass(frozen=True)
class EpochReport:
    """One epoch: mean loss and pixel accuracy on the training patches; validation scores where it validated."""

    epoch: int
    loss: float
    training_pixel_accuracy: float
    lr: float
    seconds: float
    patches_per_second: float
    validation_mean_iou: float | None = None
    validation_pixel_accuracy: float | None = None
    validation_iou: dict[str, float | None] | None = None
    best: bool = False


@dataclass(frozen=True)
class TrainingStart:
    """What a training begins with; `checkpoint_folder` is where an interrupted one finds its notes again."""

    num_epochs: int
    steps_per_epoch: int
    first_epoch: int
    device: str
    precision: str
    num_parameters: int
    checkpoint_folder: Path
    history: tuple[EpochReport, ...]


class Callback(Protocol):
    """Whoever wants to follow a training, on the first process only; an exception from it ends the training."""

    def on_start(self, start: TrainingStart) -> None:
        """Hear that training begins or goes on."""
        ...

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        """Hear of a step; reading the loss waits for the device."""
        ...

    def on_epoch(self, report: EpochReport) -> None:
        """Hear of an epoch."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """The bundle that was saved, and its history."""

    spec: BundleSpec
    history: tuple[EpochReport, ...]


@dataclass
class _State:
    """What changes while training, and what a checkpoint holds."""

    epoch: int
    best_score: float
    num_bad: int
    history: list[EpochReport]


def train(
    params: Params,
    catalog: Catalog,
    *,
    data: Path,
    model: Path,
    checkpoints: Path,
    git: tuple[str | None, bool | None] = (None, None),
    machine: Machine = Machine(),
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
        Folder of the checkpoints; an equal training that was interrupted goes on from there.
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
        What was asked for cannot be done.
    """
    device = pick_device(machine.device)
    precision = resolve_precision(params.train.precision, device)
    fabric = Fabric(
        accelerator="cuda" if device.type == "cuda" else "cpu",
        devices=machine.num_processes if device.index is None else [device.index],
        strategy=machine.strategy if machine.num_processes > 1 else "auto",
        precision=FABRIC_PRECISION[precision],
    )
    fabric.launch()
    if params.train.batch_size % fabric.world_size:
        raise ParamsError(
            f"train.batch_size is {params.train.batch_size}",
            expected=f"a multiple of the {fabric.world_size} processes",
            where="params.yaml",
            remedy="change train.batch_size",
        )
    return _Training(
        params, catalog, data, Checkpoints(checkpoints, _key(params, catalog, fabric)), fabric, machine
    ).run(model, git, callbacks if fabric.is_global_zero else ())


def _key(params: Params, catalog: Catalog, fabric: Fabric) -> str:
    sections = params.model_dump(mode="json", include={"seed", "model", "augment", "train", "inference"})
    machine = (fabric.device.type, fabric.world_size, str(fabric._precision.precision), torch.__version__)
    return checkpoint_key(sections, catalog.digest(), code_digest(), machine)


def inference_spec(params: Params, catalog: Catalog) -> InferenceSpec:
    """Return all that inference will read, from params and catalogue."""
    context = params.model.context_slices
    voxel_sizes = {one.voxel_size_zyx_um for one in catalog.specimens}
    return InferenceSpec(
        network=NetworkSpec(
            architecture=params.model.architecture,
            encoder=params.model.encoder,
            in_channels=catalog.num_channels * (2 * context + 1),
            num_classes=len(catalog.classes),
            decoder_dropout=params.model.decoder_dropout,
        ),
        classes=catalog.classes,
        intensity=catalog.intensity,
        num_channels=catalog.num_channels,
        context_slices=context,
        tile=params.inference.tile,
        overlap=params.inference.overlap,
        precision=params.inference.precision,
        voxel_size_zyx_um=voxel_sizes.pop() if len(voxel_sizes) == 1 else None,
    )


class _Training:
    """One training on one process."""

    def __init__(
        self, params: Params, catalog: Catalog, data: Path, checkpoints: Checkpoints, fabric: Fabric, machine: Machine
    ) -> None:
        self._params = params
        self._catalog = catalog
        self._data = data
        self._checkpoints = checkpoints
        self._fabric = fabric
        self._inference = inference_spec(params, catalog)
        options = params.train
        torch.manual_seed(params.seed)
        network = build_network(self._inference.network, encoder_weights=params.model.encoder_weights)
        num_images = options.batch_size // fabric.world_size
        check_forward(network, self._inference.network.in_channels, options.patch_size, batch_size=num_images)
        if fabric.world_size > 1:
            network = globalise_batch_norm(network, fabric.device)
        if options.channels_last:
            network = network.to(memory_format=torch.channels_last)
        self._bare = network.to(fabric.device)
        optimizer = build_optimizer(self._bare, options)
        self._average = build_average(self._bare, options.ema)
        runnable = cast(torch.nn.Module, torch.compile(self._bare)) if options.compile else self._bare
        self._network, self._optimizer = fabric.setup(runnable, optimizer)
        plan = PatchPlan(
            options.patch_size, options.patches_per_epoch, options.rare_share, params.model.context_slices, params.seed
        )
        augmentation = build_augmentation(params.augment.preset, file=params.augment.file)
        # said here rather than in a loader process in mid-training
        check_augmentation(augmentation, (options.patch_size, options.patch_size, self._inference.network.in_channels))
        self._sampler = EpochSampler(
            options.patches_per_epoch, options.batch_size, rank=fabric.global_rank, num_processes=fabric.world_size
        )
        dataset = PatchDataset(catalog, data, plan, augmentation)
        self._loader = patch_loader(
            dataset, self._sampler, machine.num_workers, pin_memory=fabric.device.type == "cuda"
        )
        self._loss = build_loss(
            {str(name): weight for name, weight in options.loss.items()},
            num_classes=len(catalog.classes),
            class_weights=_class_weights(params, catalog),
            reduce_sum=all_reduce_sum,
        ).to(fabric.device)
        self._schedule = Schedule(self._optimizer, options, options.epochs * len(self._sampler))
        self._state = _State(epoch=0, best_score=-math.inf, num_bad=0, history=[])
        self._specimens = {one.name: one for one in find_specimens(data)}

    def run(
        self, model: Path, git: tuple[str | None, bool | None], callbacks: Sequence[Callback]
    ) -> TrainingResult | None:
        """Train to the end and save the bundle."""
        options = self._params.train
        self._resume()
        start = TrainingStart(
            num_epochs=options.epochs,
            steps_per_epoch=len(self._sampler),
            first_epoch=self._state.epoch,
            device=str(self._fabric.device),
            precision=resolve_precision(options.precision, self._fabric.device),
            num_parameters=sum(one.numel() for one in self._bare.parameters()),
            checkpoint_folder=self._checkpoints.folder,
            history=tuple(self._state.history),
        )
        for one in callbacks:
            one.on_start(start)
        while self._state.epoch < options.epochs and not self._patience_is_over():
            report = self._epoch(callbacks)
            self._state.history.append(report)
            self._state.epoch += 1
            self._save_state()
            for one in callbacks:
                one.on_epoch(report)
        self._fabric.barrier()
        if not self._fabric.is_global_zero:
            return None
        spec = self._save_bundle(model, git)
        self._checkpoints.remove()
        return TrainingResult(spec, tuple(self._state.history))

    def _patience_is_over(self) -> bool:
        patience = self._params.train.early_stopping
        return patience is not None and self._state.num_bad >= patience

    def _epoch(self, callbacks: Sequence[Callback]) -> EpochReport:
        options = self._params.train
        epoch = self._state.epoch
        # dropout is the only randomness left in the loop: seeded per epoch, it needs no place in a checkpoint
        torch.manual_seed(self._params.seed * 1_000_003 + epoch)
        self._sampler.epoch = epoch
        self._network.train()
        started = time.perf_counter()
        sums = torch.zeros(3, dtype=torch.float64, device=self._fabric.device)
        for step, (image_bcyx, target_byx) in enumerate(self._loader):
            loss, logits_bcyx, target_byx = self._step(image_bcyx, target_byx)
            with torch.no_grad():
                valid = target_byx != 255
                right = (logits_bcyx.argmax(1) == target_byx) & valid
                sums += torch.stack([loss.detach().double(), right.sum().double(), valid.sum().double()])
            for one in callbacks:
                one.on_step(epoch, step, loss.detach())
        seconds = time.perf_counter() - started
        if self._fabric.world_size > 1:
            sums[1:] = self._summed(sums[1:].contiguous())
        mean_loss = sums[0].item() / len(self._sampler)
        if not math.isfinite(mean_loss):
            raise ModelError(
                f"the loss is {mean_loss} in epoch {epoch}",
                where="training",
                remedy="lower train.lr, or set train.clip_norm",
            )
        report = EpochReport(
            epoch=epoch,
            loss=mean_loss,
            training_pixel_accuracy=sums[1].item() / max(1.0, sums[2].item()),
            lr=float(self._optimizer.param_groups[0]["lr"]),
            seconds=seconds,
            patches_per_second=len(self._sampler) * options.batch_size / seconds,
        )
        last = epoch + 1 == options.epochs
        return self._validate(report) if last or (epoch + 1) % options.validate_every == 0 else report

    def _step(
        self, image_bcyx: torch.Tensor, target_byx: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        options = self._params.train
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        image_bcyx = image_bcyx.to(self._fabric.device, memory_format=layout, non_blocking=True)
        target_byx = target_byx.to(self._fabric.device, non_blocking=True)
        self._optimizer.zero_grad()
        logits_bcyx = self._network(image_bcyx)
        loss = self._loss(logits_bcyx, target_byx)
        self._fabric.backward(loss)
        if options.clip_norm is not None:
            self._fabric.clip_gradients(
                self._network, self._optimizer, max_norm=options.clip_norm, error_if_nonfinite=False
            )
        self._optimizer.step()
        self._schedule.after_step()
        if self._average is not None:
            self._average.update_parameters(self._bare)
        return loss, logits_bcyx, target_byx

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        return cast(torch.Tensor, self._fabric.all_reduce(values, reduce_op="sum"))

    def _kept_network(self) -> torch.nn.Module:
        return self._bare if self._average is None else self._average.module

    def _validate(self, report: EpochReport) -> EpochReport:
        """Score the validation part by `segment()`, the planes shared among the processes."""
        # a copy, since inference has its own memory layout and mode
        network = copy.deepcopy(self._kept_network())
        bundle = Bundle(self._inference, prepare_network(network, self._fabric.device))
        num_classes = len(self._catalog.classes)
        counts_cc = np.zeros((num_classes, num_classes), np.int64)
        refs = [ref for ref, _ in self._catalog.planes("validation")][
            self._fabric.global_rank :: self._fabric.world_size
        ]
        for name in dict.fromkeys(ref.specimen for ref in refs):
            specimen = self._specimens[name]
            for plane in segment(specimen, bundle, planes=[ref.z for ref in refs if ref.specimen == name]):
                truth_yx = specimen.labels(plane.z, self._catalog.table)
                counts_cc += confusion_counts(truth_yx, plane.mask_yx, num_classes)
        if self._fabric.world_size > 1:
            counts_cc = self._summed(torch.from_numpy(counts_cc).to(self._fabric.device)).cpu().numpy()
        score = mean_iou(counts_cc)
        value = -1.0 if score is None else score
        self._schedule.after_validation(value)
        better = value > self._state.best_score
        self._state.num_bad = 0 if better else self._state.num_bad + 1
        report = EpochReport(
            **{
                **asdict(report),
                "validation_mean_iou": score,
                "validation_pixel_accuracy": pixel_accuracy(counts_cc),
                "validation_iou": dict(zip(self._inference.class_names, iou_per_class(counts_cc), strict=True)),
                "best": better,
            }
        )
        if better:
            self._state.best_score = value
            if self._fabric.is_global_zero:
                self._checkpoints.save(BEST_FILE, {"weights": network.state_dict(), "report": asdict(report)})
        return report

    def _save_state(self) -> None:
        if not self._fabric.is_global_zero:
            return
        self._checkpoints.save(
            LAST_FILE,
            {
                "weights": self._bare.state_dict(),
                "average": None if self._average is None else self._average.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
                "scaler": self._scaler_state(),
                "epoch": self._state.epoch,
                "best_score": self._state.best_score,
                "num_bad": self._state.num_bad,
                "history": [asdict(one) for one in self._state.history],
            },
        )

    def _resume(self) -> None:
        held = self._checkpoints.load(LAST_FILE)
        if held is None:
            return
        self._bare.load_state_dict(held["weights"])
        if self._average is not None:
            self._average.load_state_dict(held["average"])
        self._optimizer.load_state_dict(held["optimizer"])
        self._schedule.load_state_dict(held["schedule"])
        scaler = getattr(self._fabric._precision, "scaler", None)
        if scaler is not None and held["scaler"] is not None:
            scaler.load_state_dict(held["scaler"])
        history = [EpochReport(**one) for one in held["history"]]
        self._state = _State(held["epoch"], held["best_score"], held["num_bad"], history)

    def _scaler_state(self) -> dict[str, Any] | None:
        # only fp16 scales its loss; Fabric keeps the scaler to itself
        scaler = getattr(self._fabric._precision, "scaler", None)
        return None if scaler is None else scaler.state_dict()

    def _save_bundle(self, model: Path, git: tuple[str | None, bool | None]) -> BundleSpec:
        best = self._checkpoints.load(BEST_FILE)
        if best is None:
            raise ModelError("no best epoch was kept", where=str(self._checkpoints.folder), remedy="train again")
        report = EpochReport(**best["report"])
        options = self._params
        return save_bundle(
            model,
            self._inference,
            best["weights"],
            validation=ValidationScore(
                epoch=report.epoch,
                mean_iou=report.validation_mean_iou,
                iou=report.validation_iou or {},
                pixel_accuracy=report.validation_pixel_accuracy,
                precision=resolve_precision(self._inference.precision, self._fabric.device),
                device=self._fabric.device.type,
            ),
            seen=SeenPlanes(
                training=tuple(plane.image_sha256 for _, plane in self._catalog.planes("training")),
                validation=tuple(plane.image_sha256 for _, plane in self._catalog.planes("validation")),
                gap=tuple(plane.image_sha256 for _, plane in self._catalog.planes("gap")),
            ),
            lineage=_lineage(options, self._catalog, git),
        )


def _class_weights(params: Params, catalog: Catalog) -> list[float] | None:
    asked = params.train.class_weights
    if asked == "none":
        return None
    if asked == "balanced":
        return balanced_weights(catalog.class_pixels("training"))
    if len(asked) != len(catalog.classes):
        raise ParamsError(
            f"train.class_weights has {len(asked)} numbers",
            expected=f"{len(catalog.classes)}, one per class",
            where="params.yaml",
            remedy="mend the list, or set it to balanced or none",
        )
    return list(asked)


def _lineage(params: Params, catalog: Catalog, git: tuple[str | None, bool | None]) -> Lineage:
    from importlib.metadata import version

    packages = ("torch", "segmentation-models-pytorch", "timm", "albumentations", "lightning", "numpy", "tifffile")
    return Lineage(
        stackseg_version=version("stackseg"),
        code_digest=code_digest(),
        git_commit=git[0],
        git_dirty=git[1],
        data_md5=catalog.data_md5,
        catalog_digest=catalog.digest(),
        params=params.model_dump(mode="json", include={"seed", "model", "augment", "train", "inference"}),
        versions={name: version(name) for name in packages},
    )
