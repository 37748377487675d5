"""What memory `predict` takes for a tall stack, as a ratio to a low one: planes of 1024² uint8.

    python benchmarks/memory.py [--planes 8 512] [--out mask.tif mask.zarr]

Each `stackseg predict` is a process of its own, whose peak is what the system says when it ends. The network is small,
for its own memory does not depend on the stack.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from stackseg.catalog.build import build_catalog
from stackseg.environment import apply_quiet_environment
from stackseg.intake.sample import write_sample
from stackseg.params import read_params
from stackseg.training.train import Machine, train

SIDE = 1024


def main() -> None:
    """Predict a low and a tall stack; print a line for each and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, nargs=2, default=[8, 512])
    parser.add_argument("--out", nargs="+", default=["mask.tif", "mask.zarr"])
    arguments = parser.parse_args()
    apply_quiet_environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        for num_planes in arguments.planes:
            write_planes(folder / f"{num_planes}.tif", num_planes)
        for out in arguments.out:
            peaks = [peak_megabytes(folder, f"{num_planes}.tif", out) for num_planes in arguments.planes]
            for num_planes, peak in zip(arguments.planes, peaks, strict=True):
                print(f"{out}: {num_planes} planes, peak {peak:.0f} MB", flush=True)
            print(f"{out}: ratio {peaks[1] / peaks[0]:.3f}", flush=True)


def write_model(folder: Path) -> None:
    """Train a small network for a moment on the sample, as 8 bits."""
    params = read_params(Path(__file__).parents[1] / "params.yaml").override(
        {
            "model.encoder": "tu-test_resnet",
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


def write_planes(path: Path, num_planes: int) -> None:
    """Write noise, a page at a time."""

    def pages() -> Iterator[np.ndarray]:
        for z in range(num_planes):
            yield np.random.default_rng(z).integers(0, 255, (SIDE, SIDE), np.uint8)

    tifffile.imwrite(path, pages(), shape=(num_planes, SIDE, SIDE), dtype=np.uint8, metadata={"axes": "ZYX"})


def peak_megabytes(folder: Path, image: str, out: str) -> float:
    """Return the peak of the resident memory of one `predict`, in megabytes."""
    verb = [str(Path(sys.executable).with_name("stackseg")), "predict", image, out, "--model", "model", "--overwrite"]
    process = subprocess.Popen(verb, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(verb)}: exit code {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
