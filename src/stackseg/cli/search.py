"""search: find better params by an Optuna study."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackseg.cli.console import err, next_step, say, warn
from stackseg.cli.project import DATA, OUTPUTS, PARAMS_FILE, checkpoints_folder, load_params
from stackseg.cli.search_display import NUM_SHOWN, ShownStudy, show_best, show_worth
from stackseg.cli.stages import Device
from stackseg.cli.store import move_lock, ready_store

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from stackseg.imaging.splits import Part
    from stackseg.params import Params
    from stackseg.studies.space import Space
    from stackseg.studies.workers import Order

PANEL = "Models"
CATALOG = OUTPUTS / "catalog.json"


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
            help="postgresql://…, grpc://host:port, sqlite:///file or journal:file; optuna.db by default.",
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
    from stackseg.lifecycle.address import shown_uri
    from stackseg.lifecycle.faults import store_lock
    from stackseg.lifecycle.lineage import require_dependency
    from stackseg.studies.faults import storage_errors
    from stackseg.studies.interrupts import interruptible
    from stackseg.studies.results import take_folder
    from stackseg.studies.runs import study_run
    from stackseg.studies.space_reading import check_buildable, read_space
    from stackseg.studies.strategies import first_seed, most_trials, rehearse
    from stackseg.studies.study import num_kept, open_study
    from stackseg.studies.workers import Order

    params = load_params()
    space = read_space(params)
    for file in space.augment_files():
        require_dependency(Path("dvc.yaml"), "train", file)
    described, machine, picked = _readable(space, catalog, data, device, register_best)
    rehearse(space)
    if (most := most_trials(space)) is not None and trials > most:
        say(f"{params.search.sampler.name} has {most} trials in this space")
        trials = most
    in_channels = described.num_channels * (2 * params.model.context_slices + 1)
    with err().status("building every network of the space once"):
        check_buildable(space, in_channels, described.class_pixels("training"), picked)
    root, experiment_id = ready_store(params)
    name = params.search.study if study is None else params.override({"search.study": study}, "--study").search.study
    checkpoints = checkpoints_folder(root) / "search" / name
    url, opened = _storage(params, root, storage, checkpoints)
    with storage_errors(shown_uri(url)):
        found, created = open_study(opened, name, space, described, resume=resume)
        kept = num_kept(found, top)
    folder = OUTPUTS / "search" / name
    with store_lock(move_lock(root)):
        take_folder(folder, checkpoints, found)
    order = Order(
        params=params,
        catalog=described,
        data=data,
        root=root,
        url=url,
        study=name,
        folder=folder,
        checkpoints=checkpoints,
        parent_run=study_run(found, experiment_id, move_lock(root)),
        machine=machine,
        num_trials=trials,
        num_workers=workers,
        num_kept=kept,
        # a sampler that begins anew in a study that is there would draw what was drawn before
        seed=first_seed(params) if created else secrets.randbelow(2**31),
        deadline=None if timeout is None else time.time() + timeout,
    )
    command = same_search(order, storage, catalog)
    with interruptible():
        _make_trials(order, found, experiment_id, command)
    _finish(found, space, order, command, apply=apply, register_best=register_best)


def _make_trials(order: Order, study: Study, experiment_id: str, command: str) -> None:
    """Make the trials, and close the study's run however that ends."""
    from stackseg.studies.runs import close_study_run
    from stackseg.studies.workers import run_workers

    try:
        with ShownStudy(order, study) as shown:
            run_workers(order, study, on_change=shown.update, on_interrupt=shown.interrupted)
        close_study_run(study, order.parent_run, experiment_id, "FINISHED", move_lock(order.root))
    except KeyboardInterrupt:
        close_study_run(study, order.parent_run, experiment_id, "KILLED", move_lock(order.root))
        say(f"interrupted; `{command} --resume` goes on")
        raise
    except Exception:
        # on a full disk this fails as well, and would hide why
        with suppress(Exception):
            close_study_run(study, order.parent_run, experiment_id, "FAILED", move_lock(order.root))
        raise


def _readable(space: Space, catalog: Path, data: Path, device: str, register_best: bool) -> tuple[Any, Any, Any]:
    from stackseg.errors import ParamsError
    from stackseg.imaging.catalog import fold_catalog, read_catalog, require_described_by
    from stackseg.imaging.unchanged import require_same_planes
    from stackseg.learning.devices import pick_device
    from stackseg.learning.training import Machine

    params = space.present
    if register_best and params.search.folds is not None:
        raise ParamsError(
            "--register-best with search.folds: a trial has one bundle per fold",
            expected="one bundle",
            where="search.folds",
            remedy="use --apply, then `dvc repro`: it trains on the whole training part and registers that",
        )
    picked = pick_device(device)
    described = read_catalog(catalog)
    require_described_by(described, params, catalog)
    context = space.most("model.context_slices")
    described.require_test_apart(context, folds=params.search.folds)
    with err().status("comparing the planes with the catalogue"):
        parts: tuple[Part, ...] = ("training", "validation")
        # neighbours are input too
        require_same_planes(described, data, *parts, *(("gap", "unused") if context else ()))
    if params.search.folds is not None:
        fold_catalog(described, data, fold=0, folds=params.search.folds)
    return described, Machine(device=device), picked


def _storage(params: Params, root: Path, given: str | None, checkpoints: Path) -> tuple[str, Any]:
    from stackseg.studies.stale import stale_callback
    from stackseg.studies.storage import has_heartbeat, open_storage, storage_url

    url = storage_url(root, given)
    opened = open_storage(
        url,
        root=root,
        heartbeat=params.search.heartbeat,
        on_stale=stale_callback(checkpoints),
    )
    if not has_heartbeat(opened):
        kind = "a journal file" if url.startswith("journal:") else "a gRPC proxy"
        torn = " and a line torn by a full disk spoils the study" if url.startswith("journal:") else ""
        warn(f"{kind} knows no heartbeat: a trial whose worker dies stays running{torn}")
    return url, opened


def same_search(order: Order, storage: str | None, catalog: Path) -> str:
    """Return the command that goes on with this study, to be typed; passwords are left out."""
    options = [
        ("--trials", order.num_trials, None),
        ("--workers", order.num_workers, 1),
        ("--top", order.num_kept, 1),
        ("--study", order.study, order.params.search.study),
        ("--storage", None if storage is None else _without_password(storage), None),
        ("--data", order.data, DATA),
        ("--catalog", catalog, CATALOG),
        ("--device", order.machine.device, "auto"),
    ]
    given = [f"{name} {quote(str(value))}" for name, value, default in options if value not in (None, default)]
    return " ".join(["stackseg search", *given])


def _without_password(storage: str) -> str:
    import sqlalchemy

    from stackseg.lifecycle.address import shown_uri

    scheme = storage.partition(":")[0].partition("+")[0]
    if scheme in ("sqlite", "journal"):  # files: an @ is of their name
        return storage
    if scheme == "grpc":
        return shown_uri(storage)
    url = sqlalchemy.make_url(storage)._replace(password=None)
    return url.difference_update_query(["password", "sslpassword"]).render_as_string()


def _finish(study: Study, space: Space, order: Order, command: str, *, apply: bool, register_best: bool) -> None:
    """Show what the study came to, and leave its results."""
    from stackseg.errors import ModelError
    from stackseg.params.file import write_values
    from stackseg.studies.results import write_best_params, write_queue
    from stackseg.studies.standing import standing_of
    from stackseg.studies.study import best_trials
    from stackseg.studies.trial_runs import trial_folder
    from stackseg.studies.trials import tidy_bundles

    trials = study.get_trials(deepcopy=False)
    standing = standing_of(trials)
    best = best_trials(study)
    if not best:
        wanted = [name for name, asked in (("--apply", apply), ("--register-best", register_best)) if asked]
        failed = [one for one in trials if "failure" in one.user_attrs]
        if failed:
            raise ModelError(
                f"no trial is complete; {len(failed)} failed, the last with: {failed[-1].user_attrs['failure']}",
                where=f"study {study.study_name}",
                remedy="mend params.yaml and begin another study",
            )
        if wanted:
            raise ModelError(
                "no trial is complete",
                expected="a best one",
                where=f"study {study.study_name}, {' '.join(wanted)}",
                remedy=f"go on: {command} --resume {' '.join(wanted)}",
            )
        pruned = " (search.pruner lets none pass)" if standing.num_pruned else ""
        say(f"no trial is complete, {standing.num_pruned} pruned, {standing.num_failed} failed{pruned}")
        return
    show_best(study, space, best)
    show_worth(study)
    tidy_bundles(study, order.folder, order.num_kept)
    for one in best[: order.num_kept]:
        if not trial_folder(order.folder, one.number).is_dir():
            host = one.user_attrs.get("host")
            warn(f"the bundle of trial {one.number} is not here: it was made on {host}, or removed as not among --top")
    queue = order.folder / "queue.sh"
    write_queue(queue, study, best[: max(order.num_kept, NUM_SHOWN)], space)
    values = write_best_params(OUTPUTS / "best_params.yaml", study, best[0], space)
    say(
        f"{standing.num_complete} complete, {standing.num_pruned} pruned, {standing.num_failed} failed; best: trial "
        f"{best[0].number}, {OUTPUTS / 'best_params.yaml'} has its params, {queue} queues the best as experiments"
    )
    if register_best:
        _register(order, best[0], space)
    if apply:
        _require_unedited(space, order)
        write_values(PARAMS_FILE, values)
        say(f"{PARAMS_FILE} has the params of trial {best[0].number}; commit it once `dvc repro` has shown them good")
        if any(space.present.search.space[key].when for key in values):
            say("a key with a condition is among them: to search further from here, begin another study by --study")
        next_step("dvc repro, which trains for the record and scores on the test part")
    else:
        next_step(f"{command} --resume --apply, then dvc repro; or mlflow ui")


def _require_unedited(space: Space, order: Order) -> None:
    """Refuse to write the best params beside others than they were tried with."""
    from stackseg.errors import ParamsError
    from stackseg.studies.study import identity_of

    now, tried = load_params().flat(), identity_of(space, order.catalog)["fixed"]
    for key, value in tried.items():
        if now.get(key, "not there") != value:
            raise ParamsError(
                f"{key} was changed to {now.get(key, 'nothing')} while the search went on",
                expected=f"{value}, with which the trials were made",
                where=str(PARAMS_FILE),
                remedy=f"set it back and type the command with --resume; {OUTPUTS / 'best_params.yaml'} has the best",
            )


def _register(order: Order, best: FrozenTrial, space: Space) -> None:
    from stackseg.aside import write_text_aside
    from stackseg.cli.registry import register_outputs
    from stackseg.cli.stages import score_bundle
    from stackseg.errors import DataError
    from stackseg.lifecycle.runs import read_run
    from stackseg.studies.study import RUN_ID
    from stackseg.studies.trial_runs import trial_folder

    folder = trial_folder(order.folder, best.number)
    run_file = folder / "run.json"
    if not run_file.is_file() or read_run(run_file).run_id != best.user_attrs[RUN_ID]:
        raise DataError(
            f"the bundle of trial {best.number} is not here: it was made on {best.user_attrs.get('host')}, or removed",
            expected="the bundle of the best trial",
            where=str(folder),
            remedy="register it there; or use --apply, then `dvc repro`",
        )
    params = space.present.override(space.overrides(best.params), f"trial {best.number}")
    write_text_aside(folder / "catalog.json", order.catalog.model_dump_json(indent=1) + "\n")
    score_bundle(
        params, order.catalog, data=order.data, model=folder / "model", out=folder, device=order.machine.device
    )
    register_outputs(params, data=order.data, out=folder)
