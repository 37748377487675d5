from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stackseg.errors import ModelError
from stackseg.training.losses import all_reduce_sum, build_loss
from stackseg.training.sync_batchnorm import GlobalBatchNorm2d, GlobalBatchNormAct2d, globalise_batch_norm

TERMS = {"cross_entropy": 1.0, "dice": 1.0, "focal": 0.5, "bce": 0.5, "lovasz": 0.5, "tversky": 0.5}
# uneven on purpose: the mean of the processes' means is then not the mean of the whole
PARTS = (slice(0, 1), slice(1, 4))


def small_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3, bias=False),
        BatchNormAct2d(4, momentum=0.3),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def unet() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3).double()
    return network


def batch(channels: int, size: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    image = 3.0 + torch.randn(4, channels, size, size, generator=random) * torch.arange(1.0, 5.0)[:, None, None, None]
    target = torch.randint(3, (4, size, size), generator=random)
    target[0, : size // 2] = 255
    target[1][target[1] == 2] = 0
    return image, target


def step(network: nn.Module, image: Tensor, target: Tensor, **options: Any) -> dict[str, Tensor]:
    """Train one step's worth: outputs, gradients and buffers."""
    logits = network.train()(image.to(next(network.parameters()).dtype))
    height, width = logits.shape[-2:]
    loss = build_loss(
        TERMS, num_classes=logits.shape[1], class_weights=[1.0 + c for c in range(logits.shape[1])], **options
    )(logits, target[:, :height, :width])
    loss.backward()
    plain = network.module if isinstance(network, DistributedDataParallel) else network
    gradients = {f"gradient.{name}": one.grad for name, one in plain.named_parameters() if one.grad is not None}
    buffers = {f"buffer.{name}": one for name, one in plain.named_buffers()}
    return {"loss": loss.detach(), "logits": logits.detach(), **gradients, **buffers}


# The U-Net runs in double precision: in single, rounding alone moves its gradients by 3e-3.
CASES = {"small": (small_network, 2, 12), "unet": (unet, 1, 64)}


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    # a store in a file needs no free port to be guessed
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    found = {}
    for name, (build, channels, size) in CASES.items():
        image, target = batch(channels, size)
        network = DistributedDataParallel(globalise_batch_norm(build()))
        found[name] = step(network, image[PARTS[rank]], target[PARTS[rank]], reduce_sum=all_reduce_sum)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, (build, channels, size) in CASES.items():
        expected = step(build(), *batch(channels, size))
        logits = torch.cat([found[name].pop("logits") for found in ranks])
        torch.testing.assert_close(logits, expected.pop("logits"), rtol=1e-5, atol=1e-5 * logits.abs().max().item())
        for found in ranks:
            assert found[name].keys() == expected.keys()
            for key, value in expected.items():
                wanted = 1e-4 if key.startswith("gradient") else 1e-5
                difference = (found[name][key] - value).double().norm() / value.double().norm().clamp_min(1e-12)
                assert difference <= wanted, (name, key, difference)


def test_alone_it_is_torchs_batch_norm_bit_by_bit() -> None:
    image, target = batch(2, 12)
    ordinary, ours = small_network(), globalise_batch_norm(small_network())
    assert isinstance(ours[1], GlobalBatchNorm2d)  # type: ignore[index]
    assert isinstance(ours[4], GlobalBatchNormAct2d)  # type: ignore[index]
    assert list(ours.state_dict()) == list(ordinary.state_dict())
    for key, value in step(ordinary, image, target).items():
        torch.testing.assert_close(step(copy.deepcopy(ours).train(), image, target)[key], value, rtol=0, atol=0)


def test_statistics_of_several_processes_are_exact_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with the same half each: the sums double, the statistics and the output stay."""
    where = "stackseg.training.sync_batchnorm"
    monkeypatch.setattr(f"{where}.num_processes", lambda: 2)
    monkeypatch.setattr(f"{where}.all_reduce_sum", lambda sums: 2 * sums)
    layer, reference = GlobalBatchNorm2d(3), nn.BatchNorm2d(3)
    image = 1000.0 + torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = (image - image.mean((0, 2, 3), keepdim=True)) / image.var((0, 2, 3), keepdim=True, correction=0).sqrt()
    torch.testing.assert_close(layer(image), expected, rtol=1e-3, atol=1e-3)
    reference(torch.cat([image, image]))
    torch.testing.assert_close(layer.running_var, reference.running_var, rtol=1e-5, atol=1e-5)
    assert layer.num_batches_tracked == 1
    assert layer(image.bfloat16()).dtype == torch.bfloat16
    layer.eval()
    torch.testing.assert_close(
        layer(image), nn.functional.batch_norm(image, layer.running_mean, layer.running_var), rtol=0, atol=0
    )


def test_mode_and_parameters_are_kept() -> None:
    network = unet().eval()
    parameters = dict(network.named_parameters())
    converted = globalise_batch_norm(network)
    assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    assert not any(module.training for module in converted.modules())
    assert all(parameters[name] is one for name, one in converted.named_parameters())


def test_other_batch_norms_are_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.encoder: a layer of type BatchNorm1d"):
        globalise_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
