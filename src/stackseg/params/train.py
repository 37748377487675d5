"""How the network is trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stackseg.params.base import Section

LossName = Literal["cross_entropy", "bce", "dice", "focal", "lovasz", "tversky"]
Positive = Annotated[float, Field(gt=0)]


class TrainParams(Section):
    """Section `train`."""

    epochs: int = Field(20, ge=1)
    """Epochs of `patches_per_epoch` random patches."""
    patches_per_epoch: int = Field(192, ge=1)
    """Patches drawn in an epoch."""
    patch_size: int = Field(256, ge=32)
    """Side of a square patch in pixels, a multiple of 32; smaller planes are padded."""
    batch_size: int = Field(8, ge=1)
    """Patches per step, over all processes together."""
    rare_share: float = Field(0.33, ge=0, le=1)
    """Share of the patches that are centred on a pixel of a rare class, each class below its equal share alike."""
    loss: dict[LossName, Positive] = Field({"cross_entropy": 1.0, "dice": 1.0}, min_length=1)
    """Weighted sum of cross_entropy, bce, dice, focal, lovasz, tversky."""
    class_weights: Literal["none", "balanced"] | list[Positive] = "none"
    """Weights of the classes in the loss: none, balanced, or one number per class."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimiser; sgd with Nesterov momentum 0.9."""
    lr: float = Field(1e-3, gt=0, le=10)
    """Learning rate (the peak of one_cycle, the start of cosine and plateau)."""
    weight_decay: float = Field(1e-2, ge=0)
    """Weight decay."""
    schedule: Literal["constant", "cosine", "one_cycle", "plateau"] = "one_cycle"
    """How the learning rate moves."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; null does not clip."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay per step of the moving average of the weights, which then validates and is kept; less in the first steps.
    Null for none."""
    validate_every: int = Field(4, ge=1)
    """Epochs between validations; the last epoch always validates."""
    early_stopping: int | None = Field(None, ge=1)
    """Validations without a better mean IoU after which training ends; null never."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware has it, else fp32; fp16 needs a GPU."""
    channels_last: bool = True
    """Memory layout that convolutions prefer."""
    compile: bool = False
    """torch.compile: worth its start-up time in long trainings."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.patch_size % 32:
            raise ValueError(f"patch_size is {self.patch_size}, not a multiple of 32")
        if self.batch_size > self.patches_per_epoch:
            raise ValueError("batch_size is larger than patches_per_epoch")
        return self
