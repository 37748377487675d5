"""What MLflow's pages say about a run and its model, in Markdown: data, split, leakage, commit, scores."""

from __future__ import annotations

import re

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from stackseg.dataset.records import Catalog
from stackseg.evaluation.evaluate import Evaluation
from stackseg.model.bundle import BundleSpec, ParentRecord

# MLflow cuts a description at 8,000 characters
MAX_CLASSES = 50
_CLASS_SCORES = {
    "IoU": "iou",
    "Dice": "dice",
    "precision": "precision",
    "recall": "recall",
    "boundary F1": "boundary_f1",
    "boundary IoU": "boundary_iou",
}


def describe_run(run_id: str, heading: str, text: str) -> None:
    """Write a section of a run's description, in place of an earlier one of that heading; the others stay."""
    client = MlflowClient()
    note = client.get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
    client.set_tag(run_id, MLFLOW_RUN_NOTE, with_section(note, heading, text))


def describe_scores(run_id: str, evaluation: Evaluation) -> None:
    """Add the scores of an evaluation to the description of a run."""
    describe_run(run_id, f"Scores on the {evaluation.part} part", score_table(evaluation))


def data_section(catalog: Catalog, commit: str | None, *, dirty: bool | None) -> str:
    """Return what a training learns from, how it was split, and by which code."""
    planes = ", ".join(f"{len(catalog.planes(part))} {part}" for part in ("training", "validation", "test"))
    leaks = ": **held-out planes resemble training planes**" if catalog.leakage.leaks else ""
    changes = ", with the changes in lineage/uncommitted.diff of the run" if dirty else ""
    return "\n".join(
        [
            f"- Data: `{catalog.data}`, md5 `{catalog.data_md5}`, catalogue `{catalog.digest()[:12]}`",
            f"- Classes: {', '.join(one.name for one in catalog.classes[:MAX_CLASSES])}",
            f"- Split: {catalog.split.method}; planes: {planes}",
            f"- Leakage: {figure(catalog.leakage.figure)} (0 is clean, 1 is trained on){leaks}",
            f"- Code: commit `{commit or 'unknown'}`{changes}",
        ]
    )


def training_section(spec: BundleSpec, num_epochs: int) -> str:
    """Return what a training came to."""
    beginning = "" if spec.lineage.parent is None else f"\n\n{parent_sentence(spec.lineage.parent)}"
    return (
        f"Best epoch {spec.validation.epoch + 1} of {num_epochs}: mean IoU **{figure(spec.validation.mean_iou)}** on "
        "the whole planes of the validation part. At each validation, the images show input, truth, prediction and "
        f"error (red) of the same planes.{beginning}"
    )


def parent_sentence(parent: ParentRecord) -> str:
    """Return which model a training began with."""
    return f"Began with the weights of `{parent}`, bundle `{parent.digest}`"


def score_table(evaluation: Evaluation, *, max_classes: int = MAX_CLASSES) -> str:
    """Return the scores of an evaluation with their interval, class by class up to a number of them."""
    scores, interval = evaluation.scores, evaluation.mean_iou_interval
    between = interval.reason or (
        f"{figure(interval.low)} to {figure(interval.high)} at {interval.confidence:.0%}, "
        f"{interval.num_units} independent units ({interval.unit})"
    )
    rows = [["class", *_CLASS_SCORES], ["---"] * (1 + len(_CLASS_SCORES))]
    for one in scores.classes[:max_classes]:
        rows.append([one.name.replace("|", "/"), *(figure(getattr(one, key)) for key in _CLASS_SCORES.values())])
    if len(scores.classes) > max_classes:
        rows.append([f"and {len(scores.classes) - max_classes} more, in evaluation.json"])
    heading = (
        f"Mean IoU **{figure(evaluation.mean_iou)}** on {scores.num_planes} planes of the {evaluation.part} part; "
        f"interval: {between}."
    )
    if (objects := evaluation.objects) is not None:
        heading += (
            f" Objects: F1 **{figure(objects.f1['0.5'])}** at an IoU of 0.5, mean AP {figure(objects.mean_ap)}, "
            f"{objects.num_predicted} found of {objects.num_truth} true."
        )
    return "\n".join([heading, "", *(f"| {' | '.join(row)} |" for row in rows)])


def with_section(note: str, heading: str, text: str) -> str:
    """Return a description with the section of a heading written anew, or added at the end."""
    section = f"### {heading}\n\n{text}\n\n"
    earlier = re.compile(rf"^### {re.escape(heading)}$.*?(?=^### |\Z)", re.MULTILINE | re.DOTALL)
    return (earlier.sub(lambda _: section, note) if earlier.search(note) else f"{note}\n\n{section}").strip()


def figure(value: float | None) -> str:
    """Return a score as text; one that is undefined is null."""
    return "null" if value is None else f"{value:.4f}"
