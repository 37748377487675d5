"""A search as a user runs it: real processes, and what they leave."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState
from typer.testing import CliRunner

from search_trials import SPACE, name_of, runs_of
from served_projects import BIN, environment
from stackseg.cli.main import app
from stackseg.cli.search import same_search
from stackseg.dataset.records import read_catalog
from stackseg.errors import ModelError, ParamsError, StacksegError
from stackseg.model.bundle import read_spec
from stackseg.params import read_params
from stackseg.params.file import read_tree, write_tree, write_values
from stackseg.search import study as study_module
from stackseg.search.results import StudyResults, apply_best
from stackseg.search.space.parse import read_space
from stackseg.training.train import Machine
from tiny_projects import SETTINGS, tiny_stack, write_specimen
from verbs import verb

ROOT = Path(__file__).parents[2]
SEARCH = {"space": SPACE, "sampler": {"name": "random", "arguments": {}}}
# it takes minutes: long enough to be interrupted in
LONG = {"train.epochs": 300, "train.patches_per_epoch": 16}


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
    verb(root, "catalog")
    return root


def trials_of(root: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials as Optuna's own tools read them."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(f"sqlite:///{root / 'optuna.db'}")
    try:
        return optuna.load_study(study_name="search", storage=storage).trials
    finally:
        storage.engine.dispose()


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
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
    """Return a project in which two workers have made five trials, and what was said."""
    root = make_project(tmp_path_factory.mktemp("searched") / "project")
    with pytest.MonkeyPatch.context() as there:
        there.setenv("OMP_NUM_THREADS", "1")  # a thread for each worker, and for the training that repeats a trial
        return root, verb(root, "search", "--trials", "5", "--workers", "2", "--top", "2")


@pytest.mark.slow
def test_two_workers_make_the_trials_and_leave_runs_bundles_and_params(searched: tuple[Path, str]) -> None:
    root, said = searched
    trials = trials_of(root)
    assert [one.number for one in trials] == list(range(5))
    assert {one.state for one in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    params = read_params(root / "params.yaml")
    assert trials[0].params["train.lr"] == params.train.lr
    assert trials[0].params["augment.preset"] == params.augment.preset
    for one in trials:
        assert ("train.weight_decay" in one.params) == (one.params["augment.preset"] == "light")
    complete = sorted(
        (one for one in trials if one.state == TrialState.COMPLETE), key=lambda one: (-(one.value or 0), one.number)
    )
    best = complete[0]
    assert f"best: trial {best.number}," in said
    assert "best trials of study search" in said
    with closing(sqlite3.connect(root / "optuna.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    # runs
    parent, children = runs_of(root, "search")
    assert sorted(children) == list(range(5))
    for one in trials:
        (child,) = children[one.number]
        assert name_of(child) == f"search · trial {one.number} · Linknet-tu-test_resnet"
        assert child.info.run_id == one.user_attrs["run_id"]
        assert child.info.status == ("FINISHED" if one.state == TrialState.COMPLETE else "KILLED")
        assert child.data.tags["trial.state"] == one.state.name.lower()
        assert float(child.data.params["train.lr"]) == one.params["train.lr"]
        assert child.data.metrics["trial/seconds"] > 0
        if one.state == TrialState.COMPLETE:
            assert child.data.metrics["objective/mean_iou"] == one.value
        assert ("best_of_study" in child.data.tags) == (one.number == best.number)
    assert name_of(parent) == "study search"
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["best_trial"] == str(best.number)
    assert parent.data.tags["best_run"] == best.user_attrs["run_id"]
    assert parent.data.metrics["trials/complete"] == len(complete)
    pictures = {path.name for path in (root / "mlruns").glob(f"*/{parent.info.run_id}/artifacts/pictures/*.png")}
    assert {"history.png", "curves.png"} <= pictures
    assert ({"slice.png", "parallel_coordinate.png"} <= pictures) == (len(complete) > 1)
    assert MlflowClient(f"sqlite:///{root / 'mlflow.db'}").search_model_versions() == []

    # files
    folders = sorted(path.parent.name for path in (root / "outputs" / "search" / "search").glob("*/model"))
    assert folders == sorted(f"trial-{one.number:04d}" for one in complete[:2])
    written = read_tree(root / "outputs" / "best_params.yaml")
    assert written["train"]["lr"] == best.params["train.lr"]
    assert dict(written["train"]["loss"]) == json.loads(best.params["train.loss"])
    queued = (root / "outputs" / "search" / "search" / "queue.sh").read_text()
    assert f"--name search-trial-{best.number} " in queued
    assert list((root / "checkpoints" / "search" / "search").iterdir()) == []


@pytest.mark.slow
def test_a_study_is_resumed_applied_registered_and_trained_again_to_the_same_model(
    searched: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    shutil.copytree(searched[0], root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("STACKSEG_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = (root / "params.yaml").read_text()
    said = verb(root, "search", "--trials", "6", "--resume", "--apply", "--register-best")
    trials = trials_of(root)
    assert len(trials) == 6
    # a resumed sampler draws other numbers than it began with
    assert len({one.params["train.lr"] for one in trials}) == 6
    best = max((one for one in trials if one.state == TrialState.COMPLETE), key=lambda one: one.value or 0)
    params = read_params(root / "params.yaml")
    assert params.train.lr == best.params["train.lr"]
    assert params.train.loss == json.loads(best.params["train.loss"])
    comments = [line.partition("#")[2] for line in before.splitlines() if "#" in line and "loss" not in line]
    assert all(comment in (root / "params.yaml").read_text() for comment in comments)
    assert "registered stackseg version 1" in said
    (version,) = MlflowClient(f"sqlite:///{root / 'mlflow.db'}").search_model_versions()
    assert version.run_id == best.user_attrs["run_id"]

    # the training for the record
    verb(root, "train")
    torch.set_num_threads(threads)
    folder = root / "outputs" / "search" / "search" / f"trial-{best.number:04d}"
    trained, found = read_spec(root / "outputs" / "model"), read_spec(folder / "model")
    assert trained.validation == found.validation
    assert trained.digest == found.digest

    # another study's trial of that number
    (root / "params.yaml").write_text(before)
    monkeypatch.setattr("stackseg.search.workers.run_search", lambda *_, **__: None)
    monkeypatch.setattr(study_module, "_PAUSE_S", 0.1)
    record = folder / "run.json"
    record.write_text(record.read_text().replace(version.run_id, "0" * 32))
    refused = refusal("--trials", "6", "--resume", "--register-best", "--top", "4")
    assert f"the bundle of trial {best.number} is not here: it was made on" in refused
    # what all trials have in common has changed
    write_values(root / "params.yaml", {"train.epochs": 4})
    refused = refusal("--trials", "10", "--resume")
    assert "train.epochs is 4 since study 'search' began; expected 3" in refused
    assert "the study 'search' is there already" not in refused


def refusal(*options: str) -> str:
    """Return the one line with which a search is refused."""
    done = CliRunner().invoke(app, ["search", *options])
    assert isinstance(done.exception, StacksegError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.mark.slow
def test_a_killed_worker_loses_no_trial_and_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", LONG, pruner={"name": "none", "arguments": {}})
    going = Background(root, "--trials", "3", "--workers", "2")
    try:
        wait_for(lambda: len(training_trials(root)) == 2)
        workers = going.workers()
        assert len(workers) == 2
        # whose trial it is does not matter: both have one
        workers[0].send_signal(signal.SIGKILL)
        (retried,) = wait_for(lambda: [one for one in trials_of(root) if "retry_history" in one.system_attrs])
        (stale,) = [one for one in trials_of(root) if one.state == TrialState.FAIL]
        assert retried.params == stale.params
        assert retried.system_attrs["retry_history"] == [stale.number]
        (closed,) = wait_for(lambda: [one for one in runs_of(root, "search")[1][stale.number] if is_stale(one)])
        assert closed.info.status == "KILLED"
        (interrupted,) = training_trials(root)
        going.process.send_signal(signal.SIGINT)
        assert going.wait() == 130
    finally:
        if going.process.is_running():
            going.process.kill()
    assert psutil.wait_procs(workers, 60)[1] == []
    assert "Traceback" not in going.said
    assert "`stackseg search --trials 3 --workers 2 --device cpu --resume` goes on" in going.said
    assert "ending the trials" in going.said.splitlines()[-2]
    trials = trials_of(root)
    assert trials[interrupted.number].state == TrialState.FAIL
    # the trial of the dead worker may still wait for its second worker: it has params, and none that are fixed
    waiting = [one.system_attrs.get("fixed_params", one.params) for one in trials if one.state == TrialState.WAITING]
    assert len(waiting) == 2
    assert all(one.params in waiting for one in (stale, interrupted))
    parent, children = runs_of(root, "search")
    assert {one.info.status for one in (parent, *(run for found in children.values() for run in found))} == {"KILLED"}


def is_stale(run: Any) -> bool:
    return bool(run.data.tags.get("trial.state") == "stale")


@pytest.fixture(scope="module")
def catalogued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a catalogue and no study."""
    return make_project(tmp_path_factory.mktemp("catalogued") / "project")


@pytest.fixture
def here(catalogued: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project of its own with a catalogue and no study, which is the working directory."""
    root = tmp_path / "project"
    shutil.copytree(catalogued, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("STACKSEG_DEVICE", "cpu")
    return root


@pytest.mark.parametrize(
    ("values", "options", "told"),
    [
        ({}, ["--data", "nodata"], "nodata: no such folder"),
        ({"search.space": {"train.class_weights": {"choices": ["none", [1.0]]}}}, [], "1 class weights; expected 3"),
        (
            {"search.space": {"model.architecture": {"choices": ["Linknet", "Unett"]}}},
            [],
            "unknown architecture 'Unett'",
        ),
        ({"search.sampler": {"name": "tpe", "arguments": {"n_startup": 3}}}, [], "search.sampler.arguments"),
        ({"search.folds": 2}, ["--register-best"], "--register-best with search.folds: a trial has one bundle per"),
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
    here: Path, values: dict[str, Any], options: list[str], told: str
) -> None:
    write_values(here / "params.yaml", values)
    assert told in refusal("--trials", "2", *options)
    assert not (here / "outputs" / "search").exists()


@pytest.mark.slow
def test_nothing_is_applied_where_no_trial_is_complete(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (here / "params.yaml").read_text()
    monkeypatch.setattr("stackseg.search.workers.run_search", lambda *_, **__: None)
    monkeypatch.setattr(study_module, "_PAUSE_S", 0.1)
    done = CliRunner().invoke(app, ["search", "--trials", "1", "--apply"])
    assert "no trial is complete, 0 pruned, 0 failed" in done.output
    assert isinstance(done.exception, ModelError)
    told = "study search, --apply: no trial is complete; expected a best one. Go on: stackseg search --trials 1"
    assert told in str(done.exception)
    assert (here / "params.yaml").read_text() == before


def test_the_best_are_not_written_beside_other_params(here: Path) -> None:
    space = read_space(read_params(here / "params.yaml"))
    catalog = read_catalog(here / "outputs" / "catalog.json")
    results = StudyResults([], {"train.lr": 0.002}, Path("outputs/best_params.yaml"), Path("queue.sh"), [])
    apply_best(results, space, catalog, here / "params.yaml")
    assert read_params(here / "params.yaml").train.lr == 0.002
    write_values(here / "params.yaml", {"train.epochs": 5})
    before = (here / "params.yaml").read_text()
    told = "train.epochs was changed to 5 while the search went on; expected 3, with which"
    with pytest.raises(ParamsError, match=told):
        apply_best(results, space, catalog, here / "params.yaml")
    assert (here / "params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("sqlite:///my a@b.db", "'sqlite:///my a@b.db'"),
        ("grpc://node7:13000", "grpc://node7:13000"),
        ("postgresql://ada:s3cret@node7/studies", "postgresql://ada@node7/studies"),
        (
            "postgresql://ada:s3?cret@/studies?host=/run/postgresql&port=5433&password=s3?cret",
            "'postgresql://ada@/studies?host=%2Frun%2Fpostgresql&port=5433'",
        ),
    ],
)
def test_the_command_that_goes_on_names_the_same_storage_and_no_password(given: str, told: str) -> None:
    job: Any = SimpleNamespace(
        num_trials=3, num_workers=2, num_kept=1, study="search", data=Path("data"), machine=Machine(device="cpu"),
        params=SimpleNamespace(search=SimpleNamespace(study="search")),
    )  # fmt: skip
    said = same_search(job, given, Path("outputs/catalog.json"))
    assert said == f"stackseg search --trials 3 --workers 2 --storage {told} --device cpu"
