"""What learns: the network with its loss, optimiser, schedule and moving average, and one step of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.fabric import Fabric
from timm.layers.norm_act import convert_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.dataset.records import Catalog
from stackseg.errors import MachineError
from stackseg.model.bundle import InferenceSpec
from stackseg.model.network import build_network, check_forward
from stackseg.params import Params
from stackseg.training.losses import merge_into_first, training_loss
from stackseg.training.optim import Schedule, build_average, build_optimizer
from stackseg.training.parent import Parent


class Learner:
    """A network that learns from batches.

    Parameters
    ----------
    params
        Model and training are read.
    catalog
        Its classes and plane sizes.
    inference
        The network's make, and the windows that it will have to take.
    fabric
        Device, precision and processes.
    num_steps
        Steps of the whole training, for the schedule.
    parent
        The model whose weights it begins with.

    Raises
    ------
    ParamsError, ModelError
        The network cannot be built, or take the patches or the planes.
    """

    def __init__(
        self,
        params: Params,
        catalog: Catalog,
        inference: InferenceSpec,
        fabric: Fabric,
        num_steps: int,
        parent: Parent | None,
    ) -> None:
        options = params.train
        self._fabric = fabric
        self._clip_norm = options.clip_norm
        self._layout = torch.channels_last if options.channels_last else torch.contiguous_format
        torch.manual_seed(params.seed)
        network = build_network(inference.network, encoder_weights=params.model.encoder_weights)
        if parent is not None:
            parent.load_into(network)
        _check_sizes(network, catalog, inference, options.patch_size, options.batch_size // fabric.world_size)
        if fabric.world_size > 1:
            network = with_common_normalisation(network, fabric)
        self._bare = network.to(device=fabric.device, memory_format=self._layout)  # type: ignore[call-overload]
        self._average = build_average(self._bare, options.ema)
        optimizer = build_optimizer(self._bare, options)
        runnable = cast(torch.nn.Module, torch.compile(self._bare)) if options.compile else self._bare
        self._network, self._optimizer = fabric.setup(runnable, optimizer)
        class_pixels = catalog.class_pixels("training")
        self._loss = training_loss(options, class_pixels, instances=catalog.instances).to(fabric.device)
        self._is_partial = any(one.not_annotated for one in catalog.specimens)
        self._schedule = Schedule(self._optimizer, options, num_steps)

    @property
    def kept_network(self) -> torch.nn.Module:
        """The network that validates and is kept: the moving average, where there is one."""
        return self._bare if self._average is None else self._average.module

    @property
    def num_parameters(self) -> int:
        """Trainable and other parameters of the network."""
        return sum(one.numel() for one in self._bare.parameters())

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def begin_epoch(self) -> None:
        """Go into training mode."""
        self._network.train()

    def step(
        self, image_bcyx: torch.Tensor, target_byx: torch.Tensor, missing_bc: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Learn from one batch, of which `missing_bc` says which classes nobody annotated on which image.

        Returns
        -------
        loss, pixels_2
            The loss of all processes' batches, and (pixels predicted right, pixels that count) of this one's: tensors
            on the device, so that nobody has to wait for it.
        """
        image_bcyx = image_bcyx.to(self._fabric.device, memory_format=self._layout, non_blocking=True)
        target_byx = target_byx.to(self._fabric.device, non_blocking=True)
        self._optimizer.zero_grad()
        logits_bcyx = self._network(image_bcyx)
        if self._is_partial:
            logits_bcyx = merge_into_first(logits_bcyx, missing_bc.to(self._fabric.device, non_blocking=True))
        loss = self._loss(logits_bcyx, target_byx)
        self._fabric.backward(loss)
        if self._clip_norm is not None:
            self._fabric.clip_gradients(
                self._network, self._optimizer, max_norm=self._clip_norm, error_if_nonfinite=False
            )
        self._optimizer.step()
        self._schedule.after_step()
        if self._average is not None:
            self._average.update_parameters(self._bare)
        with torch.no_grad():
            valid_byx = target_byx != IGNORE_INDEX
            right_byx = (logits_bcyx.argmax(1) == target_byx) & valid_byx
            return loss.detach(), torch.stack([right_byx.sum(), valid_byx.sum()])

    def after_validation(self, score: float) -> None:
        """Move the learning rate by the score, where the schedule asks for it."""
        self._schedule.after_validation(score)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs: tensors and plain values."""
        scaler = self._scaler()
        return {
            "weights": self._bare.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self._bare.load_state_dict(state["weights"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        scaler = self._scaler()
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])

    def _scaler(self) -> Any:
        # only fp16 scales its loss; Fabric keeps the scaler to itself
        return getattr(self._fabric._precision, "scaler", None)


def _check_sizes(
    network: torch.nn.Module, catalog: Catalog, inference: InferenceSpec, patch_size: int, batch_size: int
) -> None:
    """Refuse a network that could not train on the patches, or not segment the planes that it will be scored on."""
    in_channels = inference.network.in_channels
    check_forward(network, in_channels, patch_size, batch_size=batch_size)
    windows = {inference.tiling.window_shape(plane.shape_yx) for _, plane in catalog.planes("validation", "test")}
    for window in {min(windows), max(windows)} - {(patch_size, patch_size)}:
        check_forward(network, in_channels, window)


def with_common_normalisation(network: torch.nn.Module, fabric: Fabric) -> torch.nn.Module:
    """Return the network with batch statistics over all processes, so that they train as one would.

    Raises
    ------
    MachineError
        On the CPU, where torch's synchronised batch normalisation does not run.
    """
    if fabric.device.type == "cuda":
        # timm's conversion keeps the activation that some of its own layers hold
        synchronised: torch.nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # has no types
        return synchronised
    if any(isinstance(one, _BatchNorm) for one in network.modules()):
        raise MachineError(
            f"{fabric.world_size} CPU processes for a network with batch normalisation",
            expected="one process, whose threads use all cores",
            where="--processes",
            remedy="train in one process or on GPUs, or choose a network without it, as FPN on tu-convnext_atto",
        )
    return network
