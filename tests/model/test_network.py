from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from stackseg.errors import ModelError, ParamsError
from stackseg.model.encoder_weights import fetch, find_source
from stackseg.model.network import (
    DROPOUT_ARCHITECTURES,
    NetworkSpec,
    architecture_names,
    build_network,
    check_forward,
    size_multiple,
)

TINY_VIT = "tu-vit_tiny_patch16_224"


def build(architecture: str, encoder: str | None = None, dropout: float = 0.0) -> nn.Module:
    encoder = encoder or {"DPT": TINY_VIT, "Segformer": "mit_b0"}.get(architecture, "resnet18")
    spec = NetworkSpec(
        architecture=architecture, encoder=encoder, in_channels=1, num_classes=3, decoder_dropout=dropout
    )
    return build_network(spec, encoder_weights=None)


def dropout_rates(network: nn.Module) -> set[float]:
    behind = [*network.decoder.modules(), *network.segmentation_head.modules()]  # type: ignore[union-attr, operator]
    return {one.p for one in behind if isinstance(one, nn.Dropout | nn.Dropout2d)}


@pytest.mark.parametrize("architecture", architecture_names())
def test_every_architecture_runs_at_multiples_of_its_size_and_refuses_others(architecture: str) -> None:
    network = build(architecture)
    assert dropout_rates(network) <= {0.0}
    multiple = size_multiple(network)
    assert multiple == {"PAN": 16, "DeepLabV3": 8, "DeepLabV3Plus": 16, "PSPNet": 8}.get(architecture, 32)
    smallest = {"PAN": 128}.get(architecture, multiple)
    height, width = smallest + multiple, smallest + 2 * multiple
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 1, height, width)).shape == (1, 3, height, width)
    check_forward(network, 1, (128 + multiple, 128 + 2 * multiple))
    if architecture != "Unet":
        with pytest.raises(ModelError, match=rf"model\.architecture: .* multiples of {multiple},") as caught:
            check_forward(network, 1, 5 * multiple // 2 + 128)
        assert "\n" not in str(caught.value)


def test_pan_says_that_its_patches_are_too_small() -> None:
    with pytest.raises(ModelError, match=r"PAN on resnet18 cannot train on 2 images of 64 × 64 .*Choose a larger"):
        check_forward(build("PAN"), 1, 64)


@pytest.mark.parametrize(("architecture", "size"), [("DeepLabV3Plus", 128), ("UPerNet", 128), ("FPN", 32)])
def test_a_batch_that_batch_norm_cannot_use_is_refused(architecture: str, size: int) -> None:
    network = build(architecture)
    check_forward(network, 1, size, batch_size=2)
    with pytest.raises(ModelError, match=r"more than 1 value per channel.*Raise train\.batch_size to 2"):
        check_forward(network, 1, size, batch_size=1)


def test_checking_leaves_no_trace() -> None:
    network = build("FPN", dropout=0.5)
    network.train()
    network.encoder.eval()  # type: ignore[union-attr, operator]
    before = {name: one.clone() for name, one in network.state_dict().items()}
    modes = [one.training for one in network.modules()]
    random = torch.get_rng_state()
    check_forward(network, 1, 1024, batch_size=16)
    assert torch.equal(torch.get_rng_state(), random)
    assert [one.training for one in network.modules()] == modes
    for name, one in network.state_dict().items():
        assert one.device.type == "cpu"
        assert torch.equal(one, before[name])


@pytest.mark.parametrize("architecture", architecture_names())
def test_dropout_is_what_was_asked_for_or_refused(architecture: str) -> None:
    if architecture in DROPOUT_ARCHITECTURES:
        assert dropout_rates(build(architecture, dropout=0.3)) == {0.3}
    else:
        with pytest.raises(ParamsError, match=r"model\.decoder_dropout: .*DeepLabV3.*FPN, PSPNet"):
            build(architecture, dropout=0.3)


@pytest.mark.slow
def test_transformers_take_any_size() -> None:
    check_forward(build("Unet", "tu-swin_tiny_patch4_window7_224"), 1, (96, 160))
    check_forward(build("DPT", TINY_VIT), 1, (96, 160))
    windowed = build("Unet", "tu-maxvit_tiny_tf_224")
    check_forward(windowed, 1, 224)
    with pytest.raises(ModelError, match=r"Unet on tu-maxvit_tiny_tf_224 .*divisible by window"):
        check_forward(windowed, 1, 128)


def test_deprecated_encoders_build_without_warning() -> None:
    check_forward(build("Unet", "timm-skresnet18"), 1, 64)


@pytest.mark.parametrize(
    ("architecture", "encoder", "message"),
    [
        ("Unett", "resnet18", r"model\.architecture: unknown architecture 'Unett'; expected for example Unet,"),
        ("Unet", "resnet_18", r"model\.encoder: unknown encoder 'resnet_18'; .*resnet18"),
        ("Unet", "convnext_tiny", r"unknown encoder 'convnext_tiny'; .*tu-convnext_tiny"),
        ("Unet", "tu-resnet19", r"unknown encoder 'tu-resnet19'; .*tu-resnet1"),
    ],
)
def test_unknown_names_get_the_nearest(architecture: str, encoder: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        build(architecture, encoder)


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("UnetPlusPlus", "mit_b0"),
        ("DeepLabV3", "densenet121"),
        ("Unet", TINY_VIT),
        ("DPT", "resnet18"),
        ("PAN", "tu-swin_tiny_patch4_window7_224"),
        ("Unet", "tu-resnet18.no_such_tag"),
    ],
)
def test_impossible_pairs_are_one_line(architecture: str, encoder: str) -> None:
    with pytest.raises(
        ModelError, match=rf"model\.encoder: {architecture} cannot be built on encoder '{encoder}'"
    ) as one:
        build(architecture, encoder)
    assert "\n" not in str(one.value)


def test_a_spec_is_spelled_in_one_way_and_frozen() -> None:
    spec = NetworkSpec(architecture="deeplabv3PLUS", encoder="resnet18", in_channels=2, num_classes=2)
    assert spec.architecture == "DeepLabV3Plus"
    assert NetworkSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError):
        NetworkSpec(architecture="Unet", encoder="resnet18", in_channels=1, num_classes=1)


# pretrained weights


@pytest.mark.parametrize(
    ("encoder", "weights", "message"),
    [
        ("resnet18", "imagnet", r"model\.encoder_weights: no pretrained weights 'imagnet' .*null, imagenet, ssl, swsl"),
        ("tu-resnet18", "a1_in1k", r"expected null, imagenet.*tu-resnet18\.a1_in1k"),
        ("tu-gcvit_base", "imagenet", r"no pretrained weights 'imagenet' for encoder 'tu-gcvit_base'"),
    ],
)
def test_unknown_weights_list_those_there_are(encoder: str, weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_source(encoder, weights)


def test_every_pretrained_setting_of_smp_names_a_commit() -> None:
    """So that smp finds in the cache what was fetched, without asking the hub which commit is meant."""
    for name, one in smp.encoders.encoders.items():
        for weights in one["pretrained_settings"]:
            assert len(find_source(name, weights).revision or "") == 40


def test_offline_and_not_cached_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    spec = NetworkSpec(architecture="Unet", encoder="resnet18", in_channels=1, num_classes=2)
    with pytest.raises(
        ModelError, match=r"resnet18\.imagenet are not in .* HF_HUB_OFFLINE.*null.*HF_HOME.*HF_ENDPOINT"
    ):
        build_network(spec, encoder_weights="imagenet")


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub: a file per repository under /<owner>/<name>/resolve/<revision>/<file>."""

    def __init__(self, *args: object, folder: Path, asked: list[str]) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        if "/resolve/" not in self.path:  # what else the client wants to know of its hub
            self.send_error(404)
            return
        self.asked.append(self.path)
        owner, name, _, revision, filename = self.path.strip("/").split("/")
        path = self.folder / owner / name / filename
        body = path.read_bytes() if path.exists() else b""
        self.send_response(200 if body else 404)
        if not body:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", f'"{len(body)}-{filename}"')
        self.send_header("X-Repo-Commit", revision if len(revision) == 40 else "0" * 40)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def local_hub(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder=tmp_path / "hub", asked=asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path / "hub", asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def use_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that puts another hub in the public one's place, as HF_ENDPOINT does; nothing is cached."""
    constants = huggingface_hub.constants
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def use(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}{path}")

    return use


def pretrained(encoder: str, channels: int = 1) -> nn.Module:
    spec = NetworkSpec(architecture="Unet", encoder=encoder, in_channels=channels, num_classes=2)
    return build_network(spec, encoder_weights="imagenet")


def refusal_of(encoder: str) -> str:
    with pytest.raises(ModelError) as refused:
        pretrained(encoder)
    return str(refused.value)


def test_weights_come_from_the_hub_once_and_then_from_the_cache(
    local_hub: tuple[str, Path, list[str]], use_hub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, folder, asked = local_hub
    torch.manual_seed(1)
    kernels = {}
    for encoder, repository, network in (
        ("resnet18", "smp-hub/resnet18.imagenet", smp.encoders.get_encoder("resnet18")),
        ("tu-resnet18", "timm/resnet18.a1_in1k", timm.create_model("resnet18")),
    ):
        (folder / repository).mkdir(parents=True)
        (folder / repository / "config.json").write_text("{}")
        kernels[encoder] = network.conv1.weight.detach()
        save_file(network.state_dict(), folder / repository / "model.safetensors")

    def require_weights() -> None:
        for encoder, kernel in kernels.items():
            for channels, expected in ((3, kernel), (1, kernel.sum(1, keepdim=True))):
                layers = pretrained(encoder, channels).encoder.modules()  # type: ignore[union-attr, operator]
                first = next(one for one in layers if isinstance(one, nn.Conv2d))
                torch.testing.assert_close(first.weight.detach(), expected)

    use_hub(endpoint)
    require_weights()
    said = refusal_of("resnet34")
    assert "smp-hub/resnet34.imagenet are not in" in said
    assert f"{endpoint} does not give them: 404" in said
    assert sum("resnet18" in path and path.endswith("model.safetensors") for path in asked) >= 4
    num_asked = len(asked)
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        require_weights()
        assert "HF_HUB_OFFLINE" in refusal_of("resnet34")
    assert len(asked) == num_asked
    # without the variable, what is cached needs no hub either
    use_hub("http://127.0.0.1:9")
    require_weights()
    assert "http://127.0.0.1:9 does not give them" in refusal_of("resnet34")


@pytest.mark.slow  # a server that never answers is waited for
def test_a_hub_out_of_reach_is_said_within_seconds(use_hub: Callable[[str], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # a closed port, and a server that takes the question and never answers
        for endpoint in ("http://127.0.0.1:9", f"http://127.0.0.1:{silent.getsockname()[1]}"):
            use_hub(endpoint)
            for encoder in ("resnet18", "tu-resnet18"):
                start = time.monotonic()
                said = refusal_of(encoder)
                assert time.monotonic() - start < 15
                assert said.startswith("model.encoder_weights: the pretrained weights")
                assert f"{endpoint} does not" in said
                assert "Set encoder_weights to null" in said


def test_a_name_service_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = threading.Event()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: hung.wait(30))
    monkeypatch.setattr("stackseg.model.encoder_weights.ANSWER_WITHIN_S", 0.1)
    with pytest.raises(ModelError, match=r"does not answer within 0\.1 s"):
        fetch(find_source("resnet18", "imagenet"), "model.safetensors")
    hung.set()


def test_building_without_weights_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", refuse)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    for encoder in ("resnet18", "tu-resnet18", TINY_VIT):
        build("DPT" if encoder == TINY_VIT else "Unet", encoder)
