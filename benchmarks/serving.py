"""What serving costs, as ratios measured side by side in one run, with a real server.

    python benchmarks/serving.py [--encoder resnet34] [--requests 15] [--rounds 3] [--seconds 60] [--clients 16]

- served ÷ in-process: median time of a request for one uint8 TIFF over HTTP against `segment()` of the same image in
  this process, turn by turn, at 512² and 1024²
- eager fp32 ÷ served path: `segment()` as the bundle has it against fp32 in the default layout
- one pass ÷ one by one: four windows through the served network, together against one after another: what batching the
  requests of several clients would save, and whether its masks were the same
- load: many clients at once; failures, the 99th percentile against the single client's median, resident memory
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import tifffile
import torch
from safetensors.torch import load_file

from stackseg.catalog.build import build_catalog
from stackseg.dataset.files.stack import open_stack
from stackseg.environment import apply_quiet_environment
from stackseg.intake.sample import write_sample
from stackseg.model.bundle import WEIGHTS_FILE, Bundle, Segmenter, load_bundle, read_spec
from stackseg.model.devices import resolve_precision
from stackseg.model.network import build_network
from stackseg.model.segment import segment
from stackseg.params import Params, read_params
from stackseg.training.train import Machine, train


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--requests", type=int, default=15, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60, help="of the load")
    arguments = parser.parse_args()
    apply_quiet_environment()
    here = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _register(_params(here, arguments.encoder))
        bundle = load_bundle(Path("model"))
        print(f"U-Net/{arguments.encoder}, {resolve_precision('auto', torch.device('cpu'))}, "
              f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
        with _server() as (url, process):
            for side in (512, 1024):
                _print_ratio(url, bundle, _image(side), arguments)
            _print_load(url, process, _image(512), arguments)
        _print_precision(bundle, arguments)
        for side in (256, 512):
            _print_batching(bundle, side, arguments)


def _params(here: Path, encoder: str) -> Params:
    return read_params(here / "params.yaml").override(
        {"model.encoder": encoder, "train.epochs": 1, "train.patches_per_epoch": 16, "split.gap": 0}
    )


def _image(side: int) -> bytes:
    random = np.random.default_rng(0)
    blocks_yx = random.integers(2, 6, (side // 16, side // 16)).repeat(16, 0).repeat(16, 1) * 40
    file = io.BytesIO()
    tifffile.imwrite(file, np.clip(blocks_yx + random.normal(0, 8, (side, side)), 0, 255).astype(np.uint8))
    return file.getvalue()


def _register(params: Params) -> None:
    """Train for a moment on uint8 planes, and register the bundle as champion."""
    write_sample(Path("data"), (12, 128, 128))
    images = tifffile.imread("data/images.tif")
    tifffile.imwrite("data/images.tif", (images // 257).astype(np.uint8), metadata={"axes": "ZYX"})
    catalog = build_catalog(Path("data"), params)
    train(params, catalog, data=Path("data"), model=Path("model"), checkpoints=Path("checkpoints"),
          machine=Machine(device="cpu"))  # fmt: skip
    Path("params.yaml").write_text("format: 1\n")
    Path("dvc.yaml").write_text("stages: {}\n")

    import mlflow
    from mlflow.tracking import MlflowClient

    from stackseg.serving.packaging import log_bundle
    from stackseg.tracking.store import prepare_store

    ready = prepare_store(Path.cwd(), experiment="serving")
    client = MlflowClient()
    client.create_registered_model("stackseg")
    with mlflow.start_run(experiment_id=ready.experiment_id):
        info = log_bundle(Path("model"), read_spec(Path("model")))
    client.create_model_version("stackseg", f"models:/{info.model_id}", model_id=info.model_id)
    client.set_registered_model_alias("stackseg", "champion", "1")


@contextmanager
def _server() -> Iterator[tuple[str, psutil.Process]]:
    command = [str(Path(sys.executable).parent / "stackseg"), "serve", "--port", "0", "--device", "cpu"]
    log = Path("serve.log")
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        while "next: stackseg segment-remote " not in (said := log.read_text()):
            if server.poll() is not None:
                raise SystemExit(said)
            time.sleep(0.2)
        yield said.partition("next: stackseg segment-remote ")[2].split()[0], psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def _print_ratio(url: str, bundle: Bundle, image: bytes, arguments: argparse.Namespace) -> None:
    path = Path("image.tif")
    path.write_bytes(image)
    body = _body(image)
    with requests.Session() as session, open_stack(path) as stack:

        def served() -> None:
            session.post(f"{url}/invocations", json=body).raise_for_status()

        def in_process() -> None:
            for _ in segment(stack, bundle):
                pass

        pairs = [
            (_median(served, arguments.requests), _median(in_process, arguments.requests))
            for _ in range(arguments.rounds)
        ]
        side = stack.info.shape_yx[0]
    _print_ratios(f"served ÷ in-process at {side}²", [a / b for a, b in pairs])
    print(f"  medians of the last round: {1000 * pairs[-1][0]:.0f} and {1000 * pairs[-1][1]:.0f} ms")


def _print_precision(bundle: Bundle, arguments: argparse.Namespace) -> None:
    network = build_network(bundle.inference.network, encoder_weights=None).eval()
    network.load_state_dict(load_file(Path("model") / WEIGHTS_FILE))
    eager = Segmenter(bundle.inference.model_copy(update={"precision": "fp32"}), network)
    path = Path("image.tif")
    path.write_bytes(_image(256))
    with open_stack(path) as stack:

        def run(one: Segmenter) -> Callable[[], None]:
            return lambda: [None for _ in segment(stack, one)] and None

        pairs = [
            (_median(run(eager), arguments.requests), _median(run(bundle), arguments.requests))
            for _ in range(arguments.rounds)
        ]
    _print_ratios("eager fp32 ÷ as served, 256²", [a / b for a, b in pairs])


def _print_batching(bundle: Bundle, side: int, arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    windows = [torch.randn(1, side, side, 1) for _ in range(4)]
    bf16 = resolve_precision(bundle.inference.precision, torch.device("cpu")) == "bf16"

    def logits(tile_byxc: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return bundle.network(tile_byxc.permute(0, 3, 1, 2)).float()

    def together() -> torch.Tensor:
        return logits(torch.cat(windows))

    def one_by_one() -> torch.Tensor:
        return torch.cat([logits(one) for one in windows])

    pairs = [
        (_median(together, arguments.requests), _median(one_by_one, arguments.requests))
        for _ in range(arguments.rounds)
    ]
    _print_ratios(f"four windows of {side}² in one pass ÷ one by one", [a / b for a, b in pairs])
    print(f"  bits differ in {(together() != one_by_one()).double().mean():.4%} of the logits")


def _print_load(url: str, process: psutil.Process, image: bytes, arguments: argparse.Namespace) -> None:
    body = _body(image)
    with requests.Session() as session:
        single = _median(lambda: session.post(f"{url}/invocations", json=body).raise_for_status(), 50)
    memory = process.memory_info().rss
    seconds: list[float] = []
    failures: list[Any] = []
    until = time.perf_counter() + arguments.seconds

    def client() -> None:
        with requests.Session() as session:
            while time.perf_counter() < until:
                started = time.perf_counter()
                status = session.post(f"{url}/invocations", json=body, timeout=120).status_code
                seconds.append(time.perf_counter() - started)
                if status != requests.codes.ok:
                    failures.append(status)

    threads = [threading.Thread(target=client) for _ in range(arguments.clients)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    cores = torch.get_num_threads()
    p99 = float(np.percentile(seconds, 99))
    fair = single * arguments.clients / cores
    rate = len(seconds) / arguments.seconds * single
    print(f"{arguments.clients} clients for {arguments.seconds:.0f} s at 512²: {len(seconds)} requests, "
          f"{len(failures)} failures, {rate:.2f} × the single client's rate")  # fmt: skip
    print(f"  p99 ÷ (single median × clients ÷ cores): {p99 / fair:.2f}   "
          f"({1000 * p99:.0f} ms; single {1000 * single:.0f} ms)")  # fmt: skip
    print(f"  resident memory after ÷ before: {process.memory_info().rss / memory:.3f} ({memory / 1e6:.0f} MB before)")


def _body(image: bytes) -> dict[str, Any]:
    return {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}}


def _median(call: Callable[[], object], num: int) -> float:
    call()
    seconds = []
    for _ in range(num):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _print_ratios(what: str, ratios: list[float]) -> None:
    print(f"{what}: {min(ratios):.3f} {statistics.median(ratios):.3f} {max(ratios):.3f} (min median max)", flush=True)


if __name__ == "__main__":
    main()
