"""`predict` by two workers of this machine ÷ by one process.

    python benchmarks/cluster.py [--planes 64] [--rounds 3]

U-Net with ResNet-34, planes of 1024² uint8 into a .zarr, on two cores. Workers are started before the clock, and warm.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from prediction import SIDE, write_model
from stackseg.dataset.files.inputs import open_input
from stackseg.environment import apply_quiet_environment
from stackseg.model.bundle import load_bundle
from stackseg.prediction.cluster import Call, local_cluster, predict_on_cluster
from stackseg.prediction.outputs import plan_outputs
from stackseg.prediction.run import Options, predict


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    apply_quiet_environment()
    with tempfile.TemporaryDirectory() as name, local_cluster(2) as address:
        folder = Path(name)
        write_model(folder)
        image_zyx = np.random.default_rng(0).integers(0, 255, (arguments.planes, SIDE, SIDE), np.uint8)
        tifffile.imwrite(folder / "in.tif", image_zyx, metadata={"axes": "ZYX"})
        outputs = plan_outputs(f"{folder}/out.zarr", probabilities=False, uncertainty=False)
        call = Call(folder / "in.tif", None, 0, outputs, Options(), "cpu", None, "benchmark")
        bundle = load_bundle(folder / "model")

        def by_workers(num_planes: int) -> None:
            of_some = Call(call.image, None, 0, outputs, Options(slices=f"0:{num_planes}"), "cpu", None, "benchmark")
            predict_on_cluster(address, folder / "model", of_some, range(num_planes), lambda *_: None)

        def alone(num_planes: int) -> None:
            with open_input(call.image) as stack:
                options = Options(slices=f"0:{num_planes}")
                predict(stack, bundle, outputs, options, voxel_size_zyx_um=None, model="benchmark")

        ratios = []
        for number in range(arguments.rounds + 1):
            seconds = []
            for work in (by_workers, alone):
                started = time.perf_counter()
                work(4 if number == 0 else arguments.planes)  # the first round is not counted
                seconds.append(time.perf_counter() - started)
                shutil.rmtree(outputs.mask)
            if number:
                ratios.append(seconds[1] / seconds[0])
                print(f"two workers {seconds[0]:.1f} s, one process {seconds[1]:.1f} s", flush=True)
        print(f"throughput of two workers ÷ one process: {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
              f"{max(ratios):.3f})")  # fmt: skip


if __name__ == "__main__":
    main()
