"""A stack segmented by a real Dask scheduler and its workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tiny_projects import tiny_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# the second plane that this worker segments is written, and nothing says so
DIES = """
import os, signal
from stackseg.prediction.part import Part
noted, note = [], Part.note
def note_or_die(self, place, plane):
    noted.append(place)
    if len(noted) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    note(self, place, plane)
Part.note = note_or_die
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture
def predict(trained: tuple[Any, Any], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    image_zyx = tiny_stack(12, seed=5)[0]
    tifffile.imwrite(tmp_path / "in.tif", image_zyx, photometric="minisblack", metadata={"axes": "ZYX"})

    def predict(out: str, *words: str) -> subprocess.CompletedProcess[str]:
        verb = ["predict", "in.tif", out, "--model", str(trained[0].folder / "model"), "--device", "cpu", *words]
        return subprocess.run(
            [sys.executable, "-c", "from stackseg.cli.main import run; run()", *verb],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return predict


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start one of Dask's processes, elsewhere than the stack; it ends with the test."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]],
                cwd=elsewhere, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


def tree(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def scheduler_at(file: Path, start: Callable[..., Any]) -> str:
    start("dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file))
    while not file.exists():
        time.sleep(0.1)
    return str(json.loads(file.read_text())["address"])


def test_a_killed_workers_planes_are_done_by_the_others(predict: Any, start: Any, tmp_path: Path) -> None:
    address = scheduler_at(tmp_path / "scheduler.json", start)
    refused = predict("m.zarr", "--scheduler", address)
    assert refused.returncode == 1
    assert "a scheduler without workers. Start some: `dask worker tcp://" in refused.stderr
    (tmp_path / "dies.py").write_text(DIES)
    worker = ["dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
    dying = start(*worker, "--preload", str(tmp_path / "dies.py"))
    for _ in range(2):
        start(*worker)
    wait = f"from distributed import Client; Client({address!r}).wait_for_workers(3, timeout=120)"
    subprocess.run([sys.executable, "-c", wait], env=ENVIRONMENT, check=True)
    done = predict("m.zarr", "--scheduler", address, "--probabilities")
    assert done.returncode == 0, done.stderr
    assert dying.wait(10) == -signal.SIGKILL
    assert "m.zarr: 12 planes by bundle" in done.stdout
    whole = predict("whole.zarr", "--probabilities")
    for name in ("", "_probabilities"):
        assert tree(tmp_path / f"m{name}.zarr") == tree(tmp_path / f"whole{name}.zarr")
    assert done.stdout.splitlines()[2:7] == whole.stdout.splitlines()[2:7]
    assert not (tmp_path / "m.zarr.part").exists()
    # a fault of the data comes back as it is, from whichever worker
    (tmp_path / "in.tif").write_bytes((tmp_path / "in.tif").read_bytes()[:-20_000])
    broken = predict("n.zarr", "--scheduler", address)
    assert broken.returncode == 1
    assert "Traceback" not in broken.stderr


def test_workers_of_this_machine(predict: Any, tmp_path: Path) -> None:
    image_zyx = np.concatenate([tifffile.imread(tmp_path / "in.tif")] * 3)[:35]
    tifffile.imwrite(tmp_path / "in.tif", image_zyx, photometric="minisblack", metadata={"axes": "ZYX"})
    done = predict("masks", "--workers", "2", "--slices", "1:34")  # more planes than tasks
    assert done.returncode == 0, done.stderr
    assert "masks: 33 planes by bundle" in done.stdout
    assert predict("whole", "--slices", "1:34").returncode == 0
    assert tree(tmp_path / "masks") == tree(tmp_path / "whole")


@pytest.mark.parametrize("address", ["nowhere", "tcp://127.0.0.1:1"])
def test_no_scheduler(predict: Any, address: str) -> None:
    refused = predict("m.zarr", "--scheduler", address)
    assert refused.returncode == 1
    assert f"{address}: no scheduler answers; expected a Dask scheduler such as tcp://node1:8786" in refused.stderr
    assert "Traceback" not in refused.stderr
