"""One MLflow run per training: parameters, epochs, images, data sets, lineage, description."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.time import get_current_time_millis
from pydantic import BaseModel, ConfigDict

from stackseg.atomic import write_text
from stackseg.dataset.records import Catalog
from stackseg.dataset.splits import Part
from stackseg.errors import DataError, StoreError, one_line
from stackseg.evaluation.plots import draw_curves, overlay_panel
from stackseg.model.bundle import BundleSpec, ParentRecord
from stackseg.model.devices import hardware_name
from stackseg.params import Params
from stackseg.tracking.descriptions import data_section, describe_run, training_section
from stackseg.tracking.keys import MAX_FILE_KEY, accepted_keys
from stackseg.tracking.lineage import GitState, dvc_tags, run_name
from stackseg.tracking.processes import process_tags
from stackseg.training.callbacks import EpochReport, TrainingStart, ValidationPlane
from stackseg.training.checkpoints import remove_checkpoints

RUN_NOTE = "run_id"
# MLflow's limit on a parameter's value
MAX_PARAM = 6000
# of a tag's value that is worth reading
MAX_TAG = 500


class RunRecord(BaseModel):
    """outputs/run.json: which run trained which bundle on which catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    run_id: str
    experiment: str
    bundle_digest: str
    catalog_digest: str


def read_run(path: Path) -> RunRecord:
    """Read outputs/run.json."""
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="`dvc repro train` or `dvc pull`") from None
    except ValueError as error:
        raise DataError(f"not a run record ({one_line(error)})", where=str(path), remedy="train again") from None


class TrainingRun:
    """Callback that logs a training to its run; an interrupted training goes on in the run that it had.

    `images` are logged at each validation: what the network makes of two validation planes.
    """

    def __init__(
        self,
        experiment_id: str,
        params: Params,
        catalog: Catalog,
        data: Path,
        git: GitState,
        tags: Mapping[str, str],
        *,
        images: bool = True,
    ) -> None:
        self._more_tags = tags
        self._images = images
        self._experiment_id = experiment_id
        self._params = params
        self._catalog = catalog
        self._data = data
        self._git = git
        self.run_id = ""

    def on_start(self, start: TrainingStart) -> None:
        """Open the run, or the one that an interrupted training left behind."""
        note = start.checkpoint_folder / RUN_NOTE
        earlier = note.read_text().strip() if note.exists() and start.first_epoch else ""
        if earlier and find_run(earlier) is not None:
            run = mlflow.start_run(run_id=earlier, tags=process_tags(), log_system_metrics=True)
        else:
            run = mlflow.start_run(experiment_id=self._experiment_id, tags=self._tags(start), log_system_metrics=True)
        self.run_id = run.info.run_id
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(self.run_id)
        if self.run_id == earlier:
            mlflow.set_tag("resumed_at_epoch", start.first_epoch)
            logged = {one.step for one in MlflowClient().get_metric_history(earlier, "training/loss")}
            self._log_missed([one for one in start.history if one.epoch not in logged])
            return
        shown = self._params.model_dump(mode="json", exclude={"project", "evaluate", "promotion", "search", "format"})
        values = dict(_flatten(shown))
        keys = accepted_keys(values)  # those of data.partial are names of specimens
        mlflow.log_params(
            {keys[name]: _param(value) for name, value in values.items()}
            | {
                "device": start.device,
                "hardware": hardware_name(torch.device(start.device)),
                "precision": start.precision,
                "num_parameters": start.num_parameters,
            }
        )
        for part in ("training", "validation"):
            mlflow.log_input(dataset_of(self._catalog, self._data, part), context=part)
        mlflow.log_dict(self._catalog.model_dump(mode="json"), "catalog.json")
        if self._git.diff:
            mlflow.log_text(self._git.diff, "lineage/uncommitted.diff")
        describe_run(self.run_id, "Data", data_section(self._catalog, self._git.short, dirty=self._git.dirty))
        self._log_missed(start.history)

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        """Log nothing per step: reading the loss would wait for the device."""

    def on_validation(self, report: EpochReport, planes: Sequence[ValidationPlane]) -> None:
        """Log what the network makes of the planes, under keys that MLflow's page steps through by epoch."""
        display = [one.display for one in self._catalog.classes]
        called = [f"validation/{one.specimen} plane {one.z}" for one in planes]
        keys = accepted_keys(called, flags=re.ASCII, longest=MAX_FILE_KEY)
        for name, one in zip(called, planes if self._images else (), strict=False):
            image_yx3 = overlay_panel(one.image_yxc, one.truth_yx, one.prediction_yx, display)
            # at once, not in the background, where a full disk would pass unseen
            mlflow.log_image(image_yx3, key=keys[name], step=report.epoch, synchronous=True)

    def on_epoch(self, report: EpochReport) -> None:
        """Log one epoch in one request."""
        log_metrics(self.run_id, epoch_metrics(report), step=report.epoch)

    def finish(self, spec: BundleSpec, history: Sequence[EpochReport]) -> RunRecord:
        """Log what is known at the end and close the run."""
        mlflow.set_tags({"bundle_digest": spec.digest, "best_epoch": spec.validation.epoch})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "curves.png"
            draw_curves(path, [one.epoch for one in history], curves(history))
            mlflow.log_artifact(str(path), "pictures")
        describe_run(self.run_id, "Training", training_section(spec, len(history)))
        mlflow.end_run()
        return RunRecord(
            run_id=self.run_id,
            experiment=self._params.project.experiment,
            bundle_digest=spec.digest,
            catalog_digest=spec.lineage.catalog_digest,
        )

    def fail(self, message: str) -> None:
        """Close the run as failed, with the reason, if it was opened."""
        if self.run_id:
            # first of all: if the reason cannot be told, on a full disk, MLflow would end it as FINISHED at exit
            mlflow.end_run(status="FAILED")
            MlflowClient().set_tag(self.run_id, "failure", message[:MAX_TAG])

    def interrupt(self) -> None:
        """Close the run as killed; the same training goes on in it."""
        if self.run_id:
            mlflow.end_run(status="KILLED")

    def _log_missed(self, reports: Sequence[EpochReport]) -> None:
        """Log epochs that an interruption kept from the run, so that its curves are whole."""
        for report in reports:
            self.on_epoch(report)

    def _tags(self, start: TrainingStart) -> dict[str, str]:
        return (
            lineage_tags(self._git)
            | parent_tags(start.parent)
            | {
                "data_md5": self._catalog.data_md5,
                "catalog_digest": self._catalog.digest(),
                "split": self._catalog.split.method,
                "device": start.device,
                MLFLOW_RUN_NAME: run_name(self._params.model, self._git),
                **self._more_tags,
            }
        )


def lineage_tags(git: GitState) -> dict[str, str]:
    """Return commit, dirtiness, DVC's names and the process as tags."""
    tags = dvc_tags() | process_tags()
    if git.commit is not None:
        tags |= {"git.commit": git.commit, "git.dirty": str(git.dirty).lower(), "git.branch": str(git.branch)}
        # MLflow's own page shows these
        tags |= {"mlflow.source.git.commit": git.commit}
    return tags


def parent_tags(parent: ParentRecord | None) -> dict[str, str]:
    """Return as tags the model that a training began with, or none of them."""
    if parent is None:
        return {}
    tags = {"parent.reference": parent.reference, "parent.digest": parent.digest}
    return tags if parent.version is None else tags | {"parent.version": parent.version}


def find_run(run_id: str) -> Any | None:
    """Return an active run of the store, or None where it is not there (any more)."""
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise StoreError(str(error), where="MLflow", remedy="check the tracking store") from None
    return run if run.info.lifecycle_stage == "active" else None


@contextmanager
def reopened(run_id: str) -> Iterator[None]:
    """Make the run of a finished training the active one, and finish it again.

    A kill while it was reopened before says nothing of how its training ended.
    """
    mlflow.start_run(run_id=run_id, tags=process_tags(), log_system_metrics=False)
    try:
        yield
    finally:
        mlflow.end_run()


def dataset_of(catalog: Catalog, data: Path, part: Part) -> MetaDataset:
    """Return the data set of one part, with DVC's md5 as its digest."""
    source = get_dataset_source_from_json(json.dumps({"uri": str(data.resolve())}), source_type="local")
    return MetaDataset(source, name=f"{data.name}-{part}", digest=catalog.data_md5)  # type: ignore[abstract]


def log_metrics(
    run_id: str,
    values: Mapping[str, float | None],
    *,
    step: int = 0,
    model_id: str | None = None,
    dataset: MetaDataset | None = None,
) -> None:
    """Log the values that are there, in one request; null scores stay in scores.json, MLflow refuses them."""
    now = get_current_time_millis()
    # of the null ones as well: a class has one key, whichever classes are scored
    keys = accepted_keys(values)
    metrics = [
        Metric(
            keys[key],
            value,
            now,
            step,
            model_id=model_id,
            dataset_name=dataset.name if dataset else None,
            dataset_digest=dataset.digest if dataset else None,
            run_id=run_id,
        )
        for key, value in values.items()
        if value is not None
    ]
    MlflowClient().log_batch(run_id, metrics=metrics)


def epoch_metrics(report: EpochReport) -> dict[str, float | None]:
    """Return what one epoch tells, under the names that runs are compared by."""
    metrics: dict[str, float | None] = {
        "training/loss": report.loss,
        "training/pixel_accuracy": report.training_pixel_accuracy,
        "training/lr": report.lr,
        "training/patches_per_second": report.patches_per_second,
        "training/seconds": report.seconds,
        "validation/mean_iou": report.validation_mean_iou,
        "validation/pixel_accuracy": report.validation_pixel_accuracy,
    }
    for name, value in (report.validation_iou or {}).items():
        metrics[f"validation/iou/{name}"] = value
    return metrics


def curves(history: Sequence[EpochReport]) -> dict[str, dict[str, list[float | None]]]:
    """Return the panels that show how training went."""
    return {
        "loss on training patches": {"loss": [one.loss for one in history]},
        "mean IoU": {"validation, whole planes": [one.validation_mean_iou for one in history]},
        "pixel accuracy": {
            "training patches": [one.training_pixel_accuracy for one in history],
            "validation, whole planes": [one.validation_pixel_accuracy for one in history],
        },
    }


def remove_checkpoints_of(run_id: str, checkpoints: Path) -> None:
    """Remove the checkpoints of a run whose outputs are recorded; the same training then starts anew.

    They stay while another process trains with them.
    """
    for note in checkpoints.glob(f"*/{RUN_NOTE}"):
        if note.read_text().strip() == run_id:
            remove_checkpoints(note.parent)


def write_run(path: Path, record: RunRecord) -> None:
    """Write outputs/run.json, whole or not at all."""
    write_text(path, record.model_dump_json(indent=2) + "\n")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _param(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 1] + "…"
