"""Where studies are kept: addresses, tables made once, and errors that say what to do."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from databases import free_port
from stackseg.errors import ParamsError, StoreError
from stackseg.params import Params
from stackseg.search import storage as storage_module
from stackseg.search.storage import has_heartbeat, open_storage, require_own_storage, storage_url
from stackseg.search.storage_errors import storage_errors
from stackseg.search.study import fail_stale_trials

needs_psycopg = pytest.mark.skipif(
    importlib.util.find_spec("psycopg") is None, reason="psycopg is not installed (the postgresql extra)"
)
# whether it is installed or not
WITHOUT_GRPC = """
import sys
from pathlib import Path

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "grpc":
            raise ModuleNotFoundError("No module named 'grpc'", name="grpc")

sys.meta_path.insert(0, Missing())
from stackseg.errors import StoreError
from stackseg.search.storage import open_storage

try:
    open_storage("grpc://127.0.0.1:13000", heartbeat=1, on_stale=print)
except StoreError as error:
    print(error)
"""
Take = Callable[[optuna.Study, list[int]], None]
NUM_TAKEN = 8
needs_grpc = pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="grpc is not installed")


def opened(root: Path, given: str | None = None) -> BaseStorage:
    return open_storage(storage_url(root, given), heartbeat=1, on_stale=lambda *_: None)


def refused(root: Path, given: str | None = None) -> str:
    """Return the one line with which an address is refused, which has a remedy."""
    with pytest.raises(StoreError) as caught:
        opened(root, given)
    told = str(caught.value)
    assert "\n" not in told
    assert caught.value.remedy
    assert told.startswith(caught.value.where + ": ")
    return told


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a database without studies."""
    folder = tmp_path_factory.mktemp("whole")
    opened(folder)
    with closing(sqlite3.connect(folder / "optuna.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return (folder / "optuna.db").read_bytes()


def take_waiting(study: optuna.Study, found: list[int]) -> None:
    """Note the trial that waited, if it was had."""
    number = study.ask().number
    if number == 0:
        found.append(number)


def take_stale(study: optuna.Study, found: list[int]) -> None:
    """Have what is stale noted, as it would be made once more."""
    fail_stale_trials(study)


def take_at_once(root: Path, what: Take, together: threading.Barrier) -> list[list[int]]:
    taken: list[list[int]] = []
    url = storage_url(root, None)
    storage = open_storage(url, heartbeat=1, on_stale=lambda _, trial: taken[-1].append(trial.number))
    for place in range(NUM_TAKEN):
        study = optuna.load_study(study_name=f"study {place}", storage=storage)
        taken.append([])
        together.wait(60)
        what(study, taken[-1])
    return taken


class TestAddresses:
    @pytest.mark.parametrize(
        ("given", "url"),
        [
            (None, "sqlite:////p/optuna.db"),
            ("sqlite:///studies.db", "sqlite:////p/studies.db"),
            ("sqlite:///deep/er.db", "sqlite:////p/deep/er.db"),
            ("sqlite:////elsewhere/studies.db", "sqlite:////elsewhere/studies.db"),
            ("sqlite+pysqlite:///studies.db", "sqlite+pysqlite:////p/studies.db"),
            ("grpc://node7:13000", "grpc://node7:13000"),
            ("postgresql://me@node7/studies", "postgresql+psycopg://me@node7/studies"),
            ("postgresql+psycopg://me@node7/studies", "postgresql+psycopg://me@node7/studies"),
        ],
    )
    def test_paths_count_from_the_project(self, given: str | None, url: str) -> None:
        assert storage_url(Path("/p"), given) == url

    @pytest.mark.parametrize(
        "given", ["optuna.db", "studies", "sqlite.db", "/tmp/optuna.db", "", "journal:studies.log"]
    )
    def test_what_is_no_address_is_refused(self, given: str) -> None:
        with pytest.raises(StoreError, match=r"^--storage: .*is no address; expected sqlite:///optuna.db, postgresql:"):
            storage_url(Path("/p"), given)

    @pytest.mark.parametrize("given", ["postgresql://me:pa?zle@h:no/db", "postgresql://me:12?zle@h:no/db?x=a@b"])
    def test_no_password_is_told(self, given: str) -> None:
        with pytest.raises(StoreError, match=r"^--storage: postgresql://h:no/db is no address") as caught:
            storage_url(Path("/p"), given)
        assert "zle" not in str(caught.value)

    def test_a_folder_of_an_odd_name(self, tmp_path: Path) -> None:
        odd = tmp_path / "50% of what? é"
        odd.mkdir()
        opened(odd)
        assert {"optuna.db"} <= {one.name for one in odd.iterdir()}
        assert list(tmp_path.iterdir()) == [odd]


class TestSqlite:
    def test_it_is_made_once_in_wal_mode_and_found_again(self, tmp_path: Path) -> None:
        study = optuna.create_study(storage=opened(tmp_path), study_name="a")
        study.enqueue_trial({"x": 1.0})
        again = opened(tmp_path)
        assert isinstance(again, RDBStorage)
        assert has_heartbeat(again)
        assert again.get_heartbeat_interval() == 1
        (trial,) = optuna.load_study(study_name="a", storage=again).trials
        assert trial.state == TrialState.WAITING
        require_whole(tmp_path / "optuna.db", ["a"])

    @pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    def test_several_at_once_make_one_whole_database(self, tmp_path: Path) -> None:
        together = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda place: begin_at_once(tmp_path, place, together), range(4)))
        require_whole(tmp_path / "optuna.db", ["study 0", "study 1", "study 2", "study 3"])

    @pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    @pytest.mark.filterwarnings("ignore:Heartbeat of storage")
    @pytest.mark.parametrize("what", [take_waiting, take_stale])
    def test_two_workers_never_take_the_same_trial(self, tmp_path: Path, what: Take) -> None:
        storage = opened(tmp_path)
        for place in range(NUM_TAKEN):
            study = optuna.create_study(storage=storage, study_name=f"study {place}")
            if what is take_waiting:
                study.enqueue_trial({"x": 1.0})
            else:
                storage.record_heartbeat(storage.create_new_trial(study._study_id))  # type: ignore[attr-defined]
        if what is take_stale:
            with closing(sqlite3.connect(tmp_path / "optuna.db")) as connection, connection:
                connection.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
        together = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            ours, theirs = pool.map(lambda _: take_at_once(tmp_path, what, together), range(2))
        assert [len(a) + len(b) for a, b in zip(ours, theirs, strict=True)] == [1] * NUM_TAKEN

    def test_an_empty_file_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "optuna.db").touch()
        opened(tmp_path)
        require_whole(tmp_path / "optuna.db", [])

    @pytest.mark.parametrize("kept", [0, 100, 8192])
    def test_a_damaged_file(self, tmp_path: Path, whole: bytes, kept: int) -> None:
        (tmp_path / "optuna.db").write_bytes(whole[:kept] + b"no database " * (len(whole) // 12))
        told = refused(tmp_path)
        assert told.startswith(f"sqlite:///{tmp_path / 'optuna.db'}: the study storage failed: ")
        assert "Put a backup in its place, or move it aside" in told

    def test_half_a_file(self, tmp_path: Path, whole: bytes) -> None:
        (tmp_path / "optuna.db").write_bytes(whole[: len(whole) // 2])
        assert "Put a backup in its place, or move it aside" in refused(tmp_path)

    def test_a_file_that_somebody_else_writes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage_module, "BUSY_TIMEOUT_S", 0.2)
        with closing(sqlite3.connect(tmp_path / "optuna.db")) as connection:
            connection.execute("CREATE TABLE one (two)")
            connection.execute("BEGIN EXCLUSIVE")
            assert "database is locked. Wait for the other processes that use it" in refused(tmp_path)

    def test_a_database_of_another_program(self, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num)")
            connection.execute("CREATE TABLE runs (run)")
        told = refused(tmp_path, "sqlite:///mlflow.db")
        assert "the database of another program, with a table alembic_version; expected a database for" in told
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        assert names == {"alembic_version", "runs"}

    def test_tables_of_another_optuna(self, tmp_path: Path, whole: bytes) -> None:
        (tmp_path / "optuna.db").write_bytes(whole)
        with closing(sqlite3.connect(tmp_path / "optuna.db")) as connection:
            connection.execute("UPDATE version_info SET schema_version = 1")
            connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
            connection.commit()
        assert "tables of another version of Optuna; expected those of " in refused(tmp_path)

    @pytest.mark.parametrize("address", ["grpc://node7:99999", "grpc://node7:port", "postgresql://node7:99999/a"])
    def test_a_port_that_is_none(self, tmp_path: Path, address: str) -> None:
        with pytest.raises(StoreError, match=r"--storage: .* is no address; expected sqlite:///optuna\.db"):
            opened(tmp_path, address)

    def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "optuna.db").mkdir()
        told = refused(tmp_path)
        assert (
            told == f"{tmp_path / 'optuna.db'}: a folder; expected a file. Move it aside, or name a file by --storage"
        )

    def test_no_folder(self, tmp_path: Path) -> None:
        told = refused(tmp_path, "sqlite:///none/optuna.db")
        assert told == f"{tmp_path / 'none'}: no such folder. Make it, or correct --storage"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_is_not_ones_own(self, tmp_path: Path) -> None:
        (tmp_path / "theirs").mkdir(mode=0o500)
        assert "cannot be written. Give yourself write permission" in refused(tmp_path, "sqlite:///theirs/optuna.db")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_file_that_is_not_ones_own(self, tmp_path: Path, whole: bytes) -> None:
        (tmp_path / "optuna.db").write_bytes(whole)
        (tmp_path / "optuna.db").chmod(0o400)
        with pytest.raises(StoreError, match="Give yourself write permission there"), storage_errors("here"):
            optuna.create_study(storage=opened(tmp_path))


class TestNetworks:
    """sqlite loses trials on network file systems."""

    @pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "9p", "NFS"])
    def test_one_of_the_folder_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        mounted(monkeypatch, {Path("/"): "ext4", tmp_path: kind, tmp_path.with_name("other"): "ext4"})
        told = refused(tmp_path)
        assert told.startswith(f"{tmp_path}: a network file system ({kind}), on which sqlite loses trials")
        assert told.endswith("Name a server: --storage postgresql://…, or grpc://… in front of one machine's database")
        assert list(tmp_path.iterdir()) == []

    def test_one_elsewhere_is_not(self, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        inside = tmp_path / "local"
        inside.mkdir()
        (inside / "optuna.db").write_bytes(whole)
        longer = tmp_path.with_name(f"{tmp_path.name}-longer")
        mounted(monkeypatch, {Path("/"): "ext4", tmp_path: "nfs4", inside: "xfs", longer: "nfs4"})
        opened(inside)

    def test_links_are_followed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "far").mkdir()
        (tmp_path / "near").symlink_to(tmp_path / "far", target_is_directory=True)
        mounted(monkeypatch, {Path("/"): "ext4", tmp_path / "far": "nfs4"})
        assert "a network file system (nfs4)" in refused(tmp_path / "near")

    def test_a_database_that_is_a_link_is_followed(
        self, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "far").mkdir()
        (tmp_path / "far" / "optuna.db").write_bytes(whole)
        (tmp_path / "near").mkdir()
        (tmp_path / "near" / "optuna.db").symlink_to(tmp_path / "far" / "optuna.db")
        mounted(monkeypatch, {Path("/"): "ext4", tmp_path / "far": "nfs4"})
        assert "a network file system (nfs4)" in refused(tmp_path / "near")

    @pytest.mark.parametrize(("first", "then", "refuses"), [("autofs", "nfs4", True), ("nfs4", "ext4", False)])
    def test_of_two_at_one_place_the_upper_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str, refuses: bool
    ) -> None:
        mounted(monkeypatch, [(Path("/"), "ext4"), (tmp_path, first), (tmp_path, then)])
        if refuses:
            assert f"a network file system ({then})" in refused(tmp_path)
        else:
            opened(tmp_path)


@pytest.mark.parametrize("name", ["a{", "{SCHEMA_VERSION}"])
def test_braces_in_a_path_are_no_blanks_to_be_filled(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    study = optuna.create_study(storage=opened(tmp_path / name), study_name="a")
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/{name.replace('{', '{{').replace('}', '}}')}/optuna.db")
    assert study.study_name == "a"


class TestOthers:
    @needs_psycopg
    def test_a_server_that_does_not_answer(self, tmp_path: Path) -> None:
        port = free_port()
        told = refused(tmp_path, f"postgresql://me:s3cret@127.0.0.1:{port}/studies")
        assert told.startswith(f"postgresql+psycopg://127.0.0.1:{port}/studies: the study storage failed: connection")
        assert told.endswith(". Start the server, or correct --storage")

    @pytest.mark.slow  # Optuna waits ten seconds
    @needs_grpc
    def test_a_proxy_that_does_not_answer(self, tmp_path: Path) -> None:
        told = refused(tmp_path, f"grpc://127.0.0.1:{free_port()}")
        assert "nobody answered within 10 s" in told
        assert told.endswith(". Start the server, or correct --storage")

    def test_without_grpc(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_GRPC], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        told = done.stdout.strip()
        assert told.endswith('. Type `pip install -e ".[grpc]"` in the checkout of stackseg'), done.stderr

    @pytest.mark.skipif(importlib.util.find_spec("MySQLdb") is not None, reason="the driver is there")
    def test_a_database_without_its_driver(self, tmp_path: Path) -> None:
        assert "Install the driver of that database, or name postgresql" in refused(tmp_path, "mysql://127.0.0.1:1/s")

    @pytest.mark.parametrize(
        "given",
        [
            "postgres://me:s3cret@127.0.0.1:1/studies",
            "mysql+nodriver://me:s3cret@127.0.0.1:1/studies",
            "redis://me:s3cret@127.0.0.1:1/studies",
            "postgresql://me:s3cret@127.0.0.1:port/studies",
            "grpc://127.0.0.1:port",
        ],
    )
    def test_servers_that_nobody_knows(self, tmp_path: Path, given: str) -> None:
        assert "s3cret" not in refused(tmp_path, given)

    @pytest.mark.parametrize(
        "given",
        [
            "postgresql://me:s3cret@127.0.0.1:{port}/studies",
            "postgresql://me:s3cret%40@127.0.0.1:{port}/studies",
            "postgresql://me:s3/s3cret@127.0.0.1:{port}/studies",
            "postgresql://127.0.0.1:{port}/studies?user=me&password=s3cret",
            "postgresql:/me:s3cret@127.0.0.1:{port}/studies",
            "me:s3cret@127.0.0.1:{port}/studies",
        ],
        ids=["plain", "encoded", "slash", "query", "one slash", "no scheme"],
    )
    @needs_psycopg
    def test_a_password_is_never_shown(self, tmp_path: Path, given: str) -> None:
        with pytest.raises(StoreError) as caught:
            opened(tmp_path, given.format(port=free_port()))
        assert "s3cret" not in str(caught.value)
        assert "127.0.0.1" in str(caught.value)

    def test_what_is_raised_later_is_told_the_same_way(self, tmp_path: Path, whole: bytes) -> None:
        (tmp_path / "optuna.db").write_bytes(whole)
        storage = opened(tmp_path)
        study = optuna.create_study(storage=storage, study_name="a")
        with closing(sqlite3.connect(tmp_path / "optuna.db")) as connection:
            connection.execute("DROP TABLE trials")
        with pytest.raises(StoreError) as caught, storage_errors("here"):
            study.get_trials()
        assert str(caught.value).startswith("here: the study storage failed: ")
        assert "\n" not in str(caught.value)

    def test_the_cause_of_a_failed_write_is_told(
        self, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "optuna.db").write_bytes(whole)
        monkeypatch.setattr(storage_module, "BUSY_TIMEOUT_S", 0.2)
        storage = opened(tmp_path)
        with closing(sqlite3.connect(tmp_path / "optuna.db")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError) as caught, storage_errors("here"):
                optuna.create_study(storage=storage, study_name="a")
        assert str(caught.value).startswith("here: the study storage failed: database is locked. Wait for the other")

    def test_other_mistakes_pass(self) -> None:
        with pytest.raises(ZeroDivisionError), storage_errors("here"):
            _ = 1 / 0


def mounted(monkeypatch: pytest.MonkeyPatch, kinds: dict[Path, str] | list[tuple[Path, str]]) -> None:
    pairs = kinds.items() if isinstance(kinds, dict) else kinds
    found = [SimpleNamespace(mountpoint=str(point), fstype=kind) for point, kind in pairs]
    partitions: Callable[..., list[Any]] = lambda all: found  # noqa: E731
    monkeypatch.setattr(psutil, "disk_partitions", partitions)


def begin_at_once(folder: Path, place: int, together: threading.Barrier) -> None:
    """Make a study in the same moment as others."""
    together.wait(120)
    study = optuna.create_study(storage=opened(folder), study_name=f"study {place}")
    study.enqueue_trial({"x": 1.0})


def require_whole(file: Path, names: list[str]) -> None:
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM version_info").fetchone() == (1,)
    storage = opened(file.parent)
    assert sorted(optuna.get_all_study_names(storage)) == names
    assert all(len(optuna.load_study(study_name=name, storage=storage).trials) == 1 for name in names)


@pytest.mark.parametrize("given", ["postgresql://ada@h/s", "mysql://ada@h/s", "grpc://h:13000", "sqlite:////srv/s.db"])
def test_cmaes_reads_its_pickles_from_no_storage_of_others(tmp_path: Path, given: str) -> None:
    url, cmaes = storage_url(tmp_path, given), Params().override({"search.sampler.name": "cmaes"})
    with pytest.raises(ParamsError, match=r"Optuna unpickles its state.*expected a sqlite file inside the project"):
        require_own_storage(cmaes, url, tmp_path)
    require_own_storage(Params(), url, tmp_path)
    for own in (None, "sqlite:///studies.db"):
        require_own_storage(cmaes, storage_url(tmp_path, own), tmp_path)


@pytest.mark.parametrize("given", ["postgresql://ada:s3c@ret@h/s", "postgresql://ada:a@s3c/ret@h/s"])
def test_an_at_in_a_password_is_told_rather_than_taken_for_the_server(tmp_path: Path, given: str) -> None:
    with pytest.raises(StoreError, match=r"--storage: postgresql://h/s has a password with an @ in it; .* as %40"):
        storage_url(tmp_path, given)
