"""Trials made in the tests' own process, as a worker makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from stackseg.search.mlflow_runs import open_study_run
from stackseg.search.objective import SearchJob, TrialContext, TrialError, run_trial
from stackseg.search.retry import stale_callback
from stackseg.search.samplers import build_sampler
from stackseg.search.space.parse import read_space
from stackseg.search.storage import open_storage, storage_url
from stackseg.search.study import load_study, open_study
from stackseg.tracking.store import prepare_store
from stackseg.training.train import Machine
from tiny_projects import Project

SPACE = {
    "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "augment.preset": {"choices": ["none", "light"]},
    "train.loss": {"choices": [{"cross_entropy": 1.0, "dice": 1.0}, {"focal": 1.0}]},
    "train.weight_decay": {"low": 0.0, "high": 0.1, "when": {"augment.preset": ["light"]}},
}


def opened(
    project: Project,
    num_trials: int,
    *,
    resume: bool = False,
    url: str | None = None,
    root: Path | None = None,
    seed: int = 1,
) -> tuple[optuna.Study, SearchJob]:
    """Return the study of a project, and the job of a search in it; `root` has the stores of another project."""
    root, name = root or project.folder, project.params.search.study
    ready = prepare_store(root, experiment="stackseg")
    space, checkpoints = read_space(project.params), root / "checkpoints" / "search" / name
    url = storage_url(root, url)
    storage = open_storage(url, heartbeat=60, on_stale=stale_callback(checkpoints))
    open_study(storage, name, space, project.catalog, resume=resume)
    study = load_study(storage, name, space, build_sampler(space, seed))
    job = SearchJob(
        params=project.params,
        catalog=project.catalog,
        data=project.data,
        root=root,
        url=url,
        study=name,
        folder=root / "outputs" / "search" / name,
        checkpoints=checkpoints,
        experiment_id=ready.experiment_id,
        parent_run=open_study_run(study, ready.experiment_id, root / "lock"),
        lock_file=root / "lock",
        machine=Machine(device="cpu"),
        num_trials=num_trials,
        num_workers=1,
        num_kept=1,
        seed=seed,
        deadline=None,
    )
    return study, job


def make_trials(project: Project, num_trials: int, *, num_asked: int | None = None, **options: Any) -> optuna.Study:
    """Make trials; more asked for than there shall be stand for other workers' in the same moment."""
    study, job = opened(project, num_trials, **options)
    context = TrialContext(job, read_space(project.params), job.machine, "here", lambda: False)
    study.optimize(lambda trial: run_trial(trial, context), n_trials=num_asked or num_trials, catch=(TrialError,))
    return study


def all_runs(root: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def runs_of(root: Path, study: str) -> tuple[Run, dict[int, list[Run]]]:
    """Return a study's run, and those of each trial."""
    runs = all_runs(root)
    (parent,) = [one for one in runs if one.data.tags.get("study") == study]
    children: dict[int, list[Run]] = {}
    for one in runs:
        if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id:
            children.setdefault(int(one.data.tags["trial"]), []).append(one)
    return parent, children


def name_of(run: Run) -> str:
    return str(run.data.tags["mlflow.runName"])


def settings_of(study: str, **section: Any) -> dict[str, Any]:
    """Return params of a search."""
    return {"search": {"space": SPACE, "pruner": {"name": "none"}, "study": study} | section}
