"""The tracking store, as the verbs use it: made ready, and said aloud if it had to be mended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stackseg.cli.console import warn

if TYPE_CHECKING:
    from stackseg.params import Params


def ready_store(params: Params) -> tuple[Path, str]:
    """Return the project's root and its experiment's id, the store being ready to log to."""
    from stackseg.lifecycle.store import prepare_store, project_root

    root = project_root()
    ready = prepare_store(root, experiment=params.project.experiment)
    if ready.relocated is not None:
        warn(ready.relocated.sentence())
    return root, ready.experiment_id
