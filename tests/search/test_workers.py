"""A search as a user runs it: real processes, real storages, real runs."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import optuna
import psutil
import pytest
import tifffile
import torch
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState
from typer.testing import CliRunner

from databases import free_port, postgresql
from served_projects import BIN, environment, run
from stackseg.cli.main import app
from stackseg.cli.search import same_search
from stackseg.dataset.records import read_catalog
from stackseg.errors import MachineError, StacksegError
from stackseg.model.bundle import read_spec
from stackseg.params import read_params
from stackseg.params.file import read_tree, write_tree, write_values
from stackseg.search import objective as trials_module
from stackseg.search import workers as workers_module
from stackseg.search.mlflow_runs import close_study_run, open_study_run
from stackseg.search.objective import TrialContext, TrialError, remove_surplus_bundles, run_trial
from stackseg.search.progress import progress_of
from stackseg.search.retry import stale_callback
from stackseg.search.samplers import build_pruner, build_sampler
from stackseg.search.space.parse import read_space
from stackseg.search.storage import open_storage, storage_url
from stackseg.search.study import load_study, open_study
from stackseg.search.workers import threads_per_worker, worker_device
from stackseg.tracking.store import prepare_store
from stackseg.training.checkpoints import Checkpoints
from stackseg.training.learner import Learner
from stackseg.training.train import Machine
from tiny_projects import SETTINGS, Project, make_tiny_project, tiny_stack, write_specimen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
ROOT = Path(__file__).parents[2]

SPACE = {
    "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "augment.preset": {"choices": ["none", "light"]},
    "train.loss": {"choices": [{"cross_entropy": 1.0, "dice": 1.0}, {"focal": 1.0}]},
    "train.weight_decay": {"low": 0.0, "high": 0.1, "when": {"augment.preset": ["light"]}},
}
SEARCH = {"space": SPACE, "sampler": {"name": "random", "arguments": {}}, "heartbeat": 1}
# an epoch of it takes half a minute: long enough to be interrupted in
LONG = {"train.epochs": 300, "train.patches_per_epoch": 64}


def make_project(root: Path, settings: dict[str, Any] | None = None, **search: Any) -> Path:
    """Write a project of a tiny stack with its catalogue and a search space."""
    root.mkdir(parents=True)
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    (root / "dvc.yaml").write_text("stages: {}\n")
    write_specimen(root / "data" / "rock", *tiny_stack())
    tree = read_tree(root / "params.yaml")
    tree["search"] |= {"space": {}}
    tree["train"] |= {"patch_size": 32}
    write_tree(root / "params.yaml", tree)
    write_values(root / "params.yaml", {**SETTINGS, **(settings or {})})
    tree = read_tree(root / "params.yaml")
    tree["search"] |= SEARCH | search
    write_tree(root / "params.yaml", tree)
    run(root, environment(), "stackseg", "catalog")
    return root


def search(root: Path, *options: str, ok: bool = True) -> str:
    return run(root, environment(), "stackseg", "search", *options, ok=ok)


def trials_of(root: Path, url: str | None = None, name: str = "search") -> list[optuna.trial.FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(url or f"sqlite:///{root / 'optuna.db'}")
    try:
        return optuna.load_study(study_name=name, storage=storage).trials
    finally:
        storage.engine.dispose()


def runs_of(root: Path) -> tuple[Run, dict[int, list[Run]]]:
    """Return the run of the only study, and those of each trial."""
    runs = all_runs(root)
    (parent,) = [one for one in runs if "optuna.study_id" in one.data.tags]
    children: dict[int, list[Run]] = {}
    for one in runs:
        if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id:
            children.setdefault(int(one.data.tags["trial"]), []).append(one)
    return parent, children


def all_runs(root: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)
    return found


def heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Background:
    """A search that goes on while the test looks on."""

    def __init__(self, root: Path, *options: str) -> None:
        self._log = root / "search.log"
        with self._log.open("w") as log:
            self.process = psutil.Popen(
                [str(BIN / "stackseg"), "search", *options],
                cwd=root, env=environment(), stdout=log, stderr=log, start_new_session=True,
                # a shell that runs the tests in the background has its children ignore interrupts
                preexec_fn=heed_signals,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._log.read_text()

    def workers(self) -> list[psutil.Process]:
        """Return the processes that make trials."""
        return [one for one in self.process.children() if "spawn_main" in " ".join(one.cmdline())]

    def wait(self) -> int:
        return int(self.process.wait(200))


def training_trials(root: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that have reported an epoch and are at work."""
    if not (root / "optuna.db").exists():
        return []
    try:
        return [one for one in trials_of(root) if one.state == TrialState.RUNNING and one.intermediate_values]
    except (KeyError, sqlite3.Error):  # the study is being made
        return []


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a project in which two workers have made eight trials, and what was said."""
    root = make_project(tmp_path_factory.mktemp("searched") / "project")
    return root, search(root, "--trials", "8", "--workers", "2", "--top", "2")


def test_a_study_has_the_trials_that_were_asked_for_and_the_present_params_first(searched: tuple[Path, str]) -> None:
    root, said = searched
    trials = trials_of(root)
    assert [one.number for one in trials] == list(range(8))
    assert {one.state for one in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    params = read_params(root / "params.yaml")
    assert trials[0].params["train.lr"] == params.train.lr
    assert trials[0].params["augment.preset"] == params.augment.preset
    for one in trials:
        assert ("train.weight_decay" in one.params) == (one.params["augment.preset"] == "light")
    best = max((one for one in trials if one.state == TrialState.COMPLETE), key=lambda one: one.value or 0)
    assert f"best: trial {best.number}," in said
    assert "best trials of study search" in said
    with closing(sqlite3.connect(root / "optuna.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_each_trial_has_a_run_under_that_of_the_study(searched: tuple[Path, str]) -> None:
    root, _ = searched
    trials = trials_of(root)
    parent, children = runs_of(root)
    assert sorted(children) == list(range(8))
    complete = [one for one in trials if one.state == TrialState.COMPLETE]
    best = max(complete, key=lambda one: one.value or 0)
    for one in trials:
        (child,) = children[one.number]
        assert child.info.run_id == one.user_attrs["run_id"]
        assert child.info.status == ("FINISHED" if one.state == TrialState.COMPLETE else "KILLED")
        assert child.data.tags["trial.state"] == one.state.name.lower()
        assert float(child.data.params["train.lr"]) == one.params["train.lr"]
        assert child.data.metrics["trial/seconds"] > 0
        if one.state == TrialState.COMPLETE:
            assert child.data.metrics["objective/mean_iou"] == one.value
        assert ("best_of_study" in child.data.tags) == (one.number == best.number)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["best_trial"] == str(best.number)
    assert parent.data.tags["best_run"] == best.user_attrs["run_id"]
    assert parent.data.metrics["trials/complete"] == len(complete)
    pictures = {path.name for path in (root / "mlruns").glob(f"*/{parent.info.run_id}/artifacts/pictures/*.png")}
    assert {"history.png", "curves.png", "slice.png", "parallel_coordinate.png"} <= pictures
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    assert client.search_model_versions() == []


def test_the_best_bundles_and_params_are_left(searched: tuple[Path, str]) -> None:
    root, _ = searched
    complete = sorted((one for one in trials_of(root) if one.value is not None and one.state == TrialState.COMPLETE),
                      key=lambda one: -(one.value or 0))  # fmt: skip
    folders = sorted(path.parent.name for path in (root / "outputs" / "search" / "search").glob("*/model"))
    assert folders == sorted(f"trial-{one.number:04d}" for one in complete[:2])
    written = read_tree(root / "outputs" / "best_params.yaml")
    assert written["train"]["lr"] == complete[0].params["train.lr"]
    assert dict(written["train"]["loss"]) == json.loads(complete[0].params["train.loss"])
    queued = (root / "outputs" / "search" / "search" / "queue.sh").read_text()
    assert f"--name search-trial-{complete[0].number} " in queued
    assert list((root / "checkpoints" / "search" / "search").iterdir()) == []


def test_a_study_that_is_there_wants_resume_and_then_goes_on(searched: tuple[Path, str], tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(searched[0], root)
    said = search(root, "--trials", "9", ok=False)
    assert "the study 'search' is there already, with 8 finished trials" in said
    assert "--resume goes on" in said
    before = (root / "params.yaml").read_text()
    said = search(root, "--trials", "9", "--resume", "--apply", "--register-best")
    trials = trials_of(root)
    assert len(trials) == 9
    # a resumed sampler draws other numbers than it began with
    assert len({one.params["train.lr"] for one in trials}) == 9
    best = max((one for one in trials if one.state == TrialState.COMPLETE), key=lambda one: one.value or 0)
    params = read_params(root / "params.yaml")
    assert params.train.lr == best.params["train.lr"]
    assert params.train.loss == json.loads(best.params["train.loss"])
    comments = [line.partition("#")[2] for line in before.splitlines() if "#" in line and "loss" not in line]
    assert all(comment in (root / "params.yaml").read_text() for comment in comments)
    assert "registered stackseg version 1" in said
    (version,) = MlflowClient(f"sqlite:///{root / 'mlflow.db'}").search_model_versions()
    assert version.run_id == best.user_attrs["run_id"]
    # another study's trial of that number
    record = root / "outputs" / "search" / "search" / f"trial-{best.number:04d}" / "run.json"
    record.write_text(record.read_text().replace(version.run_id, "0" * 32))
    said = search(root, "--trials", "9", "--resume", "--register-best", "--top", "4", ok=False)
    # two are kept, as when the study began, and the best is not the one to be registered
    num_complete = sum(one.state == TrialState.COMPLETE for one in trials)
    assert said.count("is not here: it was made on") == min(4, num_complete) - 2 + 1
    assert f"the bundle of trial {best.number} is not here" in said
    # what all trials have in common has changed
    write_values(root / "params.yaml", {"train.epochs": 4})
    said = search(root, "--trials", "10", "--resume", ok=False)
    assert "train.epochs is 4 since study 'search' began; expected 3" in said
    assert len(trials_of(root)) == 9


@pytest.mark.parametrize(
    ("folds", "settings"),
    [(None, {}), (2, {}), (None, {"split.gap": 2, "model.context_slices": 2})],
    ids=["validation", "folds", "neighbours"],
)
def test_the_test_part_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int | None, settings: dict[str, Any]
) -> None:
    made = []
    for noisy in (False, True):
        project = make_tiny_project(
            tmp_path / str(noisy), {"search": {"space": SPACE, "folds": folds}, **settings}, num_planes=24
        )
        if noisy:
            test = [ref.z for ref, _ in project.catalog.planes("test")]
            assert test
            fill_with_noise(project.data / "rock", test)
        monkeypatch.chdir(project.folder)
        for name in ("params.yaml", "dvc.yaml"):
            Path(name).write_text("{}\n")
        study = trials_in_this_process(project, num_trials=3)
        made.append([(one.params, one.values, one.intermediate_values, one.state) for one in study.trials])
    assert made[0] == made[1]
    assert any(values for _, values, _, _ in made[0])


def fill_with_noise(specimen: Path, planes: list[int]) -> None:
    random = np.random.default_rng(3)
    for name, values in (("images.tif", np.arange(65536)), ("masks.tif", np.array([0, 3, 7]))):
        stack = tifffile.imread(specimen / name)
        stack[planes] = random.choice(values, stack[planes].shape)
        tifffile.imwrite(specimen / name, stack, metadata={"axes": "ZYX"})


def trials_in_this_process(
    project: Project, num_trials: int, *, resume: bool = False, num_asked: int | None = None
) -> optuna.Study:
    """Make trials as a worker does; more asked for than there shall be stand for other workers' in the same moment."""
    root = project.folder
    ready = prepare_store(root, experiment="stackseg")
    space = read_space(project.params)
    checkpoints = root / "checkpoints" / "search"
    storage = open_storage(storage_url(root, None), heartbeat=60, on_stale=stale_callback(checkpoints))
    open_study(storage, "search", space, project.catalog, resume=resume)
    study = load_study(storage, "search", space, build_sampler(space, 1))
    bench = TrialContext(
        space=space,
        catalog=project.catalog,
        data=project.data,
        folder=root / "outputs",
        checkpoints=checkpoints,
        experiment_id=ready.experiment_id,
        parent_run=open_study_run(study, ready.experiment_id, root / "lock"),
        machine=Machine(device="cpu"),
        num_trials=num_trials,
        worker="here",
        must_end=lambda: False,
    )
    study.optimize(lambda trial: run_trial(trial, bench), n_trials=num_asked or num_trials, catch=(TrialError,))
    return study


def test_a_killed_worker_loses_no_trial(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", LONG, pruner={"name": "none", "arguments": {}})
    going = Background(root, "--trials", "3", "--workers", "2", "--timeout", "600")
    try:
        wait_for(lambda: training_trials(root))
        workers = going.workers()
        assert len(workers) == 2
        # whose trial it is does not matter: both have one
        wait_for(lambda: len(training_trials(root)) == 2)
        workers[0].send_signal(signal.SIGKILL)
        stale = wait_for(lambda: [one for one in trials_of(root) if one.state == TrialState.FAIL])
        (retried,) = wait_for(lambda: [one for one in trials_of(root) if "retry_history" in one.system_attrs])
        assert retried.params == stale[0].params
        assert retried.system_attrs["retry_history"] == [stale[0].number]
        _, children = runs_of(root)
        (closed,) = children[stale[0].number]
        assert closed.info.status == "KILLED"
        assert closed.data.tags["trial.state"] == "stale"
    finally:
        # the other worker ends with the process that started it
        going.process.kill()
        going.wait()
    _, alive = psutil.wait_procs(workers, 60)
    assert alive == []


@pytest.mark.parametrize("storage", [[], ["--storage", "journal:study.log"]], ids=["sqlite", "journal"])
def test_a_search_whose_only_worker_was_killed_leaves_nothing_open(tmp_path: Path, storage: list[str]) -> None:
    root = make_project(tmp_path / "project", LONG, pruner={"name": "none", "arguments": {}})
    going = Background(root, "--trials", "2", *storage)
    wait_for((root / "mlflow.db").exists)  # whole, once it is there
    wait_for(lambda: [one for one in all_runs(root) if "trial" in one.data.tags])
    (worker,) = going.workers()
    worker.send_signal(signal.SIGKILL)
    assert going.wait() == 1
    assert "worker 0 was ended by signal 9 (9: often for want of memory); 0 of 2 trials are finished" in going.said
    assert "Traceback" not in going.said
    runs = all_runs(root)
    assert {one.info.status for one in runs} == {"FAILED", "KILLED"}
    (closed,) = [one for one in runs if "trial" in one.data.tags]
    assert (closed.info.status, closed.data.tags["trial.state"]) == ("KILLED", "stale")


def test_a_worker_that_was_only_suspended_leaves_its_trial_to_the_one_who_took_it_up(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", LONG, pruner={"name": "none", "arguments": {}})
    going = Background(root, "--trials", "3", "--timeout", "600")
    try:
        (suspended,) = wait_for(lambda: training_trials(root))
        (worker,) = going.workers()
        wait_for(lambda: suspended_between_two_words(worker, root))
        wait_for(lambda: trials_of(root)[0].state == TrialState.FAIL)
        worker.resume()
        # it goes on, with the same params under another number
        retried = wait_for(lambda: [one for one in training_trials(root) if one.number == 1])[0]
        assert retried.params == suspended.params
        assert retried.system_attrs["retry_history"] == [0]
        assert going.workers() == [worker]
        assert len(trials_of(root)) == 2  # queued once
        (closed,) = runs_of(root)[1][0]
        assert (closed.info.status, closed.data.tags["trial.state"]) == ("KILLED", "stale")
        assert "Traceback" not in going.said
    finally:
        going.process.send_signal(signal.SIGTERM)
        going.wait()


def suspended_between_two_words(worker: psutil.Process, root: Path) -> bool:
    """Suspend a worker; amid a transaction it would keep everybody from the database, and is woken again."""
    worker.suspend()
    for name in ("optuna.db", "mlflow.db"):
        with closing(sqlite3.connect(root / name, timeout=5, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            except sqlite3.OperationalError:
                worker.resume()
                return False
    return True


def test_an_interrupted_search_closes_its_runs_and_goes_on(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", LONG)
    going = Background(root, "--trials", "1")
    interrupted = wait_for(lambda: training_trials(root))[0]
    going.process.send_signal(signal.SIGINT)
    assert going.wait() == 130
    assert "Traceback" not in going.said
    assert "`stackseg search --trials 1 --device cpu --resume` goes on" in going.said
    assert "ending the trials" in going.said.splitlines()[-2]
    parent, children = runs_of(root)
    assert parent.info.status == "KILLED"
    assert children[interrupted.number][0].info.status == "KILLED"
    failed, queued = trials_of(root)
    assert failed.state == TrialState.FAIL
    assert queued.state == TrialState.WAITING
    # killed as a whole, its trial is found to be stale
    going = Background(root, "--trials", "1", "--resume")
    wait_for(lambda: training_trials(root))
    for one in (*going.workers(), going.process):
        one.kill()
    assert going.wait() == -signal.SIGKILL
    going = Background(root, "--trials", "1", "--resume", "--timeout", "1000")
    try:
        retried = wait_for(lambda: [one for one in training_trials(root) if one.number == 2])[0]
        assert retried.params == failed.params
    finally:
        going.process.send_signal(signal.SIGHUP)  # its terminal is closed
        assert going.wait() == 130
    assert runs_of(root)[0].info.status == "KILLED"


@pytest.fixture
def project_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """Return a maker of tiny projects with sections of `search`, each the working directory once it is made."""

    def make(settings: dict[str, Any] | None = None, **section: Any) -> Project:
        search = {"space": SPACE, "pruner": {"name": "none"}} | section
        project = make_tiny_project(tmp_path, {**(settings or {}), "search": search})
        monkeypatch.chdir(project.folder)
        for name in ("params.yaml", "dvc.yaml"):
            Path(name).write_text("{}\n")
        return project

    return make


@pytest.mark.parametrize(
    ("values", "options", "told"),
    [
        ({}, ["--data", "nodata"], "nodata: no such folder"),
        ({"search.folds": 60}, [], "there are fewer units than folds"),
        ({"search.space": {"train.class_weights": {"choices": ["none", [1.0]]}}}, [], "1 class weights; expected 3"),
        (
            {"search.space": {"model.architecture": {"choices": ["Linknet", "Unett"]}}},
            [],
            "unknown architecture 'Unett'",
        ),
        ({"search.sampler": {"name": "tpe", "arguments": {"n_startup": 3}}}, [], "search.sampler.arguments"),
        ({}, ["--storage", ""], "an empty text is no address"),
        (
            {
                "augment": {"preset": "file", "file": "none.json"},
                "search.space": {"train.lr": {"low": 1e-4, "high": 1e-2}},
            },
            [],
            "dvc.yaml: none.json is not among the deps of stage train",
        ),
    ],
)
def test_what_cannot_be_searched_is_told_before_the_first_trial(
    searched: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    options: list[str],
    told: str,
) -> None:
    root = tmp_path / "project"
    shutil.copytree(searched[0], root, ignore=shutil.ignore_patterns("mlruns", "mlflow.db*", "optuna.db*", "search"))
    write_values(root / "params.yaml", values)
    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, ["search", "--trials", "2", "--study", "unborn", *options])
    assert isinstance(done.exception, StacksegError)
    assert told in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (root / "outputs" / "search").exists()


def test_several_objectives_make_a_front(project_here: Callable[..., Project]) -> None:
    project = project_here(objectives=["mean_iou", "parameters", "ms_per_megapixel"])
    study = trials_in_this_process(project, num_trials=3)
    assert all(len(one.values) == 3 and one.values[1] > 1e5 for one in study.trials)
    parent, children = runs_of(project.folder)
    assert set(children[0][0].data.metrics) >= {"objective/mean_iou", "objective/parameters"}
    close_study_run(study, parent.info.run_id, parent.info.experiment_id, "FINISHED", project.folder / "lock")
    assert list((project.folder / "mlruns").glob(f"*/{parent.info.run_id}/artifacts/pictures/pareto_front.png"))


def test_folds_are_scored_in_order_and_stopped_where_they_trail(project_here: Callable[..., Project]) -> None:
    project = project_here(
        {"train.lr": 5e-3},
        folds=3,
        fold_margin=0.0,
        space={"train.lr": {"choices": [5e-3, 1e-7]}},
        sampler={"name": "brute_force"},
    )
    first, second = trials_in_this_process(project, num_trials=2).trials
    assert len(first.user_attrs["fold_scores"]) == 3
    assert first.value == pytest.approx(np.mean(first.user_attrs["fold_scores"]))
    assert second.state == TrialState.PRUNED
    assert len(second.user_attrs["fold_scores"]) == 1
    parent, children = runs_of(project.folder)
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    folds = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{children[0][0].info.run_id}'"
    )
    assert sorted(one.data.tags["fold"] for one in folds) == ["0", "1", "2"]


def test_of_several_objectives_no_fold_is_left_out(project_here: Callable[..., Project]) -> None:
    project = project_here(
        {"train.lr": 5e-3},
        objectives=["mean_iou", "parameters"],
        folds=3,
        fold_margin=0.0,
        space={"train.lr": {"choices": [5e-3, 1e-7]}},
        sampler={"name": "brute_force"},
    )
    trials = trials_in_this_process(project, num_trials=2).trials
    assert [len(one.user_attrs["fold_scores"]) for one in trials] == [3, 3]
    assert {one.state for one in trials} == {TrialState.COMPLETE}


def test_the_pruner_looks_at_no_last_epoch(project_here: Callable[..., Project]) -> None:
    # its second look would be at epoch 4
    project = project_here({"train.epochs": 4}, folds=2, pruner={"name": "successive_halving", "arguments": {}})
    study = trials_in_this_process(project, num_trials=1)
    assert build_pruner(read_space(project.params))._min_resource == 1  # type: ignore[attr-defined]
    assert "completed_rung_1" not in study.trials[0].system_attrs


def test_a_trial_that_cannot_be_trained_is_recorded_and_the_study_goes_on(
    project_here: Callable[..., Project],
) -> None:
    # PAN takes no patches of 32 pixels
    space = {"model.architecture": {"choices": ["Linknet", "PAN"]}}
    project = project_here(space=space, sampler={"name": "brute_force"})
    complete, failed = trials_in_this_process(project, num_trials=2).trials
    assert complete.state == TrialState.COMPLETE
    assert failed.state == TrialState.FAIL
    assert "PAN" in failed.user_attrs["failure"]
    assert "\n" not in failed.user_attrs["failure"]
    assert progress_of([complete, failed]).num_finished == 2
    # although no training of it had begun
    (run,) = runs_of(project.folder)[1][1]
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", failed.user_attrs["failure"])
    assert run.data.params["model.architecture"] == "PAN"


@pytest.mark.parametrize("folds", [None, 2])
def test_an_error_that_nobody_foresaw_ends_the_search_once(
    project_here: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, folds: int | None
) -> None:
    project = project_here(folds=folds)

    def fault(*arguments: Any) -> Any:
        raise RuntimeError("the kernel does not like this shape")

    with monkeypatch.context() as broken:
        broken.setattr(Learner, "step", fault)
        with pytest.raises(RuntimeError, match="does not like"):
            trials_in_this_process(project, num_trials=2)
        study = trials_in_this_process(project, num_trials=1, resume=True)
    assert [one.state for one in study.trials] == [TrialState.FAIL] * 2
    assert study.trials[1].user_attrs["failure"] == "the kernel does not like this shape"
    ((first,), (second,)) = (runs_of(project.folder)[1][number] for number in (0, 1))
    assert (first.info.status, first.data.tags["trial.state"]) == ("KILLED", "interrupted")
    assert (second.info.status, second.data.tags["trial.state"]) == ("FAILED", "failed")
    assert progress_of(study.trials).num_finished == 1


def test_trials_of_any_number_of_epochs_are_compared_at_the_same_share(
    project_here: Callable[..., Project],
) -> None:
    space = {"train.epochs": {"choices": [4, 8, 2]}}
    project = project_here({"train.epochs": 4, "train.validate_every": 1}, space=space, sampler={"name": "brute_force"})
    study = trials_in_this_process(project, num_trials=3)
    steps = {one.params["train.epochs"]: sorted(one.intermediate_values) for one in study.trials}
    # whatever number params.yaml has by now
    assert steps == {4: [2, 4, 6, 8], 8: list(range(1, 9)), 2: [4, 8]}


def test_runs_that_were_left_open_are_closed(project_here: Callable[..., Project]) -> None:
    project = project_here(folds=2)
    study = trials_in_this_process(project, num_trials=2)
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    parent, children = runs_of(project.folder)
    below = [one for one in all_runs(project.folder) if one.data.tags.get("fold") == "1"]
    for one in (children[0][0], *below):  # as where MLflow was out of reach
        client.update_run(one.info.run_id, "RUNNING")
    close_study_run(study, parent.info.run_id, parent.info.experiment_id, "FINISHED", project.folder / "lock")
    assert {one.info.status for one in all_runs(project.folder)} == {"FINISHED"}


def test_data_that_have_changed_are_told_of(searched: tuple[Path, str], tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(searched[0], root)
    test = [one.z for one, _ in read_catalog(root / "outputs" / "catalog.json").planes("test")]
    fill_with_noise(root / "data" / "rock", test)
    search(root, "--trials", "8", "--resume")  # they are not read
    training = [one.z for one, _ in read_catalog(root / "outputs" / "catalog.json").planes("training")]
    fill_with_noise(root / "data" / "rock", training)
    said = search(root, "--trials", "8", "--resume", ok=False)
    assert "has changed since the catalogue was made. `dvc repro`" in said


def test_with_folds_planes_of_the_gap_are_compared_too(searched: tuple[Path, str], tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(searched[0], root)
    write_values(root / "params.yaml", {"split.gap": 1, "search.folds": 3})
    run(root, environment(), "stackseg", "catalog")
    gap = [one.z for one, _ in read_catalog(root / "outputs" / "catalog.json").planes("gap")]
    assert gap
    fill_with_noise(root / "data" / "rock", gap)
    said = search(root, "--trials", "1", "--study", "folded", ok=False)
    assert "has changed since the catalogue was made. `dvc repro`" in said


def test_intensities_of_whole_specimens_with_test_planes_are_refused(
    searched: tuple[Path, str], tmp_path: Path
) -> None:
    root = tmp_path / "project"
    shutil.copytree(searched[0], root)
    write_values(root / "params.yaml", {"intensity.scope": "specimen"})
    run(root, environment(), "stackseg", "catalog")
    said = " ".join(search(root, "--trials", "1", "--study", "whole", ok=False).split())
    assert "intensity.scope: intensities of the whole of rock, its test planes among them, would reach" in said


def test_a_storage_that_is_lost_in_the_end_is_told_in_one_line(
    searched: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    shutil.copytree(searched[0], root)
    monkeypatch.chdir(root)

    def lost(*_: Any) -> list[Path]:
        raise optuna.exceptions.StorageInternalError("server closed the connection unexpectedly")

    monkeypatch.setattr("stackseg.search.mlflow_runs.draw_study", lost)
    done = CliRunner().invoke(app, ["search", "--trials", "8", "--resume"])
    assert isinstance(done.exception, StacksegError)
    assert "optuna.db: the study storage failed: server closed the connection" in str(done.exception)
    assert runs_of(root)[0].info.status == "FAILED"


def test_the_best_are_not_written_beside_other_params(searched: tuple[Path, str], tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(searched[0], root)
    going = Background(root, "--trials", "9", "--resume", "--apply")
    wait_for(lambda: len(trials_of(root)) == 9)
    write_values(root / "params.yaml", {"train.epochs": 5})
    before = (root / "params.yaml").read_text()
    assert going.wait() == 1
    assert "params.yaml: train.epochs was changed to 5 while the search went on; expected 3, with which" in going.said
    assert (root / "params.yaml").read_text() == before


def test_one_more_than_was_asked_for_is_kept_for_later(project_here: Callable[..., Project]) -> None:
    space = {"augment.preset": {"choices": ["light", "none"]}, "train.loss": SPACE["train.loss"]}
    project = project_here(space=space, sampler={"name": "brute_force"})
    study = trials_in_this_process(project, num_trials=2, num_asked=3)
    states = [one.state for one in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    assert progress_of(study.trials).num_finished == 2
    study = trials_in_this_process(project, num_trials=4, num_asked=2, resume=True)
    complete = [one.params for one in study.trials if one.state == TrialState.COMPLETE]
    assert len({str(sorted(one.items())) for one in complete}) == len(complete) == 4


def test_nothing_of_a_study_that_is_gone_is_gone_on_with(
    project_here: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_here()
    left = project.folder / "left"
    with monkeypatch.context() as watched:
        # a process that is killed leaves what it has saved
        save = Checkpoints.save_last_meanwhile

        def keep(self: Checkpoints, state: dict[str, Any]) -> None:
            save(self, state)
            self.finish()
            shutil.copytree(project.folder / "checkpoints", left, dirs_exist_ok=True)

        watched.setattr(Checkpoints, "save_last_meanwhile", keep)
        trials_in_this_process(project, num_trials=1)
    assert list(left.rglob("*.pt"))
    for file in project.folder.glob("optuna.db*"):
        file.unlink()
    shutil.copytree(left, project.folder / "checkpoints", dirs_exist_ok=True)
    study = trials_in_this_process(project, num_trials=1)
    parents = {one.info.run_id for one in all_runs(project.folder) if "optuna.study_id" in one.data.tags}
    assert len(parents) == 2
    (run,) = [one for one in all_runs(project.folder) if one.info.run_id == study.trials[0].user_attrs["run_id"]]
    assert "resumed_at_epoch" not in run.data.tags
    assert len([one for one in all_runs(project.folder) if one.data.tags.get("trial") == "0"]) == 2


def test_a_bundle_that_may_come_back_to_the_front_is_kept(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])

    def folders(values: tuple[float, float], num_kept: int | None) -> list[str]:
        study.add_trial(optuna.trial.create_trial(values=values))
        (tmp_path / f"trial-{len(study.trials) - 1:04d}").mkdir()
        remove_surplus_bundles(study, tmp_path, num_kept)
        return sorted(one.name[-1] for one in tmp_path.iterdir())

    assert folders((0.9, 10), None) == ["0"]
    assert folders((0.8, 5), None) == ["0", "1"]
    assert folders((0.7, 2), None) == ["0", "1", "2"]
    assert folders((0.95, 4), None) == ["2", "3"]  # it dominates two
    assert folders((0.6, 1), 2) == ["2", "3"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_studys_run_is_closed_whatever_comes_in_between(
    project_here: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    project = project_here()
    study = trials_in_this_process(project, num_trials=1)
    (parent, _) = runs_of(project.folder)

    def interrupted(*_: Any) -> list[Path]:
        raise error

    monkeypatch.setattr("stackseg.search.mlflow_runs.draw_study", interrupted)
    with pytest.raises(error):
        close_study_run(study, parent.info.run_id, parent.info.experiment_id, "KILLED", project.folder / "lock")
    assert runs_of(project.folder)[0].info.status == "KILLED"


def test_a_dead_workers_trial_begins_anew(project_here: Callable[..., Project]) -> None:
    project = project_here(folds=2)
    study = trials_in_this_process(project, num_trials=1)
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    parent, children = runs_of(project.folder)
    (run,) = children[0]
    below = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    for one in (run, below[0]):
        client.update_run(one.info.run_id, "RUNNING")
    dead = study.trials[0]
    dead.system_attrs = {**dead.system_attrs, "completed_rung_0": 0.9}
    on_stale = stale_callback(project.folder / "checkpoints")
    on_stale(study, dead)
    on_stale(study, study.trials[0])  # noticed once more by somebody else
    _, again = study.trials
    assert again.state == TrialState.WAITING
    assert again.params == dead.params
    assert again.system_attrs == {"failed_trial": 0, "retry_history": [0], **kept(dead)}
    states = [client.get_run(one.info.run_id).info.status for one in (run, *below)]
    assert sorted(states) == ["FINISHED", "KILLED", "KILLED"]


def kept(dead: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {key: value for key, value in dead.system_attrs.items() if key == "fixed_params"}


def test_a_trial_that_was_trained_to_its_end_has_a_score(project_here: Callable[..., Project]) -> None:
    always = {"name": "threshold", "arguments": {"lower": 1.0, "n_warmup_steps": 3}}
    for complete in trials_in_this_process(project_here(pruner=always), num_trials=2).trials:
        assert complete.state == TrialState.COMPLETE
        assert max(complete.intermediate_values) == 3


def test_the_present_params_are_never_pruned(project_here: Callable[..., Project]) -> None:
    # whoever comes first, as with two workers: the search could else end below what is there
    never = {"name": "threshold", "arguments": {"lower": 1.0}}
    first, other = trials_in_this_process(project_here(pruner=never), num_trials=2).trials
    assert (first.state, max(first.intermediate_values)) == (TrialState.COMPLETE, 3)
    assert (other.state, max(other.intermediate_values)) == (TrialState.PRUNED, 1)


def test_nor_are_they_left_out_of_a_fold(project_here: Callable[..., Project]) -> None:
    project = project_here(
        {"train.lr": 1e-7},
        folds=2,
        fold_margin=0.0,
        space={"train.lr": {"choices": [5e-3, 1e-7]}},
        sampler={"name": "brute_force"},
    )
    study = trials_in_this_process(project, num_trials=2)
    assert study.trials[1].value > study.trials[0].value
    study.enqueue_trial(study.trials[0].params)  # as where its worker had died
    again = trials_in_this_process(project, num_trials=3, num_asked=1, resume=True).trials[2]
    assert again.state == TrialState.COMPLETE
    assert again.value == study.trials[0].value


@pytest.mark.parametrize("ended", ["complete", "pruned"])
def test_a_trial_whose_run_could_not_be_closed_is_made_once_more(
    project_here: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    project = project_here(pruner={"name": "threshold", "arguments": {"lower": 1.0}})
    # the first is complete, the second pruned
    end = trials_module.end_trial_run

    def end_or_not(trial: optuna.Trial, state: str, *arguments: Any) -> None:
        if state == ended:
            raise MlflowException("no answer")
        end(trial, state, *arguments)

    monkeypatch.setattr(trials_module, "end_trial_run", end_or_not)
    with pytest.raises(MlflowException, match="no answer"):
        trials_in_this_process(project, num_trials=2)
    *_, failed, queued = trials_of(project.folder)
    assert (failed.state, queued.state) == (TrialState.FAIL, TrialState.WAITING)
    assert queued.system_attrs["fixed_params"] == failed.params
    (run,) = runs_of(project.folder)[1][failed.number]
    assert (run.info.status, run.data.tags["trial.state"]) == ("KILLED", "interrupted")


def test_nothing_that_a_failed_training_held_is_there_when_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Any]] = []

    class Training:
        itself: Any

    def fail(trial: optuna.Trial, bench: TrialContext) -> float:
        training = Training()
        training.itself = training
        held.append(weakref.ref(training))
        raise TrialError("out of memory")

    monkeypatch.setattr(workers_module, "run_trial", fail)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a record of the error holds it, too
    study: Any = optuna.create_study()
    gc.disable()  # what it would do by itself comes too late on a machine that is full
    try:
        workers_module._make_one_trial(study, SimpleNamespace())  # type: ignore[arg-type]
    finally:
        gc.enable()
    assert held[0]() is None
    assert [one.state for one in study.trials] == [TrialState.FAIL]


def test_two_searches_end_their_common_study_at_the_same_moment(searched: tuple[Path, str], tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(searched[0], root)
    both = [Background(root, "--trials", "8", "--resume") for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0], both[0].said
    assert runs_of(root)[0].info.status == "FINISHED"


@pytest.mark.parametrize("folds", [None, 3])
def test_neighbours_from_the_test_part_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int | None
) -> None:
    space = {"model.context_slices": {"low": 0, "high": 3}, "train.lr": SPACE["train.lr"]}
    search_of = {"space": space, "folds": folds}
    root = make_tiny_project(tmp_path, {"search": search_of, "split.gap": 2}, num_planes=24).folder
    (root / "dvc.yaml").write_text("stages: {}\n")
    write_tree(root / "params.yaml", read_tree(ROOT / "params.yaml"))
    write_values(root / "params.yaml", {**SETTINGS, "split.gap": 2})
    tree = read_tree(root / "params.yaml")
    tree["search"] |= SEARCH | search_of
    write_tree(root / "params.yaml", tree)
    run(root, environment(), "stackseg", "catalog")
    said = " ".join(search(root, "--trials", "1", ok=False).split())
    assert "model.context_slices: with 3 neighbours on each side rock/" in said
    assert (
        "(test part); expected a test part that no training has seen. Set it to at most 2, or widen split.gap" in said
    )
    assert not (root / "optuna.db").exists()


@pytest.mark.parametrize("num_kept", [None, 1])
def test_what_others_end_while_bundles_are_tidied_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_kept: int | None
) -> None:
    study = optuna.create_study(direction="maximize")
    for number in range(2):
        (tmp_path / f"trial-{number:04d}").mkdir()
        study.ask()
    study.tell(0, 0.5)
    read = study.get_trials

    def read_while_the_other_ends(**options: Any) -> list[optuna.trial.FrozenTrial]:
        found = read(**options)
        if read()[1].state == TrialState.RUNNING:
            study.tell(1, 0.9)
        return found

    monkeypatch.setattr(study, "get_trials", read_while_the_other_ends)
    remove_surplus_bundles(study, tmp_path, num_kept)
    assert (tmp_path / "trial-0001").is_dir()


def test_nothing_is_applied_where_no_trial_is_complete(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    before = (root / "params.yaml").read_text()
    assert "no trial is complete, 0 pruned, 0 failed" in search(root, "--trials", "1", "--timeout", "0")
    said = " ".join(search(root, "--trials", "1", "--timeout", "0", "--resume", "--apply", ok=False).split())
    assert "study search, --apply: no trial is complete; expected a best one. Go on: stackseg search --trials 1" in said
    assert (root / "params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("sqlite:///my a@b.db", "'sqlite:///my a@b.db'"),
        ("journal:a@b.log", "journal:a@b.log"),
        ("grpc://node7:13000", "grpc://node7:13000"),
        (
            "postgresql://ada:s3?cret@/studies?host=/run/postgresql&port=5433&password=s3?cret",
            "'postgresql://ada@/studies?host=%2Frun%2Fpostgresql&port=5433'",
        ),
    ],
)
def test_the_command_that_goes_on_names_the_same_storage(given: str, told: str) -> None:
    order: Any = SimpleNamespace(
        num_trials=3, num_workers=1, num_kept=1, study="search", data=Path("data"), machine=Machine(device="auto"),
        params=SimpleNamespace(search=SimpleNamespace(study="search")),
    )  # fmt: skip
    said = same_search(order, given, Path("outputs/catalog.json"))
    assert said == f"stackseg search --trials 3 --storage {told}"


def test_the_command_that_goes_on_names_the_user_and_no_password() -> None:
    order: Any = SimpleNamespace(
        num_trials=3, num_workers=2, num_kept=1, study="search", data=Path("data"), machine=Machine(device="cpu"),
        params=SimpleNamespace(search=SimpleNamespace(study="search")),
    )  # fmt: skip
    told = same_search(order, "postgresql://ada:s3cret@node7/studies", Path("outputs/catalog.json"))
    assert told == "stackseg search --trials 3 --workers 2 --storage postgresql://ada@node7/studies --device cpu"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError("Unable to allocate 8 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_trial_out_of_memory_is_recorded_and_the_study_goes_on(
    project_here: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    project = project_here()
    step, calls = Learner.step, iter(range(1000))

    def step_or_not(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise error
        return step(*arguments)

    monkeypatch.setattr(Learner, "step", step_or_not)
    failed, complete = trials_in_this_process(project, num_trials=2).trials
    assert (failed.state, failed.user_attrs["failure"]) == (TrialState.FAIL, "out of memory")
    assert complete.state == TrialState.COMPLETE
    _, children = runs_of(project.folder)
    assert children[0][0].info.status == "FAILED"
    assert children[0][0].data.tags["failure"] == "out of memory"


def test_a_full_disk_ends_the_search_and_hands_the_trial_back(
    project_here: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_here()

    def full(*arguments: Any) -> Any:
        raise MachineError("a checkpoint could not be written whole", remedy="free some space")

    monkeypatch.setattr(Checkpoints, "save_best", full)
    with pytest.raises(MachineError, match="could not be written whole"):
        trials_in_this_process(project, num_trials=2)
    failed, queued = trials_of(project.folder)
    assert (failed.state, queued.state) == (TrialState.FAIL, TrialState.WAITING)
    assert queued.system_attrs["fixed_params"] == failed.params
    assert progress_of([failed, queued]).num_finished == 0


def test_a_trial_that_the_store_has_no_room_for_is_not_finished_in_it(project_here: Callable[..., Project]) -> None:
    project = project_here()
    prepare_store(project.folder, experiment="stackseg")
    with closing(sqlite3.connect(project.folder / "mlflow.db")) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON tags WHEN NEW.key IN ('bundle_digest', 'failure') "
            "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
    with pytest.raises(MlflowException, match="disk is full"):
        trials_in_this_process(project, num_trials=2)
    _, children = runs_of(project.folder)
    assert children[0][0].info.status == "KILLED"
    assert children[0][0].data.tags["trial.state"] == "interrupted"
    assert mlflow.active_run() is None  # one that is left is FINISHED when the process ends


def test_a_storage_that_fails_in_mid_trial_is_told_in_one_line(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", LONG)
    going = Background(root, "--trials", "2")
    wait_for(lambda: training_trials(root))
    with closing(sqlite3.connect(root / "optuna.db", timeout=30)) as connection:
        connection.execute("DROP TABLE trial_heartbeats")
    assert going.wait() == 1
    assert "Traceback" not in going.said
    assert going.said.splitlines()[-1].startswith("error: sqlite:///")
    assert "the study storage failed: no such table: trial_heartbeats" in going.said


def test_each_worker_takes_a_gpu_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [worker_device("auto", place) for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [worker_device("cuda:1", place) for place in range(2)] == ["cuda:1", "cuda:1"]
    assert worker_device("cpu", 1) == "cpu"


def test_a_worker_takes_its_share_of_the_threads_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [threads_per_worker(num_workers) for num_workers in (1, 2, 3, 16)] == [8, 4, 2, 1]


def test_what_is_applied_trains_the_very_model_of_the_trial(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", {"train.patches_per_epoch": 16})
    # as a user may have it, on a machine of more cores
    one_thread = environment(OMP_NUM_THREADS="1")
    run(root, one_thread, "stackseg", "search", "--trials", "2", "--top", "1", "--apply")
    (found,) = (root / "outputs" / "search" / "search").glob("trial-*/model")
    run(root, one_thread, "stackseg", "train")
    trained, searched = read_spec(root / "outputs" / "model"), read_spec(found)
    assert trained.validation == searched.validation
    assert trained.digest == searched.digest


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Return the address of a PostgreSQL of our own."""
    with postgresql() as url:
        yield url


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Return the address of Optuna's gRPC proxy, and that of the database behind it."""
    pytest.importorskip("grpc", reason="grpc is not installed (the grpc extra)")
    database, port = f"sqlite:///{tmp_path / 'behind.db'}", free_port()
    script = f"""
import optuna
storage = optuna.storages.RDBStorage({database!r}, engine_kwargs={{"connect_args": {{"timeout": 60}}}})
optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port={port})
"""
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script])
    try:
        yield f"grpc://127.0.0.1:{port}", database
    finally:
        server.kill()
        server.wait()


def check_one_study_of_two_checkouts(folder: Path, url: str, database: str) -> None:
    """Search in two projects at once, and check that no trial is lost or made twice."""
    roots = [make_project(folder / name) for name in ("here", "there")]
    going = [Background(root, "--trials", "6", "--storage", url) for root in roots]
    assert [one.wait() for one in going] == [0, 0], [one.said for one in going]
    trials = trials_of(roots[0], database)
    done = [one for one in trials if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(done) == 6
    # one that began in the same moment as the last one waits for the next time
    surplus = [one.user_attrs["again"] for one in trials if one.state == TrialState.WAITING]
    assert sorted(surplus) == [one.number for one in trials if one.state == TrialState.FAIL]
    assert len(trials) == 6 + 2 * len(surplus)
    assert len({one.params["train.lr"] for one in done}) == 6
    # each store has the runs of the trials that were made there, and no trial was made twice
    made = [set(runs_of(root)[1]) for root in roots]
    assert made[0] | made[1] == {one.number for one in done}
    assert not made[0] & made[1]


def test_two_checkouts_make_one_study_in_postgresql(database: str, tmp_path: Path) -> None:
    check_one_study_of_two_checkouts(tmp_path, database.replace("+psycopg", ""), database)


def test_two_checkouts_make_one_study_through_a_proxy(proxied: tuple[str, str], tmp_path: Path) -> None:
    check_one_study_of_two_checkouts(tmp_path, *proxied)


def test_optunas_own_tools_open_the_study(searched: tuple[Path, str]) -> None:
    command = [str(BIN / "optuna"), "studies", "--storage", "sqlite:///optuna.db"]
    done = subprocess.run(
        command,
        cwd=searched[0],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert "search" in done.stdout
