"""The tracking store, as the verbs use it: made ready, and said aloud if it had to be mended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stackseg.cli.console import warn

if TYPE_CHECKING:
    from stackseg.params import Params
    from stackseg.registry.versions import Registered


def ready_store(params: Params) -> tuple[Path, str]:
    """Return the project's root and its experiment's id, the store being ready to log to."""
    from stackseg.tracking.store import prepare_store, project_root

    root = project_root()
    ready = prepare_store(root, experiment=params.project.experiment)
    if ready.relocated is not None:
        warn(ready.relocated.sentence())
    return root, ready.experiment_id


def ready_registry(params: Params) -> tuple[Path, Registered]:
    """Return the project's root and what is registered; a move of the champion that was interrupted is completed."""
    from stackseg.registry.champion import complete_interrupted
    from stackseg.registry.versions import registered

    root, _ = ready_store(params)
    mended = complete_interrupted(params.project.model_name, move_lock(root))
    if mended is not None:
        warn(f"{mended.action} of version {mended.to_version} by {mended.who} had been interrupted: {mended.outcome}")
    return root, registered(params.project.model_name)


def move_lock(root: Path) -> Path:
    """Return the file whose lock keeps changes of champion on this machine apart."""
    return root / "mlflow.db.lock"
