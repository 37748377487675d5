"""Where things are in a project, for the verbs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stackseg.errors import StoreError
from stackseg.params import Params, read_params

PARAMS_FILE = Path("params.yaml")
DATA = Path("data")
OUTPUTS = Path("outputs")
CATALOG = OUTPUTS / "catalog.json"


def load_params() -> Params:
    """Read params.yaml of the folder that the verb runs in."""
    return read_params(PARAMS_FILE)


def checkpoints_folder(root: Path) -> Path:
    """Return where checkpoints live: at the real root, also from DVC's temporary workspaces."""
    return root / "checkpoints"


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
