"""What a search prints: its progress, the best trials, what each parameter was worth, and where the results are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stackseg.cli.console import figure, say, study_progress, table, warn

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from stackseg.search.objective import SearchJob
    from stackseg.search.results import StudyResults
    from stackseg.search.space.space import Space

NUM_SHOWN = 5
FEW_TRIALS = 10


class ShownStudy:
    """The progress of a study: trials done, pruned, the best so far, time left."""

    def __init__(self, job: SearchJob, study: Study) -> None:
        self._job = job
        self._study = study
        self._shown: set[int] = set()

    def __enter__(self) -> ShownStudy:
        trials = self._study.get_trials(deepcopy=False)
        self._shown = {one.number for one in trials if one.state.is_finished()}
        self._progress = study_progress()
        self._task = self._progress.add_task(self._study.study_name, total=self._job.num_trials, best="-", pruned=0)
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def interrupted(self) -> None:
        """Say that ending takes a moment."""
        self._progress.stop()
        say("ending the trials that are at work, and closing their runs")

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Move the bar; without a terminal, a line per trial that has ended."""
        from stackseg.search.progress import progress_of
        from stackseg.search.study import best_trials

        progress = progress_of(trials)
        best = best_trials(self._study) if progress.num_complete else []
        shown = f"{figure(_iou(self._study, best[0]))} (trial {best[0].number})" if best else "-"
        self._progress.update(
            self._task,
            completed=min(progress.num_finished, self._job.num_trials),
            best=shown,
            pruned=progress.num_pruned,
        )
        for one in trials:
            if one.state.is_finished() and one.number not in self._shown:
                self._shown.add(one.number)
                if not self._progress.console.is_terminal:
                    say(f"trial {one.number}: {_outcome(self._study, one)}; best {shown}")


def _outcome(study: Study, one: FrozenTrial) -> str:
    if one.values:
        return figure(_iou(study, one)) if one.state.name == "COMPLETE" else f"pruned at {figure(one.value)}"
    return str(one.user_attrs.get("failure") or "interrupted")


def _iou(study: Study, one: FrozenTrial) -> float:
    from stackseg.search.study import iou_index

    return float(one.values[iou_index(study)])


def show_results(study: Study, space: Space, results: StudyResults | None) -> None:
    """Print the best trials, what each parameter was worth, and where the results are."""
    from stackseg.search.progress import progress_of

    progress = progress_of(study.get_trials(deepcopy=False))
    counts = f"{progress.num_pruned} pruned, {progress.num_failed} failed"
    if results is None:
        pruned = " (search.pruner lets none pass)" if progress.num_pruned else ""
        say(f"no trial is complete, {counts}{pruned}")
        return
    _show_best(study, space, results.best)
    _show_worth(study, progress.num_complete)
    for one in results.without_bundle:
        host = one.user_attrs.get("host")
        warn(f"the bundle of trial {one.number} is not here: it was made on {host}, or removed as not among --top")
    say(
        f"{progress.num_complete} complete, {counts}; best: trial {results.best[0].number}, {results.best_params} has "
        f"its params, {results.queue} queues the best as experiments"
    )


def _show_best(study: Study, space: Space, best: Sequence[FrozenTrial]) -> None:
    """Print the best trials, or the Pareto front."""
    names = {"mean_iou": "mean IoU", "ms_per_megapixel": "ms/Mpx", "parameters": "parameters"}
    objectives = space.params.search.objectives
    short = _short([one.key for one in space.dimensions])
    rows = []
    for one in best[:NUM_SHOWN]:
        values = [_objective(name, value) for name, value in zip(objectives, one.values, strict=True)]
        minutes = "" if one.duration is None else f"{one.duration.total_seconds() / 60:.1f}"
        params = ", ".join(f"{short[key]} {_param(value)}" for key, value in one.params.items())
        rows.append([str(one.number), *values, minutes, params])
    title = "best trials" if len(objectives) == 1 else "Pareto front"
    columns = ("trial", *(names[one] for one in objectives), "min")
    table(f"{title} of study {study.study_name}", (*columns, "params"), rows, whole=columns)


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Return dotted keys to what they are called without their sections, where that leaves no two alike."""
    last = [one.rpartition(".")[2] for one in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}


def _objective(name: str, value: float) -> str:
    return figure(value) if name == "mean_iou" else f"{value:.0f}"


def _param(value: Any) -> str:
    # Optuna holds lists and mappings as JSON: without the quotes it is what params.yaml would say
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace('"', "")


def _show_worth(study: Study, num_complete: int) -> None:
    """Print what each parameter was worth, as far as the complete trials tell."""
    from stackseg.search.mlflow_runs import importances

    worth = importances(study)
    if worth:
        few = ": so few that it is a hint at best" if num_complete < FEW_TRIALS else ""
        table(
            f"worth of each, by {num_complete} complete trials{few}",
            ("parameter", "share of the variance of the mean IoU"),
            [(key, f"{value:.2f}") for key, value in worth.items()],
        )
