"""Where things are in a project, for the verbs, and its tracking store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stackseg.cli.console import warn
from stackseg.errors import StoreError

if TYPE_CHECKING:
    from stackseg.params import Params
    from stackseg.registry.versions import RegisteredModel

PARAMS_FILE = Path("params.yaml")
DATA = Path("data")
OUTPUTS = Path("outputs")
CATALOG = OUTPUTS / "catalog.json"


def load_params() -> Params:
    """Read params.yaml of the folder that the verb runs in."""
    from stackseg.params import read_params

    return read_params(PARAMS_FILE)


def checkpoints_folder(root: Path) -> Path:
    """Return where checkpoints live: at the real root, also from DVC's temporary workspaces."""
    return root / "checkpoints"


def ready_store(params: Params) -> tuple[Path, str]:
    """Return the project's root and its experiment's id, the store being ready to log to; for verbs that write."""
    from stackseg.tracking.processes import close_abandoned_runs
    from stackseg.tracking.store import prepare_store, project_root

    root = project_root()
    ready = prepare_store(root, experiment=params.project.experiment)
    if ready.relocated is not None:
        warn(ready.relocated.sentence())
    if closed := close_abandoned_runs(ready.experiment_id):
        warn(f"ended as KILLED, for their processes are gone: run {', '.join(closed)}")
    return root, ready.experiment_id


def read_registry(params: Params) -> RegisteredModel:
    """Return what is registered, and say what is due in the store; for verbs that only read."""
    from stackseg.registry.versions import RegisteredModel, read_registered_model
    from stackseg.tracking.store import open_store_to_read, project_root

    root = project_root()
    if not open_store_to_read(root):
        return RegisteredModel(params.project.model_name, {}, {})
    if (due := _relocation_due(root)) is not None:
        warn(due.sentence())
    return read_registered_model(params.project.model_name)


def registry_to_load(params: Params) -> RegisteredModel:
    """Return what is registered, for verbs that load a version of it.

    Raises
    ------
    StoreError
        The project was moved, so that the recorded paths lead elsewhere.
    """
    from stackseg.tracking.uri import project_root

    if (due := _relocation_due(project_root())) is not None:
        raise due
    return read_registry(params)


def _relocation_due(root: Path) -> StoreError | None:
    from stackseg.tracking.relocate import find_moved

    if (moved_from := find_moved(root)) is None:
        return None
    return StoreError(
        f"the project was moved here from {moved_from}",
        where=str(root),
        remedy="`stackseg relocate` brings its recorded paths up to date",
    )


def lock_file(root: Path) -> Path:
    """Return the file whose lock keeps those processes of this machine apart that change the store."""
    return root / "mlflow.db.lock"


def run_dvc(*arguments: str, remedy: str) -> None:
    """Run DVC as a user would; the remedy is told when it fails.

    Raises
    ------
    StoreError
        DVC refuses; its last line says why.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        told = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no message")
        raise StoreError(
            f"`dvc {' '.join(arguments)}` failed: {told.removeprefix('ERROR: ')}",
            remedy=remedy,
        )
