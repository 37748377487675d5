"""What `predict` costs, as ratios measured side by side in one run: U-Net with ResNet-34, planes of 1024² uint8.

    python benchmarks/prediction.py [--planes 16] [--rounds 3]

- predict ÷ forward: pixels per second of `predict` from a TIFF to a TIFF, by those of the network alone over the same
  windows, which lie in memory
- the same by each runtime that is installed, against torch
- MONAI's `sliding_window_inference` of the same weights, if MONAI is installed (`pip install monai`): with the same
  windows, with its usual setting (windows of 256, a quarter overlap, Gaussian) in fp32, and in bf16 where the processor
  multiplies it
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tifffile
import torch

from stackseg.catalog.build import build_catalog
from stackseg.dataset.files.inputs import open_input
from stackseg.environment import apply_quiet_environment
from stackseg.intake.sample import write_sample
from stackseg.model.bundle import Bundle, load_bundle
from stackseg.model.devices import hardware_name, has_bf16
from stackseg.model.plane_image import whole
from stackseg.params import read_params
from stackseg.params.inference import Runtime
from stackseg.prediction.outputs import plan_outputs
from stackseg.prediction.run import Options, predict
from stackseg.training.train import Machine, train

SIDE = 1024
Work = Callable[[], object]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    apply_quiet_environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        image = folder / "image.tif"
        random = np.random.default_rng(0)
        tifffile.imwrite(
            image, random.integers(0, 255, (arguments.planes, SIDE, SIDE), np.uint8), metadata={"axes": "ZYX"}
        )
        bundle = load_bundle(folder / "model")
        print(
            f"{hardware_name(bundle.device)}, {bundle.precision}, torch {torch.__version__}, {arguments.planes} planes"
        )
        works: dict[str, Work] = {
            "the network alone": lambda: forward(bundle, arguments.planes),
            "predict": lambda: to_file(image, bundle),
        }
        for runtime in ("onnxruntime", "openvino"):
            if find_spec(runtime):
                works[f"predict, {runtime}"] = _with_runtime(image, folder / "model", runtime)
        if find_spec("monai"):
            works |= monai_works(folder / "model", arguments.planes)
        else:
            print("MONAI is not installed, and left out")
        report(works, arguments.rounds, arguments.planes)


def write_model(folder: Path) -> None:
    """Train for a moment, so that there is a bundle."""
    params = read_params(Path(__file__).parents[1] / "params.yaml").override(
        {
            "model.architecture": "Unet",
            "model.encoder": "resnet34",
            "model.encoder_weights": None,
            "train.epochs": 1,
            "train.patches_per_epoch": 16,
            "split.gap": 0,
        }
    )
    write_sample(folder / "data", (12, 128, 128))
    images = tifffile.imread(folder / "data" / "images.tif")
    tifffile.imwrite(folder / "data" / "images.tif", (images // 257).astype(np.uint8), metadata={"axes": "ZYX"})
    catalog = build_catalog(folder / "data", params)
    train(params, catalog, data=folder / "data", model=folder / "model", checkpoints=folder / "checkpoints",
          machine=Machine(device="cpu"))  # fmt: skip


def _with_runtime(image: Path, model: Path, runtime: Runtime) -> Work:
    bundle = load_bundle(model, runtime=runtime)
    return lambda: to_file(image, bundle)


def to_file(image: Path, bundle: Bundle) -> None:
    """Segment a file into a file."""
    with open_input(image) as stack, tempfile.TemporaryDirectory() as folder:
        outputs = plan_outputs(f"{folder}/mask.tif", probabilities=False, uncertainty=False)
        predict(stack, bundle, outputs, Options(), voxel_size_zyx_um=None, model="benchmark")


@torch.inference_mode()
def forward(bundle: Bundle, num_planes: int) -> None:
    """Have the network compute as many windows as `predict` does, from memory."""
    windows = list(bundle.inference.tiling.windows((SIDE, SIDE), whole((SIDE, SIDE))))
    height, width = bundle.inference.tiling.window_shape((SIDE, SIDE))
    image = torch.rand(1, bundle.inference.network.in_channels, height, width)
    image = image.contiguous(memory_format=torch.channels_last)
    for _ in range(num_planes * len(windows)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bundle.precision == "bf16"):
            bundle.network(image)


def monai_works(model: Path, num_planes: int) -> dict[str, Work]:
    """Return MONAI's inference with the bundle's weights as they were trained: nothing folded, no layout chosen."""
    from monai.inferers import sliding_window_inference

    def infer(bundle: Bundle, tile: int, overlap: float, mode: str) -> Work:
        @torch.inference_mode()
        def work() -> None:
            for _ in range(num_planes):
                image = torch.rand(1, 1, SIDE, SIDE)
                with torch.autocast("cpu", torch.bfloat16, enabled=bundle.precision == "bf16"):
                    sliding_window_inference(image, (tile, tile), 1, bundle.network, overlap=overlap, mode=mode).argmax(
                        1
                    )

        return work

    as_here = load_bundle(model)
    cut = replace(as_here, inference=as_here.inference.model_copy(update={"tile": 512, "overlap": 128}))
    works: dict[str, Work] = {
        "segment, windows of 512": _segmented(cut, num_planes),
        "MONAI, windows of 512": infer(as_here, 512, 0.25, "constant"),
        "MONAI, windows of 256, Gaussian, fp32": infer(_plain(model), 256, 0.25, "gaussian"),
    }
    if has_bf16(torch.device("cpu")):
        works["MONAI, windows of 256, Gaussian, bf16"] = infer(as_here, 256, 0.25, "gaussian")
    return works


def _segmented(bundle: Bundle, num_planes: int) -> Work:
    from stackseg.model.segment import segment

    class Planes:
        def __len__(self) -> int:
            return num_planes

        def plane(self, z: int) -> np.ndarray:
            return np.random.default_rng(z).integers(0, 255, (SIDE, SIDE, 1), np.uint8)

    return lambda: [plane.mask_yx for plane in segment(Planes(), bundle)]


def _plain(model: Path) -> Bundle:
    """Return the network as it was trained: in fp32, with its normalisation layers, in the default layout."""
    from safetensors.torch import load_file

    from stackseg.model.bundle import WEIGHTS_FILE
    from stackseg.model.network import build_network

    bundle = load_bundle(model)
    network = build_network(bundle.inference.network, encoder_weights=None)
    network.load_state_dict(load_file(model / WEIGHTS_FILE))
    return replace(bundle, network=network.eval(), inference=bundle.inference.model_copy(update={"precision": "fp32"}))


def report(works: dict[str, Work], rounds: int, num_planes: int) -> None:
    """Time all in turn, so many rounds, after one that is not counted; print seconds and ratios to `predict`."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    for name, taken in seconds.items():
        ratios = [one / own for one, own in zip(taken, seconds["predict"], strict=True)]
        print(
            f"{name:40} {statistics.median(taken) / num_planes:6.3f} s a plane, {statistics.median(ratios):.3f} of "
            f"predict ({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
