"""What MLflow's pages say about a run and its model, in Markdown: data, split, leakage, commit, scores."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stackseg.dataset.records import Catalog
from stackseg.dataset.splits import Part
from stackseg.evaluation.bootstrap import Interval
from stackseg.evaluation.evaluate import Evaluation
from stackseg.model.bundle import BundleSpec
from stackseg.tracking.lineage import GitState

# MLflow cuts a description at 8,000 characters
MAX_ROWS = 50
_PARTS: tuple[Part, ...] = ("training", "validation", "test")


def describe_run(run_id: str, heading: str, text: str) -> None:
    """Write a section of a run's description, in place of an earlier one of that heading; the others stay."""
    client = MlflowClient()
    note = client.get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
    client.set_tag(run_id, MLFLOW_RUN_NOTE, _with_section(note, heading, text))


def describe_scores(run_id: str, model_id: str, evaluation: Evaluation) -> None:
    """Add the scores of an evaluation to the description of the run, and to that of the model it logged."""
    heading, table = f"Scores on the {evaluation.part} part", score_table(evaluation)
    describe_run(run_id, heading, table)
    client = MlflowClient()
    note = client.get_logged_model(model_id).tags.get(MLFLOW_RUN_NOTE, "")
    client.set_logged_model_tags(model_id, {MLFLOW_RUN_NOTE: _with_section(note, heading, table)})


def data_section(catalog: Catalog, git: GitState) -> str:
    """Return what a training learns from, how it was split, and by which code."""
    counts = ", ".join(f"{len(catalog.planes(part))} {part}" for part in _PARTS)
    leakage = catalog.leakage
    lines = [
        f"`{catalog.data}`, DVC md5 `{catalog.data_md5}`: {_num(len(catalog.specimens), 'specimen')}, "
        f"classes {', '.join(one.name for one in catalog.classes)}",
        f"split by {catalog.split.method}: planes {counts}",
        "leakage unknown: no held-out plane can be compared"
        if leakage.figure is None
        else f"leakage {leakage.figure:.2f} (0 is clean, 1 is trained on)"
        + (" **held-out planes resemble training planes**" if leakage.leaks else ""),
    ]
    if git.commit is not None:
        lines.append(f"commit `{git.short}`" + (", with the changes in lineage/uncommitted.diff" if git.dirty else ""))
    return "\n".join(f"- {line}" for line in lines)


def training_section(spec: BundleSpec, num_epochs: int, num_planes: int) -> str:
    """Return what a training came to."""
    score = figure(spec.validation.mean_iou)
    return (
        f"Best epoch {spec.validation.epoch + 1} of {num_epochs}: mean IoU **{score}** on "
        f"{_num(num_planes, 'whole validation plane')}. The images show input, truth, prediction and error (red) "
        "of the same planes at each validation."
    )


def score_table(evaluation: Evaluation) -> str:
    """Return the scores of an evaluation with their intervals, as Markdown."""
    scores = evaluation.scores
    rows = [
        (
            one.name.replace("|", r"\|"),
            *map(figure, (one.iou, one.dice, one.precision, one.recall, one.boundary_f1, one.boundary_iou)),
        )
        for one in scores.classes[:MAX_ROWS]
    ]
    left_out = len(scores.classes) - len(rows)
    lines = [
        f"Mean IoU **{figure(evaluation.mean_iou)}** on {_num(scores.num_planes, 'plane')}, "
        f"interval {_interval(evaluation.mean_iou_interval)}; "
        f"within planes only {_interval(evaluation.mean_iou_interval_within_planes)}.",
        "",
        _row(("class", "IoU", "Dice", "precision", "recall", "boundary F1", "boundary IoU")),
        _row(["---"] * 7),
        *map(_row, rows),
        *([f"\nand {left_out} more classes"] if left_out else []),
    ]
    if evaluation.neurons is not None:
        lines += ["", f"V_rand {figure(evaluation.neurons.v_rand)}, V_info {figure(evaluation.neurons.v_info)}"]
    return "\n".join(lines)


def figure(value: float | None) -> str:
    """Return a score as it is shown; one that is undefined is null."""
    return "null" if value is None else f"{value:.4f}"


def _interval(interval: Interval) -> str:
    if interval.low is None:
        return f"null ({interval.reason})"
    bounds = f"{figure(interval.low)} to {figure(interval.high)}"
    return f"{bounds} at {interval.confidence:.0%} ({interval.num_units} units: {interval.unit})"


def _with_section(note: str, heading: str, text: str) -> str:
    section = f"### {heading}\n\n{text}\n\n"
    earlier = re.compile(rf"^### {re.escape(heading)}$.*?(?=^### |\Z)", re.MULTILINE | re.DOTALL)
    if earlier.search(note):
        return earlier.sub(lambda _: section, note).strip()
    return f"{note}\n\n{section}".strip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _num(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
