"""Building what trials may ask for, once, before the first trial."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stackseg.model.devices import resolve_precision
from stackseg.model.network import NetworkSpec, build_network
from stackseg.search.space.preflight import some_values
from stackseg.search.space.space import WHERE, Space
from stackseg.training.augmentation import build_augmentation, check_augmentation
from stackseg.training.losses import training_loss


def check_buildable(space: Space, in_channels: int, class_pixels: Sequence[int], device: torch.device) -> None:
    """Build every combination of architecture and encoder once, with its weights, losses, precisions and pipelines.

    Weights that come from a hub are then there before workers ask for them at the same moment.

    Parameters
    ----------
    space
        Its networks and losses.
    in_channels
        Channels of an image, context slices included.
    class_pixels
        Labelled training pixels of each class.
    device
        Where the trials are made.

    Raises
    ------
    ParamsError, ModelError, MachineError
        One is unknown or impossible.
    """
    for chosen in space.networks():
        model = space.present.override(chosen, WHERE).model
        spec = NetworkSpec(
            architecture=model.architecture,
            encoder=model.encoder,
            in_channels=in_channels,
            num_classes=len(class_pixels),
            decoder_dropout=model.decoder_dropout,
        )
        build_network(spec, encoder_weights=model.encoder_weights)
    size = space.present.train.patch_size
    for file in space.augment_files():
        check_augmentation(build_augmentation("file", file=file), (size, size, in_channels))
    for one in space.dimensions:
        if one.key.startswith(("train.loss", "train.class_weights")):
            for value in some_values(one):
                training_loss(space.present.override({one.key: one.value_of(value)}, WHERE).train, class_pixels)
        if one.key == "train.precision":
            for value in some_values(one):
                resolve_precision(one.value_of(value), device)
