"""`predict` by the workers of a Dask cluster, each with a few planes at a time."""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, as_completed, get_worker
from distributed.comm.addressing import get_address_host_port
from distributed.worker import Worker

from stackseg.dataset.files.inputs import open_input
from stackseg.errors import DataError, MachineError
from stackseg.model.bundle import Bundle, load_bundle
from stackseg.model.devices import pick_device
from stackseg.params.inference import Runtime
from stackseg.prediction.outputs import Outputs, Share
from stackseg.prediction.part import put_layers
from stackseg.prediction.run import Options, Prediction, Progress, predict

PLANES_A_TASK = 4
"""Planes that a worker takes at a time: opening the stack anew costs little beside so many."""
FEW_PLANES = 16
"""Up to so many planes, each is a task."""
RETRIES = 2
"""How often a task that failed is tried again, as where a network drive did not answer."""
_PLUGIN = "stackseg"


@dataclass(frozen=True)
class Call:
    """What all workers are told; the paths are where they see them.

    Parameters
    ----------
    image, axes, level
        The stack, as `open_input` takes it.
    outputs, options
        As `predict` takes them.
    device, runtime
        What computes.
    model
        What the files call the model.
    """

    image: Path
    axes: str | None
    level: int
    outputs: Outputs
    options: Options
    device: str
    runtime: Runtime | None
    model: str


class LoadedModel(WorkerPlugin):
    """Takes the bundle to each worker, and loads it there once."""

    name = _PLUGIN

    def __init__(self, folder: Path, call: Call) -> None:
        self.call = call
        self._files = {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}

    def setup(self, worker: Worker) -> None:
        """Load the bundle from a folder of the worker's own, for another runtime opens its file."""
        self._folder = Path(tempfile.mkdtemp(prefix="stackseg-"))
        for name, data in self._files.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.bundle: Bundle = load_bundle(self._folder, pick_device(self.call.device), self.call.runtime)

    def teardown(self, worker: Worker) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def local_cluster(num_workers: int) -> Iterator[str]:
    """Yield the address of a scheduler with so many workers on this machine, which share its cores."""
    threads = str(max(1, (os.cpu_count() or 1) // num_workers))
    with LocalCluster(
        n_workers=num_workers,
        threads_per_worker=1,
        dashboard_address=None,
        memory_limit=0,  # memory is bounded by planes in flight; Dask would count what libraries keep
        env={"OMP_NUM_THREADS": threads},
    ) as cluster:
        yield cluster.scheduler_address


def predict_on_cluster(address: str, bundle: Path, call: Call, planes: range, progress: Progress) -> Prediction:
    """Segment a stack by all workers of a scheduler: what a worker leaves when it dies, another does again.

    Every worker has to see input and output under the same paths. The result is that of `predict`, to the bit.

    Parameters
    ----------
    address
        Of the scheduler, such as tcp://node1:8786.
    bundle
        Folder of the bundle here; its files are sent to the workers.
    planes
        Those that the options name. What an earlier call left of them is gone on with.

    Raises
    ------
    DataError
        As `predict` does.
    MachineError
        The scheduler does not answer, has no workers, or workers die.
    """
    num_tasks = max(math.ceil(len(planes) / PLANES_A_TASK), min(len(planes), FEW_PLANES))
    shares = [Share(number, num_tasks) for number in range(1, num_tasks + 1)]
    done: list[Prediction] = []
    with _connected(address) as client:
        client.register_plugin(LoadedModel(bundle, call))
        tasks = client.map(_segment_share, shares, retries=RETRIES, pure=False)
        try:
            for task in as_completed(tasks, loop=client.loop):
                done.append(task.result())
                num_planes = sum(one.num_planes for one in done)
                progress(num_planes, len(planes), sum(sum(one.pixels) for one in done))
        except KilledWorker as error:
            raise MachineError(
                f"workers died one after another over the same planes: {error.last_worker.address} was the last",
                where=address,
                remedy="see the workers' logs; fewer of them on a machine leave more memory for each",
            ) from None
        finally:
            client.cancel(tasks)
    put_layers(call.outputs)
    return Prediction(
        num_planes=len(planes),
        num_resumed=sum(one.num_resumed for one in done),
        pixels=tuple(np.sum([one.pixels for one in done], 0).tolist()),
        num_objects=sum(one.num_objects for one in done),
        written=tuple(path for path in map(call.outputs.path, call.outputs.layers) if path.exists()),
        large=(),
    )


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        # a Client that finds nobody cannot be closed without noise
        socket.create_connection(get_address_host_port(address), timeout=10).close()
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError):
        raise MachineError(
            "no scheduler answers",
            expected="a Dask scheduler such as tcp://node1:8786",
            where=address,
            remedy="`dask scheduler` starts one, `dask worker ADDRESS` a worker",
        ) from None
    with client:
        if not client.nthreads():
            raise MachineError(
                "a scheduler without workers", where=address, remedy=f"start some: `dask worker {address} --nthreads 1`"
            )
        yield client


def _segment_share(share: Share) -> Prediction:
    model = cast(LoadedModel, get_worker().plugins[_PLUGIN])
    call = model.call
    if not call.outputs.mask.parent.is_dir():
        raise DataError("no such folder on this worker", where=str(call.outputs.mask.parent), remedy="mount it there")
    with open_input(call.image, axes=call.axes, level=call.level) as stack:
        return predict(
            stack,
            model.bundle,
            call.outputs,
            call.options,
            voxel_size_zyx_um=stack.info.voxel_size_zyx_um,
            model=call.model,
            # what a worker left when it died is gone on with
            resume=True,
            share=share,
            # a task whose worker dies after it may be done again, when all others are long finished
            put=False,
        )
