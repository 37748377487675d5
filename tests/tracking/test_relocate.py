import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import mlflow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.errors import StoreError
from stackseg.tracking.relocate import ROOT_TAG, find_moved, moved_location, relocate
from stackseg.tracking.store import prepare_store

pytestmark = [
    # MLflow builds its tables with an option that SQLAlchemy is about to drop,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    # warns of its own type hints when pyfunc is imported,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),
    # and finds its own resolver of local data sets twice.
    pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted in multiple ways"),
]

FACE = """
import mlflow
from mlflow.pyfunc import PythonModel


class Face(PythonModel):
    def load_context(self, context):
        with open(context.artifacts["bundle"] + "/weights.txt") as file:
            self.weights = file.read()

    def predict(self, context, model_input: list[str]) -> list[str]:
        return [self.weights for _ in model_input]


mlflow.models.set_model(Face())
"""


@dataclass(frozen=True)
class Recorded:
    """A project with a run and a model, at `kept` now and at `original` when it was recorded."""

    original: Path
    kept: Path
    run_id: str


@pytest.fixture(scope="module")
def recorded(copy_store: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    base = tmp_path_factory.mktemp("moves")
    original = base / "rock & ü project"
    (original / "bundle").mkdir(parents=True)
    (original / "bundle" / "weights.txt").write_text("weights")
    (original / "face.py").write_text(FACE)
    copy_store(original)
    run_id = _record(original)
    kept = Path(shutil.move(original, base / "kept"))
    return Recorded(original=original, kept=kept, run_id=run_id)


def _record(root: Path) -> str:
    """Record a run with all that names folders: artifacts, a data set, a trace, model versions; return its id."""
    ready = prepare_store(root, experiment="rocks")
    with mlflow.start_run(experiment_id=ready.experiment_id) as run:
        mlflow.log_text("a curve", "plots/curve.txt")
        zeros_yx = np.zeros((2, 2))
        mlflow.log_input(mlflow.data.from_numpy(zeros_yx, source=str(root / "data"), name="stack", digest="1"))
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(root / "face.py"),
            artifacts={"bundle": (root / "bundle").as_uri()},
            pip_requirements=["mlflow"],
            registered_model_name="seg",
        )
    client = mlflow.MlflowClient()
    span = client.start_trace("predict", experiment_id=ready.experiment_id)
    client.end_trace(span.trace_id)
    mlflow.flush_trace_async_logging()
    client.create_model_version("seg", source=str(root / "bundle"))
    client.create_experiment("elsewhere", artifact_location="s3://bucket/mlruns/2")
    client.create_experiment("neighbour", artifact_location=f"{root}2/mlruns/3")
    return run.info.run_id


@pytest.fixture
def moved(recorded: Recorded, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded.kept, tmp_path / "new home" / "project"))


def _locations(root: Path) -> dict[str, set[str]]:
    """Return every value of the database that names a folder, by table.column."""
    found: dict[str, set[str]] = {}
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
                rows = connection.execute(f'SELECT "{column}" FROM "{table}"').fetchall()
                values = {value for (value,) in rows if isinstance(value, str) and "/" in value}
                if values:
                    found[f"{table}.{column}"] = values
    return found


def test_a_moved_project_shows_loads_and_records_at_its_new_place(recorded: Recorded, moved: Path) -> None:
    assert find_moved(moved) == str(recorded.original)
    ready = prepare_store(moved, experiment="rocks")
    assert ready.relocated is not None
    assert ready.relocated.old == (str(recorded.original),)
    assert ready.relocated.new == str(moved)
    assert str(moved) in ready.relocated.sentence()

    client = mlflow.MlflowClient()
    assert [file.path for file in client.list_artifacts(recorded.run_id)] == ["plots"]
    path = mlflow.artifacts.download_artifacts(run_id=recorded.run_id, artifact_path="plots/curve.txt")
    assert Path(path).read_text() == "a curve"
    model = mlflow.pyfunc.load_model("models:/seg/1")
    assert model.predict(["a", "b"]) == ["weights", "weights"]
    assert Path(mlflow.artifacts.download_artifacts("models:/seg/2")).joinpath("weights.txt").is_file()

    with mlflow.start_run(experiment_id=ready.experiment_id) as run:
        mlflow.log_text("new", "new.txt")
    assert (moved / "mlruns" / ready.experiment_id / run.info.run_id / "artifacts" / "new.txt").is_file()
    assert not recorded.original.exists()


def test_every_followed_location_is_rewritten_and_no_other(recorded: Recorded, moved: Path) -> None:
    before = _locations(moved)
    spellings = (str(recorded.original), quote(str(recorded.original)), str(recorded.original).replace("ü", "\\u00fc"))
    held = {column for column, values in before.items() if any(old in value for value in values for old in spellings)}
    report = relocate(moved)
    after = _locations(moved)

    rewritten = {column for column, num in report.num_rows.items() if num}
    assert rewritten == {column for column in held if before[column] != after[column]}
    assert {column for column in before if before[column] != after[column]} == rewritten
    assert held >= {
        "experiments.artifact_location",
        "runs.artifact_uri",
        "logged_models.artifact_location",
        "model_versions.storage_location",
        "model_versions.source",
        "trace_tags.value",
        "datasets.dataset_source",
    }
    left = {value for values in after.values() for value in values if any(old in value for old in spellings)}
    assert left == {f"{recorded.original}2/mlruns/3"}
    assert "s3://bucket/mlruns/2" in after["experiments.artifact_location"]


def test_relocating_twice_changes_nothing(recorded: Recorded, moved: Path) -> None:
    relocate(moved)
    once = _locations(moved)
    assert find_moved(moved) is None
    assert relocate(moved).num_rows_total == 0
    assert relocate(moved, str(recorded.original)).num_rows_total == 0
    assert _locations(moved) == once
    assert prepare_store(moved, experiment="rocks").relocated is None


def test_a_copy_does_not_write_into_an_original_that_is_still_there(recorded: Recorded, tmp_path: Path) -> None:
    original = Path(shutil.copytree(recorded.kept, tmp_path / "original"))
    relocate(original)
    copy = Path(shutil.copytree(original, tmp_path / "copy"))
    ready = prepare_store(copy, experiment="rocks")
    assert ready.relocated is not None
    assert ready.relocated.old == (str(original),)
    before = sorted(original.rglob("*"))
    with mlflow.start_run(experiment_id=ready.experiment_id):
        mlflow.log_text("new", "new.txt")
    assert sorted(original.rglob("*")) == before
    assert find_moved(original) is None


def test_rows_of_several_old_folders_are_all_brought_here(recorded: Recorded, moved: Path) -> None:
    older = "/long/gone"
    with closing(sqlite3.connect(moved / "mlflow.db")) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE name = 'elsewhere'", (f"{older}/mlruns/2",)
        )
        connection.execute(
            "INSERT INTO experiment_tags (key, value, experiment_id) "
            "SELECT ?, ?, experiment_id FROM experiments WHERE name = 'elsewhere'",
            (ROOT_TAG, older),
        )
    report = relocate(moved)
    assert set(report.old) == {older, str(recorded.original)}
    assert str(moved / "mlruns" / "2") in _locations(moved)["experiments.artifact_location"]
    assert find_moved(moved) is None


def test_a_failure_half_way_leaves_the_database_as_it_was(moved: Path) -> None:
    with closing(sqlite3.connect(moved / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE datasets SET dataset_source = 'no json'")
    before = _locations(moved)
    with pytest.raises(StoreError):
        relocate(moved)
    assert _locations(moved) == before


def test_only_the_projects_own_database_is_relocated(
    recorded: Recorded, moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared.db"
    shutil.move(moved / "mlflow.db", shared)
    for uri in (f"sqlite:///{shared}", "http://127.0.0.1:9"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert find_moved(moved) is None
        with pytest.raises(StoreError, match="inside the project"):
            relocate(moved)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert find_moved(moved) is None
    with pytest.raises(StoreError, match="absolute"):
        relocate(recorded.kept, "old/project")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)
FOLDERS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: Path("/", *names))


@given(old=FOLDERS, new=FOLDERS, inside=st.lists(NAMES, max_size=3))
@settings(deadline=None, max_examples=60)
def test_paths_and_uris_under_the_old_folder_follow_it(old: Path, new: Path, inside: list[str]) -> None:
    path, expected = old.joinpath(*inside), new.joinpath(*inside)
    if path.is_relative_to(new) and new.is_relative_to(old):
        expected = path
    assert moved_location(str(path), (str(old),), new) == str(expected)
    assert moved_location(path.as_uri(), (str(old),), new) == expected.as_uri()


@given(old=FOLDERS, new=FOLDERS, suffix=NAMES)
@settings(deadline=None, max_examples=60)
def test_neighbours_and_other_stores_stay(old: Path, new: Path, suffix: str) -> None:
    neighbour = old.with_name(old.name + suffix)
    locations = [str(neighbour), neighbour.as_uri(), f"s3:/{old}", f"mlflow-artifacts:{quote(str(old))}", "models:/m-1"]
    for location in locations:
        assert moved_location(location, (str(old),), new) == location
