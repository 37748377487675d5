"""Registering: one version per bundle, however often and by however many, with its scores and where it comes from."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from registry_fixtures import Registry
from stackseg.errors import DataError
from stackseg.evaluation.evaluate import Evaluation, evaluate
from stackseg.model.bundle import BundleSpec, ParentRecord, load_bundle, read_spec
from stackseg.registry.description import scores_markdown
from stackseg.registry.register import Registration, identity, register
from stackseg.registry.versions import read_registered_model
from stackseg.serving.packaging import log_bundle
from stackseg.tracking.processes import close_abandoned_runs
from stackseg.tracking.run_logger import RunRecord, read_run, write_run
from tiny_projects import Project

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@dataclass(frozen=True)
class Outputs:
    """What the stages left, in memory and in a folder."""

    registry: Registry
    project: Project
    spec: BundleSpec
    evaluation: Evaluation
    out: Path
    experiment_id: str

    def register(self, log_model: Callable[[], Any] | None = None) -> Registration:
        return register(
            self.spec,
            self.evaluation,
            self.project.catalog,
            data=self.project.data,
            out=self.out,
            experiment_id=self.experiment_id,
            model_name=self.registry.name,
            lock=self.registry.lock,
            log_model=log_model or self.log_model,
        )

    def log_model(self) -> Any:
        return MlflowClient().create_logged_model(self.experiment_id)


@pytest.fixture(scope="module")
def scored(trained: tuple[Project, Any]) -> tuple[Project, Path, Evaluation]:
    project, _ = trained
    model = project.folder / "model"
    return project, model, evaluate(load_bundle(model), project.catalog, project.data, project.params.evaluate)


@pytest.fixture
def outputs(scored: tuple[Project, Path, Evaluation], registry: Registry, tmp_path: Path) -> Outputs:
    """Return the outputs of a training whose run is in the store."""
    project, model, evaluation = scored
    spec = read_spec(model)
    experiment_id = MlflowClient().get_experiment_by_name("stackseg").experiment_id
    run_id = MlflowClient().create_run(experiment_id).info.run_id
    MlflowClient().set_terminated(run_id)
    record = RunRecord(
        run_id=run_id, experiment="stackseg", bundle_digest=spec.digest, catalog_digest=project.catalog.digest()
    )
    write_run(tmp_path / "run.json", record)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "iou.png").write_bytes(b"a picture")
    return Outputs(registry, project, spec, evaluation, tmp_path, experiment_id)


def versions(outputs: Outputs) -> dict[str, Any]:
    return read_registered_model(outputs.registry.name).versions


def test_a_version_has_scores_lineage_and_a_description_and_is_made_once(outputs: Outputs) -> None:
    done = outputs.register()
    assert (done.created, done.version, done.run_id) == (True, "1", done.trained_by)
    known = read_registered_model(outputs.registry.name)
    assert known.aliases == {"challenger": "1"}
    version = known.versions["1"]
    assert identity(outputs.spec).items() <= version.tags.items()
    assert version.tags["mean_iou"] == f"{outputs.evaluation.mean_iou:.4f}"
    assert version.description == (
        scores_markdown(outputs.spec, outputs.evaluation, outputs.project.catalog)
        + "\n\n### Promotion\n\n- Not the champion so far"
    )
    assert "None yet: `stackseg promote`" in known.description
    # MLflow's artifact has the name and the content of the file on the disk
    logged = mlflow.artifacts.load_dict(f"runs:/{done.run_id}/evaluation.json")
    assert logged == json.loads(outputs.evaluation.model_dump_json())
    listed = [one.path for one in MlflowClient().list_artifacts(done.run_id, "pictures")]
    assert listed == ["pictures/iou.png"]
    assert MlflowClient().get_run(done.run_id).data.metrics["test/mean_iou"] == outputs.evaluation.mean_iou

    MlflowClient().update_model_version(outputs.registry.name, "1", "")  # as an older release left it
    again = outputs.register()
    assert (again.created, again.version) == (False, "1")
    assert versions(outputs)["1"].description == version.description
    assert versions(outputs)["1"].tags["run_ids"] == done.run_id


def test_names_that_mlflow_refuses_as_keys_stay_apart_in_tags_metrics_and_pictures(outputs: Outputs) -> None:
    names = ("haematite (Fe2O3)", "haematite [Fe2O3]", "../100 %")
    classes = [
        one.model_copy(update={"name": name, "iou": 0.25 * place, "absent": False})
        for place, (one, name) in enumerate(zip(outputs.evaluation.scores.classes, names, strict=True), start=1)
    ]
    scores = outputs.evaluation.scores.model_copy(update={"classes": tuple(classes)})
    for name in ("worst_1_a#b%c?_3.png", "worst_2_ä [1]_4.png"):
        (outputs.out / "plots" / name).write_bytes(b"a picture")
    done = replace(outputs, evaluation=outputs.evaluation.model_copy(update={"scores": scores})).register()
    tags = versions(outputs)[done.version].tags
    assert sorted(tags[key] for key in tags if key.startswith("iou.")) == ["0.2500", "0.5000", "0.7500"]
    metrics = MlflowClient().get_run(done.run_id).data.metrics
    assert sorted(metrics[key] for key in metrics if key.startswith("test/iou/")) == [0.25, 0.5, 0.75]
    logged = mlflow.artifacts.load_dict(f"runs:/{done.run_id}/evaluation.json")
    assert tuple(one["name"] for one in logged["scores"]["classes"]) == names
    listed = [one.path for one in MlflowClient().list_artifacts(done.run_id, "pictures")]
    assert listed == ["pictures/iou.png", "pictures/worst_1_a_b_c__3.png", "pictures/worst_2__ _1__4.png"]


def test_many_at_once_make_one_version(outputs: Outputs) -> None:
    start = threading.Barrier(6)
    done: list[Registration] = []

    def go() -> None:
        start.wait()
        done.append(outputs.register())

    threads = [threading.Thread(target=go) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [one.version for one in done] == ["1"] * 6
    assert sorted(one.created for one in done) == [False] * 5 + [True]
    assert list(versions(outputs)) == ["1"]
    assert MlflowClient().get_run(done[0].run_id).info.status == "FINISHED"


def test_of_two_machines_the_older_version_is_kept(outputs: Outputs) -> None:
    def overtaken() -> Any:
        # another machine, whose lock is not ours, registers the bundle meanwhile
        other = outputs.log_model()
        outputs.registry.add_version(f"models:/{other.model_id}", tags=identity(outputs.spec) | {"run_ids": "theirs"})
        return outputs.log_model()

    done = outputs.register(overtaken)
    assert (done.created, done.version) == (False, "1")
    assert list(versions(outputs)) == ["1"]
    assert versions(outputs)["1"].tags["run_ids"] == f"theirs,{done.run_id}"


KILLED = """
import os, signal, sys
from pathlib import Path
import mlflow
from stackseg.registry import register
from stackseg.serving import packaging
from stackseg.model.bundle import read_spec
from stackseg.tracking.run_logger import reopened
from stackseg.tracking.store import open_store_to_read
open_store_to_read(Path.cwd())
mlflow.MlflowClient.log_model_artifacts = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
model = Path(sys.argv[1])
with reopened(sys.argv[2]):
    packaging.log_bundle(model, read_spec(model))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_a_model_that_a_kill_left_unfinished_is_removed_by_the_next(outputs: Outputs) -> None:
    run_id = read_run(outputs.out / "run.json").run_id
    command = [sys.executable, "-c", KILLED, str(outputs.project.folder / "model"), run_id]
    killed = subprocess.run(command, cwd=outputs.registry.root, check=False)
    assert killed.returncode == -signal.SIGKILL

    def models_of_run() -> list[Any]:
        found = mlflow.search_logged_models([outputs.experiment_id], output_format="list")
        return [one for one in found if one.source_run_id == run_id]

    (left,) = models_of_run()
    assert left.status == "PENDING"
    assert close_abandoned_runs(outputs.experiment_id) == [run_id]  # as each verb that writes does
    outputs.register(lambda: log_bundle(outputs.project.folder / "model", outputs.spec))
    (kept,) = models_of_run()
    assert (kept.model_id == left.model_id, kept.status) == (False, "READY")
    assert MlflowClient().get_run(run_id).info.status == "FINISHED"


def test_a_run_that_the_store_does_not_know_is_opened_once(outputs: Outputs) -> None:
    MlflowClient().delete_run(outputs.register().run_id)
    first, second = outputs.register(), outputs.register()
    assert first.run_id == second.run_id != first.trained_by
    assert MlflowClient().get_run(first.run_id).data.tags["restored_from"] == first.trained_by


def test_outputs_of_different_runs_are_refused(outputs: Outputs) -> None:
    other = replace(outputs, evaluation=outputs.evaluation.model_copy(update={"bundle_digest": "0" * 64}))
    with pytest.raises(DataError, match=r"^evaluation\.json: digest 000000000000; .*`dvc repro` brings them together"):
        other.register()
    shutil.rmtree(outputs.out / "plots")
    (outputs.out / "run.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        outputs.register()
    assert versions(outputs) == {}


def test_a_version_tells_the_model_that_its_training_began_with(outputs: Outputs) -> None:
    parent = ParentRecord(reference="models:/rock@champion", version="3", digest="ab" * 32)
    lineage = outputs.spec.lineage.model_copy(update={"parent": parent})
    child = replace(outputs, spec=outputs.spec.model_copy(update={"lineage": lineage}))
    child.register()
    version = versions(child)["1"]
    assert {key: value for key, value in version.tags.items() if key.startswith("parent.")} == {
        "parent.reference": "models:/rock@champion",
        "parent.version": "3",
        "parent.digest": "ab" * 32,
    }
    line = f"- Began with the weights of `models:/rock@champion (version 3)`, bundle `{'ab' * 32}`"
    assert line in version.description.splitlines()


def test_the_description_tells_scores_interval_split_leakage_data_commit_and_digest(outputs: Outputs) -> None:
    spec, evaluation, catalog = outputs.spec, outputs.evaluation, outputs.project.catalog
    text = scores_markdown(spec, evaluation, catalog)
    lines = text.splitlines()
    assert lines[0].startswith(f"Mean IoU **{evaluation.mean_iou:.4f}** on {evaluation.scores.num_planes} planes of ")
    assert str(evaluation.mean_iou_interval.reason) in lines[0]  # one block of planes has no interval
    one = evaluation.scores.classes[1]
    assert any(line.startswith(f"| grain | {one.iou:.4f} | {one.dice:.4f} | ") for line in lines)
    assert f"- Split: blocks; planes: {len(catalog.planes('training'))} training, " in text
    assert "- Leakage: " in text
    assert f"md5 `{spec.lineage.data_md5}`" in text
    assert f"- Bundle: `{spec.digest}`" in lines

    interval = evaluation.mean_iou_interval.model_copy(
        update={"low": 0.81, "high": 0.93, "num_units": 12, "unit": "plane", "reason": None}
    )
    more = [one.model_copy(update={"name": f"class|{number}"}) for number in range(60)]
    many = evaluation.model_copy(
        update={
            "mean_iou_interval": interval,
            "scores": evaluation.scores.model_copy(update={"classes": tuple(more)}),
        }
    )
    lineage = spec.lineage.model_copy(update={"git_commit": "e248b2ecc", "git_dirty": True})
    leaking = catalog.model_copy(update={"leakage": catalog.leakage.model_copy(update={"leaks": True})})
    text = scores_markdown(spec.model_copy(update={"lineage": lineage}), many, leaking)
    assert "interval: 0.8100 to 0.9300 at 95%, 12 independent units (plane)." in text
    assert "commit `e248b2ecc`, with the changes in lineage/uncommitted.diff" in text
    assert "**held-out planes resemble training planes**" in text
    assert len(text) < 4000
    assert "and 35 more, in evaluation.json" in text
