"""Which process writes to a run, and the end of runs whose process is gone."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import psutil
from mlflow.tracking import MlflowClient

HOST, PROCESS, STARTED = "process.host", "process.id", "process.started"


def process_tags() -> dict[str, str]:
    """Return tags by which this process is known again; its start tells it from a later one of the same number."""
    process = psutil.Process()
    return {HOST: socket.gethostname(), PROCESS: str(process.pid), STARTED: f"{process.create_time():.2f}"}


def close_abandoned_runs(experiment_id: str) -> list[str]:
    """End the runs that processes of this machine left running when they were killed, and return their ids.

    Runs of living processes and of other machines are left alone.
    """
    client = MlflowClient()
    running = client.search_runs(
        [experiment_id], f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
    )
    abandoned = [run.info.run_id for run in running if not _is_alive(run.data.tags)]
    for run_id in abandoned:
        client.set_tag(run_id, "ended", "by a later verb: the process that wrote to it was gone")
        client.set_terminated(run_id, "KILLED")
    return abandoned


def _is_alive(tags: Mapping[str, str]) -> bool:
    try:
        return abs(psutil.Process(int(tags[PROCESS])).create_time() - float(tags[STARTED])) < 1
    except psutil.NoSuchProcess:
        return False
