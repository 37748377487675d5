import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.request import urlopen

import mlflow
import pytest
import sqlalchemy
from filelock import FileLock

from stackseg.errors import StoreError
from stackseg.tracking import store as store_module
from stackseg.tracking.relocate import ROOT_TAG
from stackseg.tracking.store import KIND, KIND_TAG, prepare_store, project_root, store_errors, tracking_uri
from stackseg.tracking.uri import PROJECT_MARKERS, database_file

LOGGING_PROCESS = """
import sys
from pathlib import Path
from stackseg.tracking.store import prepare_store
ready = prepare_store(Path(sys.argv[1]), experiment="rocks")
import mlflow
with mlflow.start_run(experiment_id=ready.experiment_id):
    for step in range(20):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    mlflow.log_text("text", "note.txt")
"""


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copied"))


def _make_project(root: Path) -> Path:
    root.mkdir(parents=True)
    for name in PROJECT_MARKERS:
        (root / name).touch()
    return root


def _execute(database: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(statement).fetchall()


class TestProjectRoot:
    def test_nearest_folder_upwards(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        outer = _make_project(tmp_path / "outer")
        inner = _make_project(outer / "inner")
        deep = inner / "data" / "rock"
        deep.mkdir(parents=True)
        monkeypatch.chdir(deep)
        assert project_root() == inner
        assert project_root(outer) == outer

    def test_none_is_an_error_with_a_remedy(self, tmp_path: Path) -> None:
        (tmp_path / "params.yaml").touch()
        with pytest.raises(StoreError, match=r"params.yaml and dvc.yaml.*Go to the project"):
            project_root(tmp_path)

    @pytest.mark.parametrize("below", ["", "projects/rock"])
    def test_a_temporary_workspace_belongs_to_the_real_project(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
    ) -> None:
        repository = tmp_path / "repository"
        workspace = repository / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
        (workspace / ".dvc").mkdir(parents=True)
        real = repository / below
        for name in PROJECT_MARKERS:
            for folder in (real, workspace / below):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
        monkeypatch.setenv("DVC_ROOT", str(repository))
        assert project_root(workspace / below) == real
        assert project_root(real) == real

    def test_the_root_of_another_dvc_project_is_not_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = _make_project(tmp_path / "ours")
        monkeypatch.setenv("DVC_ROOT", str(_make_project(tmp_path / "theirs")))
        assert project_root(ours) == ours


class TestTrackingUri:
    def test_default_is_what_bare_mlflow_opens_at_the_root(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert tracking_uri(tmp_path) == mlflow.get_tracking_uri()

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("sqlite:///mlflow.db", "sqlite:////project/mlflow.db"),
            ("sqlite:///runs/m.db?timeout=9", "sqlite:////project/runs/m.db?timeout=9"),
            ("sqlite:////elsewhere/m.db", "sqlite:////elsewhere/m.db"),
            ("./mlruns", "file:///project/mlruns"),
            ("file:mlruns", "file:///project/mlruns"),
            ("file:///elsewhere/mlruns", "file:///elsewhere/mlruns"),
            ("http://server:5000", "http://server:5000"),
            ("postgresql://me:secret@server/runs", "postgresql://me:secret@server/runs"),
            ("databricks", "databricks"),
        ],
    )
    def test_relative_paths_count_from_the_root(
        self, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert tracking_uri(Path("/project")) == expected

    @pytest.mark.parametrize("name", ["plain", "two words", "ü", "a#b", "100%25", "what?"])
    def test_the_database_lies_in_any_root(self, tmp_path: Path, name: str) -> None:
        from sqlalchemy import make_url

        uri = tracking_uri(tmp_path / name)
        assert database_file(uri) == tmp_path / name / "mlflow.db"
        assert make_url(uri).database == str(tmp_path / name / "mlflow.db")

    @pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
    def test_a_database_in_memory_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(StoreError, match="in memory"):
            tracking_uri(tmp_path)


class TestDatabase:
    def test_created_whole_in_wal_mode_with_artifacts_at_the_root(self, prepared: Path, tmp_path: Path) -> None:
        ready = prepare_store(prepared, experiment="rocks")
        assert ready.relocated is None
        assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == ready.uri == tracking_uri(prepared)
        assert _execute(prepared / "mlflow.db", "PRAGMA journal_mode") == [("wal",)]
        experiments = mlflow.search_experiments()
        assert {found.artifact_location for found in experiments} == {
            (prepared / "mlruns" / found.experiment_id).as_uri() for found in experiments
        }
        leftovers = [path.name for path in prepared.iterdir() if path.name not in ("mlflow.db", "mlruns")]
        assert all(name.startswith("mlflow.db-") or name == "mlflow.db.lock" for name in leftovers)
        assert [path.name for path in prepared.parent.iterdir()] == [prepared.name]

    def test_artifacts_land_there_and_bare_mlflow_stays_with_the_database(
        self, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        ready = prepare_store(prepared, experiment="rocks")
        with mlflow.start_run(experiment_id=ready.experiment_id) as run:
            mlflow.log_text("text", "note.txt")
        assert (prepared / "mlruns" / ready.experiment_id / run.info.run_id / "artifacts" / "note.txt").is_file()
        assert list(tmp_path.iterdir()) == []
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        monkeypatch.chdir(prepared)
        assert mlflow.get_tracking_uri().startswith("sqlite:")
        assert mlflow.get_run(run.info.run_id).info.run_id == run.info.run_id

    def test_a_ready_store_waits_for_no_lock(self, prepared: Path) -> None:
        first = prepare_store(prepared, experiment="rocks")
        with FileLock(prepared / "mlflow.db.lock"):
            assert prepare_store(prepared, experiment="rocks") == first

    def test_a_new_experiment_gets_its_own_id(self, prepared: Path) -> None:
        first = prepare_store(prepared, experiment="rocks")
        second = prepare_store(prepared, experiment="other rocks")
        assert first.experiment_id != second.experiment_id
        assert mlflow.get_experiment_by_name("other rocks").experiment_id == second.experiment_id

    def test_an_experiment_says_what_it_is(self, prepared: Path) -> None:
        tags = mlflow.get_experiment(prepare_store(prepared, experiment="rocks").experiment_id).tags
        assert tags["mlflow.experimentKind"] == "custom_model_development"
        assert "Segmentation models" in tags["mlflow.note.content"]

    def test_what_a_person_wrote_about_an_experiment_stays(self, prepared: Path) -> None:
        experiment_id = prepare_store(prepared, experiment="described").experiment_id
        client = mlflow.MlflowClient()
        own = {"mlflow.experimentKind": "regression", "mlflow.note.content": "my own words"}
        for key, value in own.items():
            client.set_experiment_tag(experiment_id, key, value)
        prepare_store(prepared, experiment="described")
        assert own.items() <= client.get_experiment(experiment_id).tags.items()

    def test_a_deleted_experiment_is_named_with_its_remedy(self, prepared: Path) -> None:
        gone = prepare_store(prepared, experiment="gone").experiment_id
        mlflow.delete_experiment(gone)
        with pytest.raises(StoreError, match=f"mlflow experiments restore --experiment-id {gone}.*project.experiment"):
            prepare_store(prepared, experiment="gone")

    def test_an_experiment_with_artifacts_in_a_server_is_refused(self, prepared: Path) -> None:
        prepare_store(prepared, experiment="rocks")
        mlflow.create_experiment("served", artifact_location="mlflow-artifacts:/7")
        with pytest.raises(StoreError, match="MLflow server"):
            prepare_store(prepared, experiment="served")

    def test_a_database_made_by_bare_mlflow_is_adopted(self, copied: Path) -> None:
        database = copied / "mlflow.db"
        _execute(database, "DELETE FROM experiment_tags")
        _execute(database, "PRAGMA journal_mode = delete")
        ready = prepare_store(copied, experiment="rocks")
        assert ready.relocated is None
        assert _execute(database, "PRAGMA journal_mode") == [("wal",)]
        experiment = mlflow.get_experiment(ready.experiment_id)
        assert (experiment.tags[ROOT_TAG], experiment.tags[KIND_TAG]) == (str(copied), KIND)


class TestBrokenStores:
    def test_text_truncated_and_spoilt_files(self, copied: Path) -> None:
        database = copied / "mlflow.db"
        content = database.read_bytes()
        spoilt = content.replace(b"artifact_location", b"artifact_loc\xaation")
        for broken in (b"not a database, but text\n" * 9, content[: len(content) // 2], spoilt):
            database.write_bytes(broken)
            with pytest.raises(StoreError, match="backup") as caught:
                prepare_store(copied, experiment="rocks")
            assert str(database) in str(caught.value)
            assert "\n" not in str(caught.value)
            assert database.read_bytes() == broken

    def test_another_schema(self, copied: Path) -> None:
        _execute(copied / "mlflow.db", "UPDATE alembic_version SET version_num = 'acf3f17fdcc7'")
        with pytest.raises(StoreError, match=r"mlflow db upgrade sqlite:///.*/copied/mlflow\.db"):
            prepare_store(copied, experiment="rocks")

    def test_a_missing_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/moved away/mlflow.db")
        with pytest.raises(StoreError, match="unset MLFLOW_TRACKING_URI"):
            prepare_store(tmp_path, experiment="rocks")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(StoreError, match="write permission"):
            prepare_store(tmp_path, experiment="rocks")

    def test_what_a_full_disk_or_a_killed_process_left_does_no_harm(self, prepared: Path, tmp_path: Path) -> None:
        with _file_size_limit(20_000), pytest.raises(StoreError, match="disk"):
            prepare_store(tmp_path, experiment="rocks")
        assert [path.name for path in tmp_path.iterdir() if path.name != "mlflow.db.lock"] == []
        # it was made over an empty file and half of another
        assert list(prepared.glob("mlflow.db.new*")) == []
        assert _execute(prepared / "mlflow.db", "PRAGMA integrity_check") == [("ok",)]

    def test_the_old_file_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        remains = tmp_path / "mlruns" / "0" / "meta.yaml"
        remains.parent.mkdir(parents=True)
        remains.touch()
        with pytest.raises(StoreError, match=r"Move .*mlruns aside"):
            prepare_store(tmp_path, experiment="rocks")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
        with pytest.raises(StoreError, match="old file store"):
            prepare_store(tmp_path, experiment="rocks")

    @pytest.mark.parametrize("scheme", ["http", "postgresql"])
    def test_a_server_that_refuses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://me:secret@127.0.0.1:{port}")
        with pytest.raises(StoreError, match=f"127.0.0.1:{port}: .*ConnectionRefusedError") as caught:
            prepare_store(tmp_path, experiment="rocks")
        assert "secret" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_a_server_that_never_answers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "REACH_TIMEOUT_S", 0.3)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
            with pytest.raises(StoreError, match="does not answer"):
                prepare_store(tmp_path, experiment="rocks")

    def test_errors_of_ours_and_of_others_pass_unchanged(self) -> None:
        with pytest.raises(StoreError, match=r"^mine$"), store_errors("store"):
            raise StoreError("mine")
        with pytest.raises(KeyError), store_errors("store"):
            raise KeyError("a mistake in the program")

    def test_all_that_mlflow_says_is_on_the_line_but_no_statement(self, tmp_path: Path) -> None:
        folder = tmp_path / "outputs" / "model"
        folder.mkdir(parents=True)
        (tmp_path / "cached").touch()
        (folder / "link").symlink_to(tmp_path / "cached")
        with pytest.raises(StoreError) as caught, store_errors("store"):
            mlflow.artifacts.download_artifacts(folder.as_uri(), dst_path=str(tmp_path))
        assert "one or more artifacts" in caught.value.found
        assert caught.value.sentence().endswith("resolved path is outside the artifact directory")
        connection = sqlalchemy.create_engine("sqlite://").connect()
        with connection, pytest.raises(StoreError) as caught, store_errors("store"):
            connection.execute(sqlalchemy.text("select 1 from absent"))
        assert caught.value.found == "the tracking store failed: no such table: absent"


@contextmanager
def _file_size_limit(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_four_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOGGING_PROCESS, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, complaints = process.communicate(timeout=300)
        assert process.returncode == 0, complaints
    ready = prepare_store(tmp_path, experiment="rocks")
    client = mlflow.MlflowClient()
    runs = client.search_runs([ready.experiment_id])
    assert len(runs) == 4
    for run in runs:
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == list(range(20))
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]


@contextmanager
def _server(folder: Path, *options: str) -> Iterator[str]:
    """Run `mlflow server` in `folder` and yield its address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *options]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log_file = folder / "server.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log_file.read_text()
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.5)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.mark.slow
def test_a_bare_server_at_the_root_shows_runs_and_artifacts(tmp_path: Path) -> None:
    ready = prepare_store(tmp_path, experiment="rocks")
    with mlflow.start_run(experiment_id=ready.experiment_id):
        mlflow.log_text("text", "note.txt")
    with _server(tmp_path) as address:
        client = mlflow.MlflowClient(tracking_uri=address)
        (run,) = client.search_runs([client.get_experiment_by_name("rocks").experiment_id])
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]


@pytest.mark.slow
def test_a_server_is_used_without_a_file_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, root = tmp_path / "served", tmp_path / "root"
    served.mkdir()
    root.mkdir()
    with _server(served) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        first = prepare_store(root, experiment="rocks")
        assert first == prepare_store(root, experiment="rocks")
        assert first.uri == address
        with mlflow.start_run(experiment_id=first.experiment_id):
            mlflow.log_text("text", "note.txt")
        mlflow.delete_experiment(first.experiment_id)
        with pytest.raises(StoreError, match="was deleted"):
            prepare_store(root, experiment="rocks")
    assert list(root.iterdir()) == []
