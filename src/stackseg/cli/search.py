"""search: find better params by an Optuna study."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackseg.cli.console import err, say, warn
from stackseg.cli.project import CATALOG, DATA, OUTPUTS, checkpoints_folder, load_params, lock_file, ready_store
from stackseg.cli.search_command import same_search
from stackseg.cli.search_display import ShownStudy
from stackseg.cli.search_results import leave_results
from stackseg.cli.stages import Device

if TYPE_CHECKING:
    from optuna.study import Study

    from stackseg.dataset.splits import Part
    from stackseg.params import Params
    from stackseg.search.space.space import Space
    from stackseg.search.workers import Order

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
    from stackseg.search.mlflow_runs import study_run
    from stackseg.search.results import take_folder
    from stackseg.search.samplers import first_seed, most_trials, rehearse
    from stackseg.search.signals import interruptible
    from stackseg.search.space.buildable import check_buildable
    from stackseg.search.space.parse import read_space
    from stackseg.search.storage_errors import is_of_storage_alone, storage_errors
    from stackseg.search.study import num_kept, open_study
    from stackseg.search.workers import Order
    from stackseg.tracking.lineage import require_dependency
    from stackseg.tracking.store_errors import store_lock
    from stackseg.tracking.uri import shown_uri

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
    with storage_errors(shown_uri(url), is_of_storage_alone):
        folder = OUTPUTS / "search" / name
        with store_lock(lock_file(root)):
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
            parent_run=study_run(found, experiment_id, lock_file(root)),
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
        leave_results(found, space, order, command, apply=apply, register_best=register_best)


def _make_trials(order: Order, study: Study, experiment_id: str, command: str) -> None:
    """Make the trials, and close the study's run however that ends."""
    from stackseg.search.mlflow_runs import close_study_run
    from stackseg.search.workers import run_workers

    try:
        with ShownStudy(order, study) as shown:
            run_workers(order, study, on_change=shown.update, on_interrupt=shown.interrupted)
        close_study_run(study, order.parent_run, experiment_id, "FINISHED", lock_file(order.root))
    except KeyboardInterrupt:
        close_study_run(study, order.parent_run, experiment_id, "KILLED", lock_file(order.root))
        say(f"interrupted; `{command} --resume` goes on")
        raise
    except Exception:
        # on a full disk this fails as well, and would hide why
        with suppress(Exception):
            close_study_run(study, order.parent_run, experiment_id, "FAILED", lock_file(order.root))
        raise


def _readable(space: Space, catalog: Path, data: Path, device: str, register_best: bool) -> tuple[Any, Any, Any]:
    from stackseg.catalog.build import folded
    from stackseg.dataset.fingerprints import require_same_planes
    from stackseg.dataset.records import read_catalog, require_described_by
    from stackseg.errors import ParamsError
    from stackseg.model.devices import pick_device
    from stackseg.training.train import Machine

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
    context, folds = space.most("model.context_slices"), params.search.folds
    described.require_test_unread()
    described.require_test_apart(context, folds=folds)
    if folds is not None:
        folded(described, folds)
    with err().status("comparing the planes with the catalogue"):
        parts: tuple[Part, ...] = ("training", "validation")
        # neighbours are input too, and a gap is another in each fold
        require_same_planes(described, data, *parts, *(("gap", "unused") if context or folds is not None else ()))
    return described, Machine(device=device), picked


def _storage(params: Params, root: Path, given: str | None, checkpoints: Path) -> tuple[str, Any]:
    from stackseg.search.retry import stale_callback
    from stackseg.search.storage import has_heartbeat, open_storage, storage_url

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
        warn(f"{kind} knows no heartbeat: a trial stays running when its search is killed{torn}")
    return url, opened
