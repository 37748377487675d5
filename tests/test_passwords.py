"""No password is written or printed, whether the stores answer or not."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

from databases import PASSWORD, postgresql
from stackseg.cli.main import run
from stackseg.params import Params
from stackseg.params.file import write_tree
from tiny_projects import SETTINGS, tiny_stack, write_specimen
from verbs import inside

pytestmark = pytest.mark.slow

SEARCH = {"search.space": {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "train.epochs": 1}
SECRETS = [PASSWORD.encode(), b"s3cret"]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Return the address, password included, of a PostgreSQL of our own."""
    with postgresql() as url:
        yield url


def close_connections() -> None:
    """Close what engines keep open, as the end of a process would; psycopg warns of what is left to the collector."""
    for one in gc.get_objects():
        if type(one) is sqlalchemy.Engine:
            one.dispose()


@pytest.fixture
def stackseg(project: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a verb with the stores at two addresses; it returns all that reaches the terminal."""

    def typed(words: str, *, runs: str, studies: str, ok: bool = True) -> str:
        with inside(project), pytest.MonkeyPatch.context() as there:
            there.setattr(sys, "argv", ["stackseg", *words.split()])
            there.setenv("MLFLOW_TRACKING_URI", runs)
            there.setenv("STACKSEG_STORAGE", studies)
            with pytest.raises(SystemExit) as ended:
                run()
        close_connections()
        said = "".join(capfd.readouterr())
        assert (ended.value.code in (None, 0)) == ok, said
        return said

    return typed


def rows_of(uri: str) -> Iterator[tuple[str, bytes]]:
    """Yield every row of every table, with the table's name."""
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        for table in sqlalchemy.inspect(engine).get_table_names():
            for row in connection.execute(sqlalchemy.text(f'SELECT * FROM "{table}"')):
                yield table, repr(tuple(row)).encode()
    engine.dispose()


def test_no_password_is_written_or_printed(database: str, project: Path, stackseg: Callable[..., str]) -> None:
    write_specimen(project / "data" / "rock", *tiny_stack())
    write_tree(project / "params.yaml", Params().override({**SETTINGS, **SEARCH}).model_dump(mode="json"))
    (project / "dvc.yaml").write_text("stages: {}\n")
    studies = database.replace("/postgres", "/studies")
    engine = sqlalchemy.create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE studies"))
    engine.dispose()
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "data"], check=True)
    said = [
        stackseg(words, runs=database, studies=studies)
        for words in ("catalog", "train", "evaluate", "register", "search --trials 1 --apply --register-best")
    ]
    assert "registered stackseg version 1" in said[2]
    assert "trial 0: " in said[4]
    wrong = database.replace("s3cret", "s3cret-wrong")
    for words in ("evaluate", "search --trials 1"):
        said.append(stackseg(words, runs=wrong, studies=wrong, ok=False))
        assert "authentication failed" in said[-1], words
        assert said[-1].count("\n") == 1, words
    said.append(stackseg("search --trials 1 --study other", runs=database, studies=wrong, ok=False))
    assert said[-1].endswith("Correct user and password in --storage\n")
    kept = {f"terminal {place}": text.encode() for place, text in enumerate(said)}
    kept |= {str(file): file.read_bytes() for file in project.rglob("*") if file.is_file()}
    rows = [*rows_of(database), *rows_of(studies)]
    assert {"runs", "tags", "params", "trials", "study_user_attributes"} <= {table for table, _ in rows}
    assert [where for where, content in (*kept.items(), *rows) if any(one in content for one in SECRETS)] == []
