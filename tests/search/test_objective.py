"""Trials as a worker makes them: real trainings of a tiny network, in real storages, with real runs."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import optuna
import pytest
import sqlalchemy
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from databases import free_port, postgresql
from search_trials import all_runs, make_trials, name_of, opened, runs_of, settings_of
from stackseg.errors import MachineError, StoreError, is_out_of_memory
from stackseg.search import objective as objective_module
from stackseg.search import study as study_module
from stackseg.search import workers as workers_module
from stackseg.search.mlflow_runs import close_study_run
from stackseg.search.objective import TrialContext, TrialError, remove_surplus_bundles, run_trial
from stackseg.search.progress import progress_of, requeue
from stackseg.search.pruning_callback import TrialTakenOver
from stackseg.search.retry import fail_trials_of, stale_callback
from stackseg.search.space.parse import read_space
from stackseg.search.storage_errors import is_of_storage_alone, storage_errors
from stackseg.search.workers import run_search, threads_per_worker, worker_device
from stackseg.training.checkpoints import Checkpoints
from stackseg.training.learner import Learner
from tiny_projects import Project, make_tiny_project

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
TWO_RATES = {"space": {"train.lr": {"choices": [5e-3, 1e-7]}}, "sampler": {"name": "brute_force"}}
_numbers = itertools.count()

Make = Callable[..., Project]


def prepared(project: Project) -> Project:
    for name in ("params.yaml", "dvc.yaml"):
        (project.folder / name).write_text("{}\n")
    return project


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a tiny project, in whose stores each test has a study of its own name."""
    return prepared(make_tiny_project(tmp_path_factory.mktemp("shared"), {"train.epochs": 2}))


@pytest.fixture
def make(shared: Project, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a maker of projects with some params and sections of `search`, on the same data."""
    monkeypatch.chdir(shared.folder)
    monkeypatch.setattr(study_module, "_PAUSE_S", 0.1)

    def having(settings: dict[str, Any] | None = None, **section: Any) -> Project:
        return shared.having({**settings_of(f"study{next(_numbers)}", **section), **(settings or {})})

    return having


def runs(project: Project) -> Any:
    return runs_of(project.folder, project.params.search.study)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folds", "settings"), [(2, {}), (None, {"split.gap": 2, "model.context_slices": 2})], ids=["folds", "neighbours"]
)
def test_the_test_part_is_never_read(
    shared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int | None, settings: dict[str, Any]
) -> None:
    made = []
    monkeypatch.chdir(shared.folder)
    project = make_tiny_project(tmp_path, {"train.epochs": 1, **settings}, num_planes=24)
    for noisy in (False, True):
        if noisy:
            planes = [ref.z for ref, _ in project.catalog.planes("test")]
            assert planes
            fill_with_noise(project.data / "rock", planes)
        section = settings_of(f"study{next(_numbers)}", folds=folds)
        searched = replace(project, params=project.params.override(section))
        trials = make_trials(searched, 2 if folds is None else 1, root=shared.folder).trials
        made.append([(one.params, one.values, one.intermediate_values, one.state) for one in trials])
    assert made[0] == made[1]
    assert any(values for _, values, _, _ in made[0])


def fill_with_noise(specimen: Path, planes: list[int]) -> None:
    import tifffile

    random = np.random.default_rng(3)
    for name, values in (("images.tif", np.arange(65536)), ("masks.tif", np.array([0, 3, 7]))):
        stack = tifffile.imread(specimen / name)
        stack[planes] = random.choice(values, stack[planes].shape)
        tifffile.imwrite(specimen / name, stack, metadata={"axes": "ZYX"})


@pytest.mark.slow
def test_folds_are_scored_in_order_and_stopped_where_they_trail(make: Make) -> None:
    project = make({"train.lr": 5e-3, "train.epochs": 8}, folds=2, fold_margin=0.0, **TWO_RATES)
    study = make_trials(project, 2)
    first, second = study.trials
    assert first.value == pytest.approx(np.mean(first.user_attrs["fold_scores"]))
    assert [len(one.user_attrs["fold_scores"]) for one in (first, second)] == [2, 1]
    assert second.state == TrialState.PRUNED
    parent, children = runs(project)
    name = project.params.search.study
    assert name_of(children[0][0]) == f"{name} · trial 0 · Linknet-tu-test_resnet"
    run_id = children[0][0].info.run_id
    below = [one for one in all_runs(project.folder) if one.data.tags.get("mlflow.parentRunId") == run_id]
    names = [f"{name} · trial 0 · fold {fold} · Linknet-tu-test_resnet" for fold in (0, 1)]
    assert sorted(map(name_of, below)) == names
    # runs that were left open, as where MLflow was out of reach, are closed in the end
    client = MlflowClient()
    for one in (children[0][0], *below):
        client.update_run(one.info.run_id, "RUNNING")
    close_study_run(study, parent.info.run_id, parent.info.experiment_id, "FINISHED", project.folder / "lock")
    parent, children = runs(project)
    assert {client.get_run(one.info.run_id).info.status for one in (parent, children[0][0], *below)} == {"FINISHED"}


@pytest.mark.slow
def test_several_objectives_make_a_front_and_leave_out_no_fold(make: Make) -> None:
    objectives = ["mean_iou", "parameters", "ms_per_megapixel"]
    project = make({"train.lr": 5e-3, "train.epochs": 1}, objectives=objectives, folds=2, fold_margin=0.0, **TWO_RATES)
    study = make_trials(project, 2)
    assert [len(one.user_attrs["fold_scores"]) for one in study.trials] == [2, 2]
    assert all(len(one.values) == 3 and one.values[1] > 1e5 for one in study.trials)
    parent, children = runs(project)
    assert set(children[0][0].data.metrics) >= {f"objective/{name}" for name in objectives}
    close_study_run(study, parent.info.run_id, parent.info.experiment_id, "FINISHED", project.folder / "lock")
    assert list((project.folder / "mlruns").glob(f"*/{parent.info.run_id}/artifacts/pictures/pareto_front.png"))


@pytest.mark.slow
def test_the_present_params_are_never_pruned(make: Make) -> None:
    # whoever makes them first: the search could else end below the present score
    project = make(pruner={"name": "threshold", "arguments": {"lower": 1.0}})
    first, other = make_trials(project, 2).trials
    assert (first.state, max(first.intermediate_values)) == (TrialState.COMPLETE, 2)
    assert (other.state, max(other.intermediate_values)) == (TrialState.PRUNED, 1)
    _, children = runs(project)
    assert [children[number][0].data.tags["trial.state"] for number in (0, 1)] == ["complete", "pruned"]


@pytest.mark.slow
def test_a_trial_that_cannot_be_trained_is_recorded_and_the_study_goes_on(make: Make) -> None:
    # PAN takes no patches of 32 pixels
    space = {"model.architecture": {"choices": ["Linknet", "PAN"]}}
    project = make({"train.epochs": 1}, space=space, sampler={"name": "brute_force"})
    complete, failed = make_trials(project, 2).trials
    assert complete.state == TrialState.COMPLETE
    assert failed.state == TrialState.FAIL
    assert "PAN" in failed.user_attrs["failure"]
    assert "\n" not in failed.user_attrs["failure"]
    assert progress_of([complete, failed]).num_finished == 2
    # it has a run although no training of it had begun
    (run,) = runs(project)[1][1]
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", failed.user_attrs["failure"])
    assert run.data.params["model.architecture"] == "PAN"


@pytest.mark.slow
@pytest.mark.parametrize("folds", [None, 2])
def test_an_unforeseen_error_ends_the_search_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, folds: int | None
) -> None:
    project = make(folds=folds)

    def fault(*arguments: Any) -> Any:
        raise RuntimeError("the kernel does not like this shape")

    monkeypatch.setattr(Learner, "step", fault)
    with pytest.raises(RuntimeError, match="does not like"):
        make_trials(project, 2)
    study = make_trials(project, 1, resume=True)
    assert [one.state for one in study.trials] == [TrialState.FAIL] * 2
    assert study.trials[1].user_attrs["failure"] == "the kernel does not like this shape"
    ((first,), (second,)) = (runs(project)[1][number] for number in (0, 1))
    assert (first.info.status, first.data.tags["trial.state"]) == ("KILLED", "interrupted")
    assert (second.info.status, second.data.tags["trial.state"]) == ("FAILED", "failed")
    assert progress_of(study.trials).num_finished == 1


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
def test_out_of_memory_is_known_however_it_is_told(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.slow
def test_a_trial_out_of_memory_is_recorded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make()

    def step(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "step", step)
    (failed,) = make_trials(project, 1).trials
    assert (failed.state, failed.user_attrs["failure"]) == (TrialState.FAIL, "out of memory")
    (run,) = runs(project)[1][0]
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "out of memory")


@pytest.mark.slow
def test_a_full_disk_ends_the_search_and_queues_the_trial_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make()

    def full(*arguments: Any) -> Any:
        raise MachineError("a checkpoint could not be written whole", remedy="free some space")

    monkeypatch.setattr(Checkpoints, "save_best", full)
    with pytest.raises(MachineError, match="could not be written whole"):
        make_trials(project, 2)
    require_repeated(project)


@pytest.mark.slow
def test_a_trial_that_the_store_has_no_room_for_is_not_finished_in_it(make: Make) -> None:
    project = make()
    opened(project, 1)
    with closing(sqlite3.connect(project.folder / "mlflow.db")) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON tags WHEN NEW.key IN ('bundle_digest', 'failure') "
            "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
    try:
        with pytest.raises(MlflowException, match="disk is full"):
            make_trials(project, 2)
    finally:
        with closing(sqlite3.connect(project.folder / "mlflow.db")) as connection:
            connection.execute("DROP TRIGGER full")
    require_repeated(project)
    assert mlflow.active_run() is None  # one that is left is FINISHED when the process ends


@pytest.mark.slow
def test_a_trial_whose_run_could_not_be_closed_is_repeated(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make({"train.epochs": 1})
    end = objective_module.end_trial_run

    def end_or_not(trial: optuna.Trial, state: str, *arguments: Any) -> None:
        if state == "complete":
            raise MlflowException("no answer")
        end(trial, state, *arguments)

    monkeypatch.setattr(objective_module, "end_trial_run", end_or_not)
    with pytest.raises(MlflowException, match="no answer"):
        make_trials(project, 2)
    require_repeated(project)


def require_repeated(project: Project) -> None:
    """Check that the only trial was interrupted, and queued again."""
    study, _ = opened(project, 1, resume=True)
    failed, queued = study.trials
    assert (failed.state, queued.state) == (TrialState.FAIL, TrialState.WAITING)
    assert queued.system_attrs["fixed_params"] == failed.params
    assert progress_of([failed, queued]).num_finished == 0
    (run,) = runs(project)[1][0]
    assert (run.info.status, run.data.tags["trial.state"]) == ("KILLED", "interrupted")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_that_was_taken_over_is_left_to_the_others(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make()
    study, job = opened(project, 2)
    on_stale, step = stale_callback(job.checkpoints), Learner.step

    def taken(*arguments: Any) -> Any:
        # this worker is suspended, and another one notices that its heartbeat is missing
        fail_trials_of("here", study, on_stale)
        return step(*arguments)

    monkeypatch.setattr(Learner, "step", taken)
    trial = study.ask()
    with pytest.raises(TrialTakenOver):
        run_trial(trial, TrialContext(job, read_space(project.params), job.machine, "here", lambda: False))
    failed, queued = study.trials  # queued once
    assert (failed.state, queued.state) == (TrialState.FAIL, TrialState.WAITING)
    assert queued.params == failed.params
    assert queued.system_attrs["retry_history"] == [0]
    (run,) = runs(project)[1][0]
    assert (run.info.status, run.data.tags["trial.state"]) == ("KILLED", "stale")


@pytest.mark.slow
def test_one_more_than_was_asked_for_is_kept_for_later(make: Make) -> None:
    project = make({"train.epochs": 1})
    study = make_trials(project, 1, num_asked=2)
    assert [one.state for one in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    assert progress_of(study.trials).num_finished == 1
    study = make_trials(project, 2, num_asked=1, resume=True)
    assert [one.number for one in study.trials if one.state == TrialState.COMPLETE] == [0, 2]
    assert study.trials[2].params == study.trials[1].params


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_dead_workers_trial_begins_anew(make: Make) -> None:
    project = make()
    study, job = opened(project, 1)
    client, experiment = MlflowClient(), job.experiment_id
    ids = [client.create_run(experiment).info.run_id]
    ids += [client.create_run(experiment, tags={"mlflow.parentRunId": ids[0]}).info.run_id for _ in range(2)]
    client.set_terminated(ids[2])
    trial = study.ask()
    read_space(project.params).suggest(trial)
    trial.set_user_attr("run_id", ids[0])
    study.tell(trial, state=TrialState.FAIL)
    on_stale, dead = stale_callback(job.checkpoints), study.trials[0]
    dead.system_attrs = {**dead.system_attrs, "completed_rung_0": 0.9}
    on_stale(study, dead)
    on_stale(study, study.trials[0])  # noticed once more by somebody else
    _, again = study.trials
    assert again.state == TrialState.WAITING
    assert again.params == dead.params
    fixed = {"fixed_params": dead.system_attrs["fixed_params"]}
    assert again.system_attrs == {"failed_trial": 0, "retry_history": [0], **fixed}
    assert [client.get_run(one).info.status for one in ids] == ["KILLED", "KILLED", "FINISHED"]


@pytest.mark.slow
def test_a_storage_that_fails_in_mid_trial_is_told_in_one_line(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project = make()
    _, job = opened(project, 2, url=f"sqlite:///{tmp_path / 'lost.db'}")
    step = Learner.step

    def lose(*arguments: Any) -> Any:
        with closing(sqlite3.connect(tmp_path / "lost.db", timeout=30)) as connection:
            connection.execute("DROP TABLE IF EXISTS trial_intermediate_values")
        return step(*arguments)

    monkeypatch.setattr(Learner, "step", lose)
    # what a worker does to its process
    monkeypatch.setattr(os, "setpgrp", lambda: None)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    workers_module._work(job, 0, "here", os.getppid(), sender, threading.Event())  # type: ignore[arg-type]
    assert receiver.poll()
    error = receiver.recv()
    assert isinstance(error, StoreError)
    assert "the study storage failed: no such table: trial_intermediate_values" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (optuna.exceptions.StorageInternalError("gone"), "FAILED")]
)
def test_a_studys_run_is_closed_whatever_comes_in_between(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    project = make()
    study, job = opened(project, 0)

    def broken_off(*_: Any) -> list[Path]:
        raise error

    monkeypatch.setattr("stackseg.search.mlflow_runs.draw_study", broken_off)
    raised = KeyboardInterrupt if status == "KILLED" else StoreError
    with pytest.raises(raised), storage_errors("here", is_of_storage_alone):
        run_search(replace(job, num_workers=0), study, on_change=lambda _: None, on_interrupt=lambda: None)
    assert runs(project)[0].info.status == status


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_two_checkouts_make_one_study_in_postgresql(
    shared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "_PAUSE_S", 0.1)
    settings = {**settings_of("common"), "train.epochs": 1}
    projects = [prepared(make_tiny_project(tmp_path / name, settings)) for name in ("here", "there")]
    roots = [shared.folder, projects[1].folder]
    storages: list[optuna.storages.RDBStorage] = []

    class Recorded(optuna.storages.RDBStorage):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            storages.append(self)

    monkeypatch.setattr("stackseg.search.storage.RDBStorage", Recorded)
    with postgresql() as database:
        url = database.replace("+psycopg", "")
        engine = sqlalchemy.create_engine(database)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("ALTER ROLE stackseg SET timezone = 'Pacific/Kiritimati'"))
        engine.dispose()
        together, space = threading.Barrier(4), read_space(projects[0].params)

        def begin(_: int) -> tuple[int, bool]:
            together.wait(60)
            storage = objective_storage(url)
            study, created = study_module.open_study(storage, "common", space, projects[0].catalog, resume=False)
            return study._study_id, created

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(begin, range(4)))
        assert len({study_id for study_id, _ in found}) == 1
        assert sorted(created for _, created in found) == [False, False, False, True]
        for place, (project, root) in enumerate(zip(projects, roots, strict=True)):
            monkeypatch.chdir(root)
            monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # of the other checkout
            study = make_trials(
                project, 2 + 2 * place, num_asked=2, resume=place > 0, url=url, root=root, seed=1 + place
            )
        assert [one.state for one in study.trials] == [TrialState.COMPLETE] * 4
        assert len({one.params["train.lr"] for one in study.trials}) == 4
        # each store has the runs of the trials that were made there
        assert [set(runs_of(root, "common")[1]) for root in roots] == [{0, 1}, {2, 3}]
        with storages[-1].engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SHOW timezone")).scalar() == "UTC"
        for one in storages:
            one.engine.dispose()


def objective_storage(url: str) -> optuna.storages.BaseStorage:
    from stackseg.search.storage import open_storage, storage_url

    return open_storage(storage_url(Path(), url), heartbeat=60, on_stale=lambda *_: None)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    """Return the address of Optuna's gRPC proxy."""
    pytest.importorskip("grpc", reason="grpc is not installed (the grpc extra)")
    database, port = f"sqlite:///{tmp_path / 'behind.db'}", free_port()
    script = f"""
import optuna
storage = optuna.storages.RDBStorage({database!r}, engine_kwargs={{"connect_args": {{"timeout": 60}}}})
optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port={port})
"""
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script])
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_trials_are_made_through_a_proxy(proxy: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stackseg.search.storage.PROXY_TIMEOUT_S", 60)  # on a busy machine
    project = make({"train.epochs": 1})
    study = make_trials(project, 1, url=proxy)
    study = make_trials(project, 2, num_asked=1, resume=True, url=proxy)
    assert [one.state for one in study.trials] == [TrialState.COMPLETE] * 2


class TestBundles:
    def test_one_that_may_come_back_to_the_front_is_kept(self, tmp_path: Path) -> None:
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

    @pytest.mark.parametrize("num_kept", [None, 1])
    def test_what_others_finish_meanwhile_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_kept: int | None
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


class TestWorkers:
    def test_nothing_that_a_failed_training_held_is_there_when_the_next_begins(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held: list[weakref.ref[Any]] = []

        class Training:
            itself: Any

        def fail(trial: optuna.Trial, context: TrialContext) -> float:
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

    def test_a_trial_that_was_taken_over_ends_no_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def taken_over(trial: optuna.Trial, context: TrialContext) -> float:
            trial.study.tell(trial.number, state=TrialState.FAIL)
            raise TrialTakenOver

        monkeypatch.setattr(workers_module, "run_trial", taken_over)
        study = optuna.create_study()
        workers_module._make_one_trial(study, SimpleNamespace())  # type: ignore[arg-type]
        assert [one.state for one in study.trials] == [TrialState.FAIL]

    def test_each_takes_a_gpu_where_none_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert [worker_device("auto", place) for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
        assert [worker_device("cuda:1", place) for place in range(2)] == ["cuda:1", "cuda:1"]
        assert worker_device("cpu", 1) == "cpu"

    def test_each_takes_its_share_of_the_threads_of_a_training(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        assert [threads_per_worker(num_workers) for num_workers in (1, 2, 3, 16)] == [8, 4, 2, 1]

    def test_what_ended_one_is_told(self) -> None:
        killed: Any = SimpleNamespace(name="worker 0 1f", exitcode=-9)
        told = "worker 0 was ended by signal 9 .*; 0 of 2 trials are finished.*fewer --workers"
        with pytest.raises(MachineError, match=told):
            workers_module._require_ended_well([(killed, None)], 0, 2)  # type: ignore[list-item]
        workers_module._require_ended_well([(killed, None)], 2, 2)  # type: ignore[list-item]

    def test_a_repeated_trial_counts_once(self) -> None:
        study = optuna.create_study()
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, state=TrialState.FAIL)
        requeue(study, 0, trial.params)
        assert progress_of(study.trials).num_finished == 0
