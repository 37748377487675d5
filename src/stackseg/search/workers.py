"""A search: worker processes that make trials until the study has enough of them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from uuid import uuid4

import mlflow
import torch
from mlflow.exceptions import MlflowException
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from stackseg.environment import quieten_libraries
from stackseg.errors import MachineError, StacksegError
from stackseg.search.mlflow_runs import close_study_run
from stackseg.search.objective import SearchJob, TrialContext, TrialError, remove_surplus_bundles, run_trial
from stackseg.search.progress import progress_of
from stackseg.search.pruning_callback import TrialTakenOver
from stackseg.search.retry import StaleWatch, fail_trials_of, stale_callback
from stackseg.search.samplers import build_sampler
from stackseg.search.signals import Interrupts, ending_signals
from stackseg.search.space.parse import read_space
from stackseg.search.storage import has_heartbeat, open_storage
from stackseg.search.storage_errors import as_storage_error, is_storage_error, storage_errors
from stackseg.search.study import load_study
from stackseg.tracking.store import prepare_store
from stackseg.tracking.store_errors import as_store_error
from stackseg.tracking.uri import shown_uri

POLL_S = 1.0
# a worker that is told to end has one step to finish and a run to close
_ENDING_S = 60
# after so long it is interrupted wherever it is
_PATIENCE_S = 30


def run_search(
    job: SearchJob,
    study: Study,
    *,
    on_change: Callable[[Sequence[FrozenTrial]], None],
    on_interrupt: Callable[[], None],
) -> None:
    """Let worker processes make the trials, and close the study's run however that ends.

    Parameters
    ----------
    job
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
        A worker met an error that is not one trial's; the others have been ended, and their trials queued again.
    KeyboardInterrupt
        The search was interrupted; workers and runs are closed.
    """

    def close(status: str) -> None:
        close_study_run(study, job.parent_run, job.experiment_id, status, job.lock_file)

    with Interrupts(*ending_signals()) as interrupts:
        try:
            _run_workers(job, study, interrupts, on_change, on_interrupt)
            close("FINISHED")
        except KeyboardInterrupt:
            close("KILLED")
            raise
        except Exception:
            with suppress(Exception):  # on a full disk this fails as well, and would hide the reason
                close("FAILED")
            raise


def _run_workers(
    job: SearchJob,
    study: Study,
    interrupts: Interrupts,
    on_change: Callable[[Sequence[FrozenTrial]], None],
    on_interrupt: Callable[[], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    workers: list[tuple[BaseProcess, Connection]] = []
    on_stale = stale_callback(job.checkpoints)
    known_dead: set[str] = set()

    def retry_trials_of_dead_workers() -> None:
        for process, _ in workers:
            if not process.is_alive() and process.name not in known_dead:
                known_dead.add(process.name)
                fail_trials_of(process.name, study, on_stale)

    try:
        with interrupts.ignored_by_children():
            for number in range(job.num_workers):
                receiver, sender = context.Pipe(duplex=False)
                # unique among all machines and searches
                name = f"worker {number} {uuid4().hex}"
                process = context.Process(target=_work, args=(job, number, name, os.getpid(), sender, stop), name=name)
                process.start()
                sender.close()
                workers.append((process, receiver))
        watch = StaleWatch(study, job.params.search.heartbeat)
        while any(process.is_alive() for process, _ in workers):
            interrupts.raise_asked()
            with storage_errors(shown_uri(job.url)):
                watch.look()  # workers do so only between their trials
                retry_trials_of_dead_workers()
                on_change(study.get_trials(deepcopy=False))
            _raise_error_of(workers)
            time.sleep(POLL_S)
        interrupts.raise_asked()
        _raise_error_of(workers)
        with storage_errors(shown_uri(job.url)):
            retry_trials_of_dead_workers()
            trials = study.get_trials(deepcopy=False)
        on_change(trials)
        _require_ended_well(workers, progress_of(trials).num_finished, job.num_trials)
    except KeyboardInterrupt:
        on_interrupt()
        raise
    finally:
        stop.set()
        _end_all(workers)
        interrupts.raise_from_now_on()


def _work(job: SearchJob, number: int, name: str, parent_process: int, errors: Connection, stop: Event) -> None:
    """Make trials until there are enough; the body of a worker process."""
    os.setpgrp()  # an interrupt from the terminal is for the parent, which passes it on once
    quieten_libraries()
    threading.excepthook = _hide_storage_errors
    torch.set_num_threads(threads_per_worker(job.num_workers))
    with Interrupts(signal.SIGINT, signal.SIGTERM, patience=_PATIENCE_S) as interrupts:
        try:
            _make_trials(job, number, name, stop, lambda: interrupts.asked or os.getppid() != parent_process)
        except KeyboardInterrupt:
            pass
        except StacksegError as error:
            errors.send(error)
        except MlflowException as error:
            errors.send(as_store_error(error, shown_uri(mlflow.get_tracking_uri())))
        except Exception as error:
            # Optuna fails with an assertion of its own where it cannot read how a trial ended
            cause = error if is_storage_error(error) else error.__context__
            if not isinstance(cause, Exception) or not is_storage_error(cause):
                raise
            errors.send(as_storage_error(cause, shown_uri(job.url)))


def _hide_storage_errors(error: threading.ExceptHookArgs) -> None:
    """Keep the traceback of Optuna's heartbeat thread off the terminal: the training meets the same error soon."""
    if not isinstance(error.exc_value, Exception) or not is_storage_error(error.exc_value):
        threading.__excepthook__(error)


def _make_trials(job: SearchJob, number: int, name: str, stop: Event, must_end: Callable[[], bool]) -> None:
    prepare_store(job.root, experiment=job.params.project.experiment)
    space = read_space(job.params)
    storage = open_storage(job.url, heartbeat=job.params.search.heartbeat, on_stale=stale_callback(job.checkpoints))
    study = load_study(storage, job.study, space, build_sampler(space, job.seed + number))
    machine = replace(job.machine, device=worker_device(job.machine.device, number))
    context = TrialContext(job=job, space=space, machine=machine, worker=name, must_end=must_end)
    while not stop.is_set() and (job.deadline is None or time.time() < job.deadline):
        progress = progress_of(study.get_trials(deepcopy=False))
        if progress.num_finished >= job.num_trials or must_end():
            return
        if progress.num_finished + progress.num_running >= job.num_trials:
            # the last ones are running: should their workers die, the search notices it and queues them again
            if not has_heartbeat(storage):
                return
            time.sleep(POLL_S)
            continue
        _make_one_trial(study, context)
        # of a Pareto front nothing is cut off: a bundle that left the best may come back when another pushes out two
        remove_surplus_bundles(study, job.folder, job.num_kept if len(study.directions) == 1 else None)


def _make_one_trial(study: Study, context: TrialContext) -> None:
    taken_over: list[int] = []

    def objective(trial: Trial) -> float | tuple[float, ...]:
        try:
            return run_trial(trial, context)
        except TrialTakenOver:
            taken_over.append(trial.number)
            raise

    try:
        study.optimize(objective, n_trials=1, catch=(TrialError, TrialTakenOver))
    except ValueError:  # Optuna cannot record the end of a trial that others have ended
        if not taken_over:
            raise
    finally:
        # only now nothing refers to a failed training any more: the next one needs its memory
        gc.collect()
        torch.cuda.empty_cache()


def threads_per_worker(num_workers: int) -> int:
    """Return the threads of one worker: its share of those that a training takes, all of them if it is alone.

    The order of sums, and with it the last bits of a training, depend on the number of threads: a lone worker's trial
    and the training for the record give the same model.
    """
    return max(1, torch.get_num_threads() // num_workers)


def worker_device(asked: str, number: int) -> str:
    """Return the device of one worker: each takes the next GPU, unless one is named."""
    if asked == "cpu" or ":" in asked or not torch.cuda.is_available():
        return asked
    return f"cuda:{number % torch.cuda.device_count()}"


def _raise_error_of(workers: Sequence[tuple[BaseProcess, Connection]]) -> None:
    for _, receiver in workers:
        if receiver.poll():
            try:
                raise receiver.recv()
            except EOFError:  # its process ended without an error of its own
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
    for _, receiver in workers:
        receiver.close()
