"""search: find better params by an Optuna study."""

from __future__ import annotations

import platform
import secrets
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from stackseg.atomic import require_writable
from stackseg.cli.console import err, next_step, say, warn
from stackseg.cli.project import (
    CATALOG,
    DATA,
    OUTPUTS,
    PARAMS_FILE,
    checkpoints_folder,
    load_params,
    lock_file,
    ready_store,
)
from stackseg.cli.search_display import ShownStudy, show_results
from stackseg.cli.stages import Device

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from stackseg.params import Params
    from stackseg.search.objective import SearchJob
    from stackseg.search.results import StudyResults
    from stackseg.search.space.space import Space

PANEL = "Models"


def attach(app: typer.Typer) -> None:
    """Add this verb to the command line."""
    app.command(rich_help_panel=PANEL)(search)


def search(
    trials: Annotated[int, typer.Option(min=1, help="Finished trials that the study shall have, pruned ones too.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that make trials, sharing the cores or GPUs.")] = 1,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds after which no trial begins.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="STACKSEG_STORAGE",
            help="postgresql://…, grpc://host:port or sqlite:///file; optuna.db by default.",
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Its name; search.study of params.yaml by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study that is there.")] = False,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Keep the bundles of so many of the best trials; 1, or as the study did before."),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Write the best params into params.yaml.")] = False,
    register_best: Annotated[
        bool, typer.Option("--register-best", help="Score the best trial on the test part and register it.")
    ] = False,
    data: Annotated[Path, typer.Option(help="Folder of the specimens.")] = DATA,
    catalog: Annotated[Path, typer.Option(help="The catalogue to read.")] = CATALOG,
    device: Device = "auto",
) -> None:
    """Search params.yaml's `search.space` for better params by an Optuna study.

    The present params are trial 0. Trials are scored on the validation part; the test part is not read. The same
    command on another machine, with the same --storage, joins in. Ctrl-C ends it, --resume goes on.
    """
    from stackseg.errors import MachineError, ModelError, ParamsError
    from stackseg.model.devices import pick_device
    from stackseg.search.mlflow_runs import open_study_run
    from stackseg.search.objective import SearchJob
    from stackseg.search.results import claim_folder, write_results
    from stackseg.search.samplers import dry_run, first_seed, max_trials
    from stackseg.search.space.parse import read_space
    from stackseg.search.space.preflight import check_buildable, read_search_catalog
    from stackseg.search.storage import require_own_storage, storage_url
    from stackseg.search.storage_errors import is_of_storage_alone, storage_errors
    from stackseg.search.study import num_kept, open_study
    from stackseg.search.workers import run_search
    from stackseg.tracking.lineage import require_dependency
    from stackseg.tracking.store_errors import store_lock
    from stackseg.tracking.uri import project_root, shown_uri
    from stackseg.training.train import Machine

    if platform.system() == "Windows":
        raise MachineError(
            "a search needs process groups and alarms, which Windows lacks",
            remedy="search under Linux, macOS or WSL; all other verbs work here",
        )
    params = load_params()
    space = read_space(params)
    for file in space.augment_files():
        require_dependency(Path("dvc.yaml"), "train", file)
    if register_best and params.search.folds is not None:
        raise ParamsError(
            "--register-best with search.folds: a trial has one bundle per fold",
            expected="one bundle",
            where="search.folds",
            remedy="use --apply, then `dvc repro`: it trains on the whole training part and registers that",
        )
    root = project_root()
    url = storage_url(root, storage)
    require_own_storage(params, url, root)
    require_writable(OUTPUTS, *([PARAMS_FILE.parent] if apply else []))
    picked = pick_device(device)
    with err().status("comparing the planes with the catalogue"):
        described = read_search_catalog(space, catalog, data)
    dry_run(space)
    if (most := max_trials(space)) is not None and trials > most:
        say(f"{params.search.sampler.name} has {most} trials in this space")
        trials = most
    in_channels = described.num_channels * (2 * params.model.context_slices + 1)
    with err().status("building every network of the space once"):
        check_buildable(space, in_channels, described.class_pixels("training"), picked)
    _, experiment_id = ready_store(params)
    name = params.search.study if study is None else params.override({"search.study": study}, "--study").search.study
    folder, checkpoints = OUTPUTS / "search" / name, checkpoints_folder(root) / "search" / name
    opened = _opened_storage(url, params, checkpoints)
    with storage_errors(shown_uri(url)):
        found, created = open_study(opened, name, space, described, resume=resume)
        kept = num_kept(found, top)
    with storage_errors(shown_uri(url), is_of_storage_alone):
        with store_lock(lock_file(root)):
            claim_folder(folder, checkpoints, found)
        job = SearchJob(
            params=params,
            catalog=described,
            data=data,
            root=root,
            url=url,
            study=name,
            folder=folder,
            checkpoints=checkpoints,
            experiment_id=experiment_id,
            parent_run=open_study_run(found, experiment_id, lock_file(root)),
            lock_file=lock_file(root),
            machine=Machine(device=device),
            num_trials=trials,
            num_workers=workers,
            num_kept=kept,
            # with the seed of before, the sampler of a resumed study would draw the same trials again
            seed=first_seed(params) if created else secrets.randbelow(2**31),
            deadline=None if timeout is None else time.time() + timeout,
        )
        command = same_search(job, storage, catalog)
        try:
            with ShownStudy(job, found) as shown:
                run_search(job, found, on_change=shown.update, on_interrupt=shown.interrupted)
        except KeyboardInterrupt:
            say(f"interrupted; `{command} --resume` goes on")
            raise
        results = write_results(found, space, job, OUTPUTS)
        show_results(found, space, results)
        if results is not None:
            _use_best(results, space, job, command, apply=apply, register_best=register_best)
        elif wanted := [name for name, asked in (("--apply", apply), ("--register-best", register_best)) if asked]:
            raise ModelError(
                "no trial is complete",
                expected="a best one",
                where=f"study {name}, {' '.join(wanted)}",
                remedy=f"go on: {command} --resume {' '.join(wanted)}",
            )


def same_search(job: SearchJob, storage: str | None, catalog: Path) -> str:
    """Return the command that resumes this search, to be typed; passwords are left out."""
    options = [
        ("--trials", job.num_trials, None),
        ("--workers", job.num_workers, 1),
        ("--top", job.num_kept, 1),
        ("--study", job.study, job.params.search.study),
        ("--storage", None if storage is None else _without_password(storage), None),
        ("--data", job.data, DATA),
        ("--catalog", catalog, CATALOG),
        ("--device", job.machine.device, "auto"),
    ]
    given = [f"{name} {quote(str(value))}" for name, value, default in options if value not in (None, default)]
    return " ".join(["stackseg search", *given])


def _without_password(storage: str) -> str:
    import sqlalchemy

    from stackseg.tracking.uri import shown_uri

    scheme = storage.partition(":")[0].partition("+")[0]
    if scheme == "sqlite":  # an @ is part of the file's name
        return storage
    if scheme == "grpc":
        return shown_uri(storage)
    url = sqlalchemy.make_url(storage)._replace(password=None)
    return url.difference_update_query(["password", "sslpassword"]).render_as_string()


def _opened_storage(url: str, params: Params, checkpoints: Path) -> BaseStorage:
    from stackseg.search.retry import stale_callback
    from stackseg.search.storage import has_heartbeat, open_storage

    opened = open_storage(url, heartbeat=params.search.heartbeat, on_stale=stale_callback(checkpoints))
    if not has_heartbeat(opened):
        warn("a gRPC proxy has no heartbeat: a trial stays running when its search is killed")
    return opened


def _use_best(
    results: StudyResults, space: Space, job: SearchJob, command: str, *, apply: bool, register_best: bool
) -> None:
    """Register the best trial, and write its params into params.yaml, if so asked."""
    from stackseg.cli.models import register_evaluated
    from stackseg.cli.stages import score_bundle
    from stackseg.search.results import apply_best, best_bundle

    best = results.best[0]
    if register_best:
        folder = best_bundle(results, job)
        params = space.params.override(results.values, f"trial {best.number}")
        model = folder / "model"
        scored = score_bundle(params, job.catalog, data=job.data, model=model, out=folder, device=job.machine.device)
        register_evaluated(
            params, (job.root, job.experiment_id), scored, job.catalog, model=model, data=job.data, out=folder
        )
    if not apply:
        next_step(f"{command} --resume --apply, then dvc repro; or mlflow ui")
        return
    apply_best(results, space, job.catalog, PARAMS_FILE)
    say(f"{PARAMS_FILE} has the params of trial {best.number}; commit it once `dvc repro` has shown them good")
    if any(space.params.search.space[key].when for key in results.values):
        say("a key with a condition is among them: to search further from here, begin another study by --study")
    next_step("dvc repro, which trains for the record and scores on the test part")
