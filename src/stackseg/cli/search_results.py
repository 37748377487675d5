"""What a study leaves: tables, the best params and bundles, a queue; if asked, params.yaml and a registered version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stackseg.cli.console import next_step, say, warn
from stackseg.cli.project import OUTPUTS, PARAMS_FILE, load_params
from stackseg.cli.search_display import NUM_SHOWN, show_best, show_worth

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from stackseg.search.space.space import Space
    from stackseg.search.workers import Order


def leave_results(study: Study, space: Space, order: Order, command: str, *, apply: bool, register_best: bool) -> None:
    """Show what the study came to, and leave its results."""
    from stackseg.errors import ModelError
    from stackseg.params.file import write_values
    from stackseg.search.objective import tidy_bundles
    from stackseg.search.progress import standing_of
    from stackseg.search.results import write_best_params, write_queue
    from stackseg.search.study import best_trials
    from stackseg.search.trial_runs import trial_folder

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
    from stackseg.search.study import identity_of

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
    from stackseg.atomic import write_text
    from stackseg.cli.models import register_outputs
    from stackseg.cli.stages import score_bundle
    from stackseg.errors import DataError
    from stackseg.search.study import RUN_ID
    from stackseg.search.trial_runs import trial_folder
    from stackseg.tracking.run_logger import read_run

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
    write_text(folder / "catalog.json", order.catalog.model_dump_json(indent=1) + "\n")
    score_bundle(
        params, order.catalog, data=order.data, model=folder / "model", out=folder, device=order.machine.device
    )
    register_outputs(params, data=order.data, out=folder)
