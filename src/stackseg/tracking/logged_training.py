"""A training and its run: what the train stage, each fold and each trial do alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stackseg.atomic import require_writable
from stackseg.dataset.records import Catalog
from stackseg.params import Params
from stackseg.tracking.lineage import git_state
from stackseg.tracking.run_logger import TrainingRun, write_run
from stackseg.training.callbacks import TrainingStopped
from stackseg.training.export import write_history
from stackseg.training.parent import Parent
from stackseg.training.train import Callback, Machine, TrainingResult, train


def train_and_log(
    params: Params,
    catalog: Catalog,
    *,
    data: Path,
    out: Path,
    checkpoints: Path,
    experiment_id: str,
    machine: Machine,
    parent: Parent | None = None,
    callbacks: Sequence[Callback] = (),
    tags: dict[str, str] | None = None,
    images: bool = True,
) -> TrainingResult | None:
    """Train, log to one MLflow run, and write model/, run.json and history.csv into `out`.

    `parent` is that of `train`, `tags` and `images` are those of `TrainingRun`. Returns None on all processes but the
    first.
    """
    require_writable(out, checkpoints)
    git = git_state(Path.cwd())
    run = TrainingRun(experiment_id, params, catalog, data, git, tags or {}, images=images)
    try:
        result = train(
            params,
            catalog,
            data=data,
            model=out / "model",
            checkpoints=checkpoints,
            parent=parent,
            git=(git.commit, git.dirty),
            machine=machine,
            callbacks=[run, *callbacks],
        )
        if result is None:
            return None
        write_history(out / "history.csv", result.history)
        record = run.finish(result.spec, result.history)
    except TrainingStopped:
        run.interrupt()
        raise
    except Exception as error:
        run.fail(str(error) or type(error).__name__)
        raise
    except BaseException:  # an interrupted training goes on in the same run
        run.interrupt()
        raise
    write_run(out / "run.json", record)
    return result
