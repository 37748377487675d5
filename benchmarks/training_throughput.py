"""Training throughput as ratios, measured side by side in one run.

    python benchmarks/training_throughput.py [--size 128] [--batch 16] [--encoder resnet34] [--rounds 3]

Three ways to train the same network take turns, round after round; bare runs before and after full, for machines
drift by more than what is measured:

- full: stackseg's `train()` with its loader, augmentation, checkpoints and MLflow logging; validation is left out
- bare: forward + backward + step on one batch that lies in memory, same network, loss, precision and layout
- newcomer: fp32, default layout, the TIFF page read for every item, the same loss, no workers
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
import torch

from stackseg.catalog.build import build_catalog
from stackseg.dataset.records import Catalog
from stackseg.environment import apply_quiet_environment
from stackseg.intake.sample import write_sample
from stackseg.model.devices import pick_device, resolve_precision
from stackseg.model.network import NetworkSpec, build_network
from stackseg.params import Params, read_params
from stackseg.training.losses import SegmentationLoss
from stackseg.training.optim import build_optimizer
from stackseg.training.train import Callback, EpochReport, Machine, TrainingStart

EPOCHS = 6


class Stopwatch(Callback):
    """Callback that notes when each epoch ends, after all that is done for it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_start(self, start: TrainingStart) -> None:
        """Start."""
        self.times.append(time.perf_counter())

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        """Nothing: a step is not timed."""

    def on_epoch(self, report: EpochReport) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of a patch in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="steps per epoch and per measurement")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    apply_quiet_environment()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        data = Path("data")
        side = max(256, arguments.size)
        write_sample(data, (16, side, side))
        params = _params(arguments)
        catalog = build_catalog(data, params)
        device = pick_device(arguments.device)
        rates: dict[str, list[float]] = {"full": [], "bare": [], "newcomer": []}
        for round_number in range(arguments.rounds):
            before = _bare(params, catalog, arguments, device)
            rates["full"].append(_full(params, catalog, data, arguments))
            rates["bare"].append((before + _bare(params, catalog, arguments, device)) / 2)
            rates["newcomer"].append(_newcomer(catalog, data, arguments, device))
            shown = ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())
            print(f"round {round_number + 1}: {shown} images/s", flush=True)
    print(f"{arguments.encoder} {arguments.size}² × {arguments.batch}, {device}, {resolve_precision('auto', device)}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    for name in ("bare", "newcomer"):
        ratios = [full / other for full, other in zip(rates["full"], rates[name], strict=True)]
        print(f"full ÷ {name}: {min(ratios):.3f} {statistics.median(ratios):.3f} {max(ratios):.3f} (min median max)")


def _params(arguments: argparse.Namespace) -> Params:
    steps, batch = arguments.steps, arguments.batch
    here = Path(__file__).parents[1] / "params.yaml"
    return read_params(here).override(
        {
            "model.encoder": arguments.encoder,
            "split.gap": 0,
            "train.epochs": EPOCHS,
            "train.patches_per_epoch": steps * batch,
            "train.patch_size": arguments.size,
            "train.batch_size": batch,
            "train.validate_every": EPOCHS,
            "train.schedule": "constant",
        }
    )


def _full(params: Params, catalog: Catalog, data: Path, arguments: argparse.Namespace) -> float:
    from stackseg.tracking.logged_training import train_and_log
    from stackseg.tracking.store import prepare_store

    watch = Stopwatch()
    Path("params.yaml").touch()
    Path("dvc.yaml").touch()
    ready = prepare_store(Path.cwd(), experiment="throughput")
    train_and_log(
        params,
        catalog,
        data=data,
        out=Path("outputs"),
        checkpoints=Path("checkpoints"),
        experiment_id=ready.experiment_id,
        machine=Machine(device=arguments.device, num_workers=arguments.workers),
        callbacks=[watch],
    )
    # the first epochs warm up and make the checkpoints' files, the last one validates
    first, last = 3, EPOCHS - 1
    return (last - first) * params.train.patches_per_epoch / (watch.times[last] - watch.times[first])


def _bare(params: Params, catalog: Catalog, arguments: argparse.Namespace, device: torch.device) -> float:
    precision = resolve_precision("auto", device)
    torch.manual_seed(0)
    network = _network(catalog, arguments).to(device, memory_format=torch.channels_last)
    loss_of = SegmentationLoss({"cross_entropy": 1.0, "dice": 1.0}, [1.0] * len(catalog.classes)).to(device)
    optimizer = build_optimizer(network, params.train)
    shape = (arguments.batch, 1, arguments.size, arguments.size)
    image = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    target = torch.randint(0, len(catalog.classes), (shape[0], *shape[2:]), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = network(image)
        loss_of(logits, target).backward()
        optimizer.step()

    return _timed(step, arguments, device)


def _newcomer(catalog: Catalog, data: Path, arguments: argparse.Namespace, device: torch.device) -> float:
    torch.manual_seed(0)
    network = _network(catalog, arguments).to(device)
    loss_of = SegmentationLoss({"cross_entropy": 1.0, "dice": 1.0}, [1.0] * len(catalog.classes)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    random = np.random.default_rng(0)
    size = arguments.size

    def item() -> tuple[torch.Tensor, torch.Tensor]:
        z = int(random.integers(10))
        image = tifffile.imread(data / "images.tif", key=z).astype(np.float32)
        mask = tifffile.imread(data / "masks.tif", key=z).astype(np.int64)
        y, x = (int(random.integers(extent - size + 1)) for extent in image.shape)
        image = (image - image.mean()) / image.std()
        crop = (slice(y, y + size), slice(x, x + size))
        return torch.from_numpy(image[crop])[None], torch.from_numpy(mask[crop])

    def step() -> None:
        items = [item() for _ in range(arguments.batch)]
        image = torch.stack([one for one, _ in items]).to(device)
        target = torch.stack([one for _, one in items]).to(device)
        optimizer.zero_grad()
        loss = loss_of(network(image), target)
        loss.backward()
        optimizer.step()
        loss.item()

    return _timed(step, arguments, device)


def _network(catalog: Catalog, arguments: argparse.Namespace) -> torch.nn.Module:
    spec = NetworkSpec(architecture="Unet", encoder=arguments.encoder, in_channels=1, num_classes=len(catalog.classes))
    return build_network(spec, encoder_weights=None).train()


def _timed(step: Callable[[], None], arguments: argparse.Namespace, device: torch.device) -> float:
    for _ in range(3):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(arguments.steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return float(arguments.steps * arguments.batch / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
