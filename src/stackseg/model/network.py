"""Segmentation networks by name: any architecture of segmentation-models-pytorch on any of its or timm's encoders."""

from __future__ import annotations

import difflib
import inspect
import math
import typing
import warnings
from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.func import functional_call

from stackseg.errors import ModelError, ParamsError
from stackseg.model.encoder_weights import encoder_weights_arguments
from stackseg.model.weights_file import find_weights_file, load_encoder

# The architectures that have dropout layers behind the encoder.
DROPOUT_ARCHITECTURES = ("DPT", "DeepLabV3", "DeepLabV3Plus", "FPN", "PSPNet")
# timm's names for "take images of any size"; an encoder class knows one, both or none of them.
ANY_SIZE_OPTIONS = {"dynamic_img_size": True, "strict_img_size": False}


def architecture_names() -> tuple[str, ...]:
    """Return the names of all architectures, as smp spells its classes."""
    return tuple(kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values())


class NetworkSpec(BaseModel):
    """All that is needed to build a network before its weights are loaded.

    ``architecture`` is one of smp's, in any case of letters; ``encoder`` one of smp's, or ``tu-`` and one of timm's;
    ``in_channels`` counts image channels times context planes; ``decoder_dropout`` 0 switches every dropout behind the
    encoder off, also where smp has one by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    encoder: str
    in_channels: int = Field(ge=1)
    num_classes: int = Field(ge=2)
    decoder_dropout: float = Field(0.0, ge=0, lt=1)

    @field_validator("architecture")
    @classmethod
    def _spelled_as_smp_does(cls, name: str) -> str:
        return {one.lower(): one for one in architecture_names()}.get(name.lower(), name)


def build_network(spec: NetworkSpec, *, encoder_weights: str | None) -> nn.Module:
    """Return the network: (B, in_channels, Y, X) float → logits (B, num_classes, Y, X).

    Parameters
    ----------
    spec
        Architecture, encoder, channels, classes, dropout.
    encoder_weights
        Pretrained weights of the encoder: a name, fetched if need be, or a file. None draws all weights at random and
        uses no network, as a bundle does before it loads its own. The first convolution is adapted to ``in_channels``.

    Raises
    ------
    ParamsError
        Unknown architecture or encoder, with the nearest name; dropout where there is none.
    ModelError
        The architecture cannot take this encoder, or pretrained weights cannot be had.
    """
    _check_names(spec)
    file = find_weights_file(spec.encoder, encoder_weights)
    weights = (
        {"encoder_weights": None}
        if encoder_weights is None or file is not None
        else encoder_weights_arguments(spec.encoder, encoder_weights)
    )
    try:
        with warnings.catch_warnings():
            # "timm-…" encoders are deprecated by smp in favour of "tu-…", but there throughout the releases we allow.
            warnings.filterwarnings("ignore", "`timm-` encoders are deprecated", DeprecationWarning)
            # Advice to DPT about encoders without class token: its readout is then one more layer, and harmless.
            warnings.filterwarnings("ignore", "Encoder does not have prefix tokens", UserWarning)
            network: nn.Module = smp.create_model(
                spec.architecture,
                spec.encoder,
                in_channels=spec.in_channels,
                classes=spec.num_classes,
                **weights,
                **_any_size_arguments(spec.encoder),
            )
    except Exception as error:  # smp and timm refuse a combination with whatever their code runs into
        raise ModelError(
            f"{spec.architecture} cannot be built on encoder '{spec.encoder}' ({_first_line(error)})",
            where="model.encoder",
            remedy="choose another encoder or architecture; Unet on resnet18 is the usual start",
        ) from error
    if file is not None:
        load_encoder(network.encoder, spec.encoder, spec.in_channels, file)  # type: ignore[arg-type]  # a module
    _set_decoder_dropout(network, spec)
    return network


def size_multiple(network: nn.Module) -> int:
    """Return the number of pixels of which tile and patch sides must be multiples, 32 for most architectures.

    Only Unet would take any size, but then its grid shifts against the encoder's, so it gets the encoder's stride too.
    Some encoders ask for more (windowed attention): :func:`check_forward` tells.
    """
    stride = int(network.encoder.output_stride)  # type: ignore[union-attr, arg-type]  # every smp encoder has one
    # DPT resamples its patches of 8, 14 or 16 pixels to a pyramid that goes down to 1/32
    return math.lcm(32, stride) if isinstance(network, smp.DPT) else stride


def check_forward(network: nn.Module, in_channels: int, size: int | tuple[int, int], *, batch_size: int = 2) -> None:
    """Raise unless the network can train on ``batch_size`` images of ``size`` (Y, X) pixels and segment one.

    With several processes, ``batch_size`` counts the images of all: their batch normalisation is common.
    Only shapes are computed, on torch's meta device: in a fraction of a second at any size, and without touching
    weights, statistics, mode or random state.

    Raises
    ------
    ModelError
        The network cannot run, or its logits are not as large as the image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    for training, num_images in ((True, batch_size), (False, 1)):
        image_bcyx = torch.empty(num_images, in_channels, height, width, device="meta")
        complaint = _complaint(network, image_bcyx, training=training)
        if complaint:
            task = f"train on {num_images} image{'s' * (num_images > 1)}" if training else "segment an image"
            raise ModelError(
                f"{_title(network)} cannot {task} of {height} × {width} pixels ({complaint})",
                where="model.architecture",
                remedy=_remedy(network, height, width, "more than 1 value per channel" in complaint),
            )


def _complaint(network: nn.Module, image_bcyx: Tensor, *, training: bool) -> str:
    """Return why the network cannot run on the image, or ""; only shapes are computed, on the meta device."""
    state = {name: one.to("meta") for name, one in [*network.named_parameters(), *network.named_buffers()]}
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.train(training)
        with torch.no_grad():
            logits_bcyx = functional_call(network, state, (image_bcyx,))
    except Exception as error:  # whatever the network's own code runs into is the answer
        return _first_line(error)
    finally:
        for module, mode in modes:
            module.training = mode
    found, wanted = tuple(logits_bcyx.shape[-2:]), tuple(image_bcyx.shape[-2:])
    return "" if found == wanted else f"its output is {found[0]} × {found[1]}"


def _title(network: nn.Module) -> str:
    return f"{type(network).__name__} on {str(network.name).partition('-')[2]}"  # smp's name: <architecture>-<encoder>


def _remedy(network: nn.Module, height: int, width: int, starved: bool) -> str:
    multiple = size_multiple(network)
    if height % multiple or width % multiple:
        return f"make train.patch_size and inference.tile multiples of {multiple}, or choose another architecture"
    if starved:
        return "raise train.batch_size to 2 or more, or train.patch_size"
    return "choose a larger train.patch_size and inference.tile, or another encoder or architecture"


def _check_names(spec: NetworkSpec) -> None:
    if spec.architecture not in architecture_names():
        raise _unknown("architecture", spec.architecture, architecture_names())
    if spec.encoder.startswith("tu-"):
        if not timm.is_model(spec.encoder.removeprefix("tu-")):
            raise _unknown("encoder", spec.encoder, [f"tu-{name}" for name in timm.list_models()])
    elif spec.encoder not in smp.encoders.encoders:
        raise _unknown(
            "encoder", spec.encoder, [*smp.encoders.encoders, *(f"tu-{name}" for name in timm.list_models())]
        )


def _unknown(key: str, name: str, names: Sequence[str]) -> ParamsError:
    near = difflib.get_close_matches(name.lower(), [one.lower() for one in names], n=3, cutoff=0.0)
    spelled = {one.lower(): one for one in names}
    return ParamsError(
        f"unknown {key} '{name}'",
        expected=f"for example {', '.join(spelled[one] for one in near)}",
        where=f"model.{key}",
        remedy="see segmentation-models-pytorch for its names; an encoder of timm is written tu-<name>",
    )


def _any_size_arguments(encoder: str) -> dict[str, bool]:
    """Return what makes a transformer of timm take images of any size, which smp passes on to it."""
    if not encoder.startswith("tu-"):
        return {}
    hints = typing.get_type_hints(timm.models.model_entrypoint(encoder.removeprefix("tu-")))
    known = inspect.signature(hints["return"]).parameters if "return" in hints else {}
    return {name: value for name, value in ANY_SIZE_OPTIONS.items() if name in known}


def _set_decoder_dropout(network: nn.Module, spec: NetworkSpec) -> None:
    parts: list[Any] = [network.decoder, network.segmentation_head]
    layers = [one for part in parts for one in part.modules() if isinstance(one, nn.modules.dropout._DropoutNd)]
    if spec.decoder_dropout and not layers:
        raise ParamsError(
            f"decoder_dropout {spec.decoder_dropout} with {spec.architecture}, which has no dropout",
            expected=f"0, or one of {', '.join(DROPOUT_ARCHITECTURES)}",
            where="model.decoder_dropout",
            remedy="set it to 0 or choose one of those architectures",
        )
    for layer in layers:
        layer.p = spec.decoder_dropout


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
