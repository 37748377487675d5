"""What memory `predict` takes for a tall stack as a ratio to a low one, or for a large plane to a small one: uint8.

    python benchmarks/memory.py [--stacks 8x1024 512x1024] [--out mask.tif mask.zarr]

A stack is its planes × their side in pixels.

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


def main() -> None:
    """Predict a low and a tall stack; print a line for each and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", nargs=2, default=["8x1024", "512x1024"], metavar="PLANESxSIDE")
    parser.add_argument("--out", nargs="+", default=["mask.tif", "mask.zarr"])
    arguments = parser.parse_args()
    apply_quiet_environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        for stack in arguments.stacks:
            write_planes(folder / f"{stack}.tif", *map(int, stack.split("x")))
        for out in arguments.out:
            peaks = [peak_megabytes(folder, f"{stack}.tif", out) for stack in arguments.stacks]
            for stack, peak in zip(arguments.stacks, peaks, strict=True):
                print(f"{out}: {stack}, peak {peak:.0f} MB", flush=True)
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


def write_planes(path: Path, num_planes: int, side: int) -> None:
    """Write noise, a page at a time."""

    def pages() -> Iterator[np.ndarray]:
        for z in range(num_planes):
            yield np.random.default_rng(z).integers(0, 255, (side, side), np.uint8)

    tifffile.imwrite(path, pages(), shape=(num_planes, side, side), dtype=np.uint8, metadata={"axes": "ZYX"})


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
