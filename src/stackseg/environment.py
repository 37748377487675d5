"""What keeps the libraries beneath from calling home and from talking over the verbs."""

from __future__ import annotations

import logging
import os


def quiet_environment() -> dict[str, str]:
    """Return the variables that switch off telemetry and update checks of the libraries in use.

    They are read when MLflow, DVC and albumentations are imported, so they have to be set before that.
    """
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        # DVC knows no variable that switches its update check off; without an address its request cannot leave.
        # (DVC_DAEMON and DVC_TEST would do it too, but the one stops `dvc queue start`, the other changes output.)
        "DVC_UPDATER_ENDPOINT": "off",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # not calls home, but lines that would drown what a verb has to say
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }


def apply_quiet_environment() -> None:
    """Set these variables for this process and its children, where the user has not set them."""
    for name, value in quiet_environment().items():
        os.environ.setdefault(name, value)


def quieten_libraries() -> None:
    """Keep from the terminal what the verbs say themselves; each process needs it."""
    # Fabric announces its precision and its processes
    for module in ("fabric.utilities.rank_zero", "fabric.utilities.distributed", "pytorch.utilities.rank_zero"):
        logging.getLogger(f"lightning.{module}").setLevel(logging.WARNING)
    # MLflow prints a traceback of what it then raises, and of each sample that its monitor could not write
    for module in ("store.db.utils", "system_metrics.system_metrics_monitor"):
        logging.getLogger(f"mlflow.{module}").setLevel(logging.CRITICAL)
