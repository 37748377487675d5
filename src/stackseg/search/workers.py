"""A search: worker processes that make trials until the study has enough of them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from uuid import uuid4

import mlflow
import torch
from mlflow.exceptions import MlflowException
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from stackseg.dataset.records import Catalog
from stackseg.environment import quieten_libraries
from stackseg.errors import MachineError, StacksegError
from stackseg.params import Params
from stackseg.search.objective import Bench, TrialError, make_trial, tidy_bundles
from stackseg.search.progress import standing_of
from stackseg.search.pruning_callback import TrialTaken
from stackseg.search.retry import end_trials_of, stale_callback
from stackseg.search.samplers import build_sampler
from stackseg.search.signals import Interrupts, ending_signals
from stackseg.search.space.parse import read_space
from stackseg.search.storage import GRACE, has_heartbeat, open_storage
from stackseg.search.storage_errors import as_storage_error, is_storage_error, storage_errors
from stackseg.search.study import fail_stale_trials, load_study
from stackseg.search.wakefulness import Wakefulness
from stackseg.tracking.store import prepare_store
from stackseg.tracking.store_errors import as_store_error
from stackseg.tracking.uri import shown_uri
from stackseg.training.train import Machine

POLL_S = 1.0
# a worker that is told to end has one step to finish and a run to close
_ENDING_S = 60
# ... after which it is interrupted wherever it may be
_PATIENCE_S = 30


@dataclass(frozen=True)
class Order:
    """What a search is told; each worker process gets a copy."""

    params: Params
    catalog: Catalog
    data: Path
    root: Path
    url: str
    study: str
    folder: Path
    checkpoints: Path
    parent_run: str
    machine: Machine
    num_trials: int
    num_workers: int
    num_kept: int
    seed: int
    """Of the samplers: each worker adds its place."""
    deadline: float | None
    """Seconds since the epoch after which no trial begins."""


def run_workers(
    order: Order,
    study: Study,
    *,
    on_change: Callable[[Sequence[FrozenTrial]], None],
    on_interrupt: Callable[[], None],
) -> None:
    """Start the workers, tell of every change of the study, and return when they have ended.

    Parameters
    ----------
    order
        What to do.
    study
        The study, to be watched.
    on_change
        Called with all trials, about once a second.
    on_interrupt
        Called when the search is interrupted, before the workers have ended.

    Raises
    ------
    StacksegError
        A worker met an error that is not of one trial; the others have been ended, and their trials handed back.
    KeyboardInterrupt
        The search was interrupted; workers and runs are closed.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    workers: list[tuple[BaseProcess, Connection]] = []
    on_stale = stale_callback(order.checkpoints)
    taken_up: set[str] = set()

    def take_up() -> None:
        """Take up the trials of workers that have died since the last time."""
        for process, _ in workers:
            if not process.is_alive() and process.name not in taken_up:
                taken_up.add(process.name)
                end_trials_of(process.name, study, on_stale)

    interrupts = Interrupts(*ending_signals())
    try:
        # a child that is about to start would end with a traceback
        noting = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for place in range(order.num_workers):
            ours, theirs = context.Pipe(duplex=False)
            # of all machines and searches, one worker has this name
            name = f"worker {place} {uuid4().hex}"
            arguments = (order, place, name, os.getpid(), theirs, stop)
            process = context.Process(target=_work, args=arguments, name=name)
            process.start()
            theirs.close()
            workers.append((process, ours))
        signal.signal(signal.SIGINT, noting)
        awake = Wakefulness(GRACE * order.params.search.heartbeat)
        while any(process.is_alive() for process, _ in workers):
            interrupts.raise_asked()
            with storage_errors(shown_uri(order.url)):
                if awake.for_long():
                    fail_stale_trials(study)  # workers look for such only between their trials
                take_up()
                on_change(study.get_trials(deepcopy=False))
            _raise_told(workers)
            time.sleep(POLL_S)
        interrupts.raise_asked()
        _raise_told(workers)
        with storage_errors(shown_uri(order.url)):
            take_up()
            trials = study.get_trials(deepcopy=False)
        on_change(trials)
        _require_ended_well(workers, standing_of(trials).num_finished, order.num_trials)
    except KeyboardInterrupt:
        on_interrupt()
        raise
    finally:
        stop.set()
        _end_all(workers)
        interrupts.restore()


def _work(order: Order, place: int, name: str, parent_process: int, told: Connection, stop: Event) -> None:
    """Make trials until there are enough; the body of a worker process."""
    os.setpgrp()  # an interrupt from the terminal is for the parent, which passes it on, once
    interrupts = Interrupts(signal.SIGINT, signal.SIGTERM, patience=_PATIENCE_S)
    quieten_libraries()
    threading.excepthook = _pass_over_storage_errors
    torch.set_num_threads(share_of_threads(order.num_workers))
    try:
        _make_trials(order, place, name, stop, lambda: interrupts.asked or os.getppid() != parent_process)
    except KeyboardInterrupt:
        pass
    except StacksegError as error:
        told.send(error)
    except MlflowException as error:
        told.send(as_store_error(error, shown_uri(mlflow.get_tracking_uri())))
    except Exception as error:
        # Optuna runs into an assertion of its own where it cannot tell how a trial ended
        cause = error if is_storage_error(error) else error.__context__
        if not isinstance(cause, Exception) or not is_storage_error(cause):
            raise
        told.send(as_storage_error(cause, shown_uri(order.url)))


def _pass_over_storage_errors(error: threading.ExceptHookArgs) -> None:
    """Keep the traceback of Optuna's heartbeat from the terminal.

    The training meets what has befallen the storage at its next word, or finds its trial taken up by another.
    """
    if not isinstance(error.exc_value, Exception) or not is_storage_error(error.exc_value):
        threading.__excepthook__(error)


def _make_trials(order: Order, place: int, name: str, stop: Event, must_end: Callable[[], bool]) -> None:
    ready = prepare_store(order.root, experiment=order.params.project.experiment)
    space = read_space(order.params)
    storage = open_storage(
        order.url,
        root=order.root,
        heartbeat=order.params.search.heartbeat,
        on_stale=stale_callback(order.checkpoints),
    )
    study = load_study(storage, order.study, space, build_sampler(space, order.seed + place))
    bench = Bench(
        space=space,
        catalog=order.catalog,
        data=order.data,
        folder=order.folder,
        checkpoints=order.checkpoints,
        experiment_id=ready.experiment_id,
        parent_run=order.parent_run,
        machine=replace(order.machine, device=device_of(order.machine.device, place)),
        num_trials=order.num_trials,
        worker=name,
        must_end=must_end,
    )
    while not stop.is_set() and (order.deadline is None or time.time() < order.deadline):
        standing = standing_of(study.get_trials(deepcopy=False))
        if standing.num_finished >= order.num_trials or must_end():
            return
        if standing.num_finished + standing.num_running >= order.num_trials:
            # the last ones are being made: should their workers die, the search finds it out and they are queued
            if not has_heartbeat(storage):
                return
            time.sleep(POLL_S)
            continue
        _make_one(study, bench)
        # one that has left the best may come back to a Pareto front, when another pushes out two
        tidy_bundles(study, order.folder, order.num_kept if len(study.directions) == 1 else None)


def _make_one(study: Study, bench: Bench) -> None:
    taken: list[int] = []

    def objective(trial: Trial) -> float | tuple[float, ...]:
        try:
            return make_trial(trial, bench)
        except TrialTaken:
            taken.append(trial.number)
            raise

    try:
        study.optimize(objective, n_trials=1, catch=(TrialError, TrialTaken))
    except ValueError:  # Optuna cannot tell the end of a trial that others have ended
        if not taken:
            raise
    finally:
        # only now is nothing left that holds what a failed training had: the next one would want for memory
        gc.collect()
        torch.cuda.empty_cache()


def share_of_threads(num_workers: int) -> int:
    """Return the threads of one worker: its share of those that a training takes, all of them if it is alone.

    The order of sums, and with it the last bits of a training, depend on the number of threads: a lone worker's trial
    and the training for the record give the same model.
    """
    return max(1, torch.get_num_threads() // num_workers)


def device_of(asked: str, place: int) -> str:
    """Return the device of one worker: each takes the next GPU, where none is named."""
    if asked == "cpu" or ":" in asked or not torch.cuda.is_available():
        return asked
    return f"cuda:{place % torch.cuda.device_count()}"


def _raise_told(workers: Sequence[tuple[BaseProcess, Connection]]) -> None:
    for _, ours in workers:
        if ours.poll():
            try:
                raise ours.recv()
            except EOFError:  # its process has ended without a word
                continue


def _require_ended_well(workers: Sequence[tuple[BaseProcess, Connection]], num_finished: int, num_trials: int) -> None:
    ended = [process for process, _ in workers if process.exitcode]
    if not ended or num_finished >= num_trials:
        return
    code = ended[0].exitcode or 0
    cause = f"was ended by signal {-code} (9: often for want of memory)" if code < 0 else f"ended with exit code {code}"
    memory = "; fewer --workers, or a smaller train.batch_size, need less memory" if code == -signal.SIGKILL else ""
    raise MachineError(
        f"{' '.join(ended[0].name.split()[:2])} {cause}; {num_finished} of {num_trials} trials are finished",
        where="stackseg search",
        remedy=f"--resume goes on{memory}",
    )


def _end_all(workers: Sequence[tuple[BaseProcess, Connection]]) -> None:
    alive = [process for process, _ in workers if process.is_alive() and process.pid is not None]
    for process in alive:
        os.kill(process.pid, signal.SIGINT)  # type: ignore[arg-type]
    for process in alive:
        process.join(_ENDING_S)
        if process.is_alive():
            process.kill()
            process.join()
    for _, ours in workers:
        ours.close()
