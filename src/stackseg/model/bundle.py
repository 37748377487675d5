"""A trained model as a folder that explains itself: model.safetensors and bundle.json."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stackseg.atomic import atomic_folder, write_text
from stackseg.dataset.intensity_profile import IntensityProfile
from stackseg.dataset.normalisation import IntensityPolicy
from stackseg.dataset.records import ClassRecord
from stackseg.errors import MachineError, ModelError
from stackseg.model.devices import resolve_precision
from stackseg.model.ensemble_network import Member, build_for_inference, tile_multiple
from stackseg.model.fuse_batchnorm import fold_normalisation
from stackseg.model.network import NetworkSpec
from stackseg.model.runtimes import CompiledNetwork, convert, open_engine, require_runtime
from stackseg.model.tiling import MULTIPLE, Tiling
from stackseg.model.weights_file import WeightsOrigin
from stackseg.params.inference import Runtime, Tta

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
SPEC_FILE = "bundle.json"


class Record(BaseModel):
    """Frozen part of bundle.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InferenceSpec(Record):
    """All that inference reads; with the weights it makes the digest."""

    network: NetworkSpec
    classes: tuple[ClassRecord, ...]
    intensity: IntensityPolicy
    num_channels: int
    context_slices: int
    tile: int
    overlap: int
    precision: Literal["auto", "fp32", "bf16"]
    voxel_size_zyx_um: tuple[float | None, float | None, float | None] | None
    # those that older bundles lack are left out where they say nothing: so their digests stay
    tta: Tta = Field("none", exclude_if=lambda tta: tta == "none")
    """Test-time augmentation."""
    orthogonal: bool = Field(False, exclude_if=lambda orthogonal: not orthogonal)
    """Whether it averages over xy, xz and yz sections of a stack."""
    instances: bool = Field(False, exclude_if=lambda instances: not instances)
    """Whether it tells the objects of the second class apart, by an output more than there are classes."""
    members: tuple[Member, ...] = Field((), exclude_if=lambda members: not members)
    """The networks of an ensemble; `network` is the first of them."""
    runtime: Runtime = Field("torch", exclude_if=lambda runtime: runtime == "torch")
    """What computes it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        in_channels = self.num_channels * (2 * self.context_slices + 1)
        if self.num_channels < 1 or self.context_slices < 0 or in_channels != self.network.in_channels:
            raise ValueError(
                f"{self.num_channels} channels with {self.context_slices} context slices are not the network's "
                f"{self.network.in_channels} inputs"
            )
        if len(self.classes) + self.instances != self.network.num_classes:
            raise ValueError(f"{len(self.classes)} classes are not the network's {self.network.num_classes} outputs")
        if self.instances and len(self.classes) != 2:
            raise ValueError(f"{len(self.classes)} classes do not go with instances")
        measured = self.intensity.statistics
        if (measured is None) == (self.intensity.params.scope == "dataset"):
            raise ValueError(f"intensity.scope {self.intensity.params.scope} does not go with its statistics")
        if measured is not None and len(measured) != self.num_channels:
            raise ValueError(f"{self.num_channels} channels have intensity statistics of {len(measured)}")
        for member in self.members:
            shape = (member.network.in_channels, member.network.num_classes)
            if shape != (self.network.in_channels, self.network.num_classes):
                raise ValueError(f"a member with {shape[0]} inputs and {shape[1]} outputs is of another make")
            if (member.statistics is None) != (measured is None) or len(member.statistics or ()) != len(measured or ()):
                raise ValueError("a member's intensity statistics are of another make")
        if self.tile < MULTIPLE or not 0 <= self.overlap <= min(self.tile // 2, self.tile - MULTIPLE):
            raise ValueError(f"an overlap of {self.overlap} does not go with a tile of {self.tile}")
        return self

    @property
    def tiling(self) -> Tiling:
        """The geometry of its windows."""
        return Tiling(self.tile, self.overlap)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the class index."""
        return tuple(one.name for one in self.classes)


class ParentRecord(Record):
    """A model that another was made from: as the user names it, the number of a registered one, and its digest."""

    reference: str
    version: str | None = None
    digest: str

    def __str__(self) -> str:
        return self.reference if self.version is None else f"{self.reference} (version {self.version})"


class Lineage(Record):
    """Where the model comes from; encoder weights are those of a file or package, the hub's are named by the params."""

    stackseg_version: str
    code_digest: str
    git_commit: str | None
    git_dirty: bool | None
    data_md5: str
    catalog_digest: str
    params: dict[str, Any]
    versions: dict[str, str]
    encoder_weights: WeightsOrigin | None = None  # bundles of older releases lack these two
    parent: ParentRecord | None = None
    members: tuple[ParentRecord, ...] = Field((), exclude_if=lambda members: not members)


class SeenPlanes(Record):
    """SHA-256 of the decoded pixels of the planes that shaped the model or its parents, and of their neighbours."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    gap: tuple[str, ...]

    def joined(self, other: SeenPlanes) -> SeenPlanes:
        """Return the planes that either has seen, each once."""
        return SeenPlanes(
            training=tuple(dict.fromkeys((*self.training, *other.training))),
            validation=tuple(dict.fromkeys((*self.validation, *other.validation))),
            gap=tuple(dict.fromkeys((*self.gap, *other.gap))),
        )


class ValidationScore(Record):
    """Score by which the epoch was chosen, on the validation part."""

    epoch: int
    mean_iou: float | None
    iou: dict[str, float | None]
    pixel_accuracy: float | None
    precision: str
    device: str


class ExportRecord(Record):
    """What another runtime makes of a model on the validation part, side by side with torch."""

    files: dict[str, str]
    """SHA-256 of each converted file."""
    versions: dict[str, str]
    hardware: str
    num_planes: int
    differing_pixels: float
    """Share of the pixels whose class is another."""
    mean_iou: float | None
    mean_iou_torch: float | None
    ms_per_megapixel: float
    ms_per_megapixel_torch: float


class BundleSpec(Record):
    """bundle.json."""

    format: int = FORMAT
    digest: str
    weights_sha256: str
    inference: InferenceSpec
    validation: ValidationScore
    seen: SeenPlanes
    profile: IntensityProfile
    lineage: Lineage
    exported: ExportRecord | None = Field(None, exclude_if=lambda exported: exported is None)


@dataclass(frozen=True)
class Segmenter:
    """What `segment()` needs: a network, which is in evaluation mode, and all that inference reads beside it."""

    inference: InferenceSpec
    network: torch.nn.Module

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.network.parameters()).device

    @property
    def precision(self) -> str:
        """In which it computes: "fp32" or "bf16"."""
        return precision_of(self.inference, self.device)


@dataclass(frozen=True)
class Bundle(Segmenter):
    """A segmenter loaded from a folder, with its bundle.json."""

    spec: BundleSpec

    @property
    def digest(self) -> str:
        """Digest of the weights and the fields that inference reads."""
        return self.spec.digest


def save_bundle(
    folder: Path,
    inference: InferenceSpec,
    weights: dict[str, torch.Tensor],
    *,
    validation: ValidationScore,
    seen: SeenPlanes,
    profile: IntensityProfile,
    lineage: Lineage,
    exported: ExportRecord | None = None,
    converted: Path = Path(),
) -> BundleSpec:
    """Write a bundle in the place of `folder`, whole or not at all.

    Parameters
    ----------
    weights
        State of the network; written as contiguous CPU tensors.
    exported, converted
        What is said of another runtime, and the folder of its files, which are copied.

    Raises
    ------
    MachineError
        The weights could not be written; what was in `folder` stays.
    """
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    weights_sha256 = weights_digest(tensors)
    spec = BundleSpec(
        digest=bundle_digest(inference, weights_sha256),
        weights_sha256=weights_sha256,
        inference=inference,
        validation=validation,
        seen=seen,
        profile=profile,
        lineage=lineage,
        exported=exported,
    )
    try:
        with atomic_folder(folder) as temporary:
            for name in exported.files if exported else ():
                shutil.copyfile(converted / name, temporary / name)
            save_file(tensors, temporary / WEIGHTS_FILE)
            write_text(temporary / SPEC_FILE, json.dumps(spec.model_dump(mode="json"), indent=2) + "\n")
    except SafetensorError as error:
        raise MachineError(
            f"the weights could not be written ({error})",
            where=str(folder),
            remedy="free some space on the disk and run the same command again",
        ) from None
    return spec


def read_spec(folder: Path) -> BundleSpec:
    """Read bundle.json.

    Raises
    ------
    ModelError
        The folder is no bundle, or of a newer format.
    """
    path = folder / SPEC_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.get("format", 0) > FORMAT:
            raise ModelError(
                f"format {tree['format']}", expected=f"{FORMAT}", where=str(path), remedy="update stackseg"
            )
        return BundleSpec.model_validate(tree)
    except FileNotFoundError:
        raise ModelError(
            "no bundle.json", where=str(folder), remedy="`dvc repro train` or `dvc pull` puts a model there"
        ) from None
    except (ValueError, AttributeError, TypeError) as error:  # no text, no JSON, no mapping, not these fields
        short = " ".join(str(error).split())[:160]
        raise ModelError(f"not a bundle ({short})", where=str(path), remedy="train or pull it again") from None


def load_bundle(folder: Path, device: torch.device | None = None, runtime: Runtime | None = None) -> Bundle:
    """Load a bundle and verify its digest.

    Parameters
    ----------
    device
        Where it computes; the CPU by default.
    runtime
        Another one than the bundle's own.

    Raises
    ------
    ModelError
        Files are missing or damaged, weights and bundle.json do not belong together, or the runtime is not there.
    MachineError
        The runtime does not compute on the device.
    """
    spec, tensors = read_bundle(folder)
    inference = spec.inference.model_copy(update={"runtime": runtime or spec.inference.runtime})
    device = device or torch.device("cpu")
    precision = precision_of(inference, device)
    network = loaded_network(spec, tensors, device, str(folder))
    if inference.runtime != "torch":
        files = _converted(folder, spec, inference.runtime)
        return Bundle(inference, compile_network(network, inference, precision, files), spec)
    if precision == "bf16":
        cast_weights(network)
    return Bundle(inference, network, spec)


def loaded_network(
    spec: BundleSpec, tensors: dict[str, torch.Tensor], device: torch.device, where: str
) -> torch.nn.Module:
    """Return the network of a bundle with its weights, as inference uses it.

    Raises
    ------
    ModelError
        The installed versions build another network, or its tile does not go with it.
    """
    inference = spec.inference
    network = build_for_inference(inference.network, inference.members, inference.intensity.statistics)
    load_weights(network, tensors, spec, where)
    if inference.tile % (multiple := tile_multiple(network)):
        raise ModelError(
            f"inference.tile is {inference.tile}",
            expected=f"a multiple of {multiple}, which {inference.network.architecture} asks for",
            where=where,
            remedy="train or pull it again",
        )
    return prepare_network(network, inference, device)


def compile_network(
    network: torch.nn.Module, inference: InferenceSpec, precision: str, converted: Path | None
) -> CompiledNetwork:
    """Return a network as the spec's runtime computes it, from converted files or, without them, converted now."""
    runtime = inference.runtime
    require_runtime(runtime)
    if converted is not None:
        return CompiledNetwork(network, runtime, open_engine(runtime, converted, precision))
    with tempfile.TemporaryDirectory() as name:
        convert(network, runtime, Path(name), in_channels=inference.network.in_channels, tile=inference.tile)
        return CompiledNetwork(network, runtime, open_engine(runtime, Path(name), precision))


def precision_of(inference: InferenceSpec, device: torch.device) -> str:
    """Return "fp32" or "bf16": in what a model computes on a device.

    Raises
    ------
    MachineError
        Its runtime computes neither there nor so.
    """
    if inference.runtime == "torch":
        return resolve_precision(inference.precision, device)
    if device.type != "cpu":
        raise MachineError(
            f"device {device.type}", expected=f"cpu, where {inference.runtime} computes", remedy="add --device cpu"
        )
    if inference.runtime == "onnxruntime":
        if inference.precision == "bf16":
            raise MachineError(
                "inference.precision is bf16",
                expected="auto or fp32 for onnxruntime, which has no bfloat16 on the CPU",
                remedy="use openvino or torch",
            )
        return "fp32"
    return resolve_precision(inference.precision, device)


def _converted(folder: Path, spec: BundleSpec, runtime: Runtime) -> Path | None:
    """Return the folder of the files for a runtime, if the bundle has them, and verify them."""
    if spec.exported is None or runtime != spec.inference.runtime:
        return None
    for name, expected in spec.exported.files.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        if found != expected:
            raise ModelError(
                "it is not there" if found is None else f"SHA-256 {found[:12]}",
                expected=expected[:12],
                where=str(path),
                remedy="export the model again",
            )
    return folder


def read_bundle(folder: Path) -> tuple[BundleSpec, dict[str, torch.Tensor]]:
    """Read bundle.json and the weights, and verify their digest.

    Raises
    ------
    ModelError
        Files are missing or damaged, or weights and bundle.json do not belong together.
    """
    spec = read_spec(folder)
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ModelError("no weights", where=str(path), remedy="train or pull the model again") from None
    except SafetensorError as error:
        raise ModelError(f"damaged weights ({error})", where=str(path), remedy="train or pull it again") from None
    found = bundle_digest(spec.inference, weights_digest(tensors))
    if found != spec.digest:
        raise ModelError(
            f"digest {found[:12]}",
            expected=spec.digest[:12],
            where=str(folder),
            remedy="weights or bundle.json were changed since training: train or pull them again",
        )
    return spec, tensors


def load_weights(network: torch.nn.Module, tensors: dict[str, torch.Tensor], spec: BundleSpec, where: str) -> None:
    """Load a bundle's weights into a network built by its spec.

    Raises
    ------
    ModelError
        The installed versions build another network.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        packages = ("segmentation-models-pytorch", "timm")
        raise ModelError(
            f"its weights do not fit {spec.inference.network.architecture} as these versions build it",
            expected=" and ".join(f"{name} {spec.lineage.versions.get(name)}" for name in packages),
            where=where,
            remedy="install those versions, or train again",
        ) from None


def prepare_network(network: torch.nn.Module, inference: InferenceSpec, device: torch.device) -> torch.nn.Module:
    """Return the network as inference uses it: in evaluation mode, folded, in its layout and on its device."""
    network.eval()
    fold_normalisation(
        network, torch.empty(1, inference.network.in_channels, inference.tile, inference.tile, device="meta")
    )
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def cast_weights(network: torch.nn.Module) -> None:
    """Cast once the weights that autocast would cast to bfloat16 in every forward pass: the same bits, sooner.

    Only the layers themselves: a subclass may do something with its weights first.
    """
    for module in network.modules():
        if type(module) in (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear):
            module.to(torch.bfloat16)


def weights_digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and values of the weights."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def bundle_digest(inference: InferenceSpec, weights_sha256: str) -> str:
    """Return the digest over the weights and the fields that inference reads."""
    text = json.dumps(inference.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{weights_sha256} {text}".encode()).hexdigest()
