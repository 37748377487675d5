"""No password is written or printed, whether the stores answer or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from databases import PASSWORD, postgresql
from served_projects import BIN, environment, run
from stackseg.params import Params
from stackseg.params.file import write_tree
from tiny_projects import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SEARCH = {"search.space": {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "train.epochs": 1}
SECRETS = [PASSWORD.encode(), b"s3cret"]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Return the address, password included, of a PostgreSQL of our own."""
    with postgresql() as url:
        yield url


def environment_of(uri: str) -> dict[str, str]:
    """Return the environment of somebody who keeps both stores at an address."""
    kept = environment(MLFLOW_TRACKING_URI=uri, STACKSEG_STORAGE=uri, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    quiet = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": os.environ["DVC_SITE_CACHE_DIR"]}
    return kept | quiet


def rows_of(uri: str) -> Iterator[tuple[str, bytes]]:
    """Yield every row of every table, with the table's name."""
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        for table in sqlalchemy.inspect(engine).get_table_names():
            for row in connection.execute(sqlalchemy.text(f'SELECT * FROM "{table}"')):
                yield table, repr(tuple(row)).encode()
    engine.dispose()


def test_no_password_is_written_or_printed(database: str, tiny_pipeline: Path) -> None:
    tiny = tiny_pipeline
    write_tree(tiny / "params.yaml", Params().override({**SETTINGS, **SEARCH}).model_dump(mode="json"))
    studies = database.replace("/postgres", "/studies")
    engine = sqlalchemy.create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE studies"))
    engine.dispose()
    env = environment_of(database) | {"STACKSEG_STORAGE": studies}
    said = [
        run(tiny, env, "dvc", "add", "data"),
        run(tiny, env, "dvc", "repro"),
        run(tiny, env, "stackseg", "register"),
        run(tiny, env, "stackseg", "search", "--trials", "1", "--apply", "--register-best"),
    ]
    assert "registered stackseg version 1" in said[1]
    assert "trial 0: " in said[3]
    wrong = environment_of(database.replace("s3cret", "s3cret-wrong"))
    for verb in ("evaluate", "search --trials 1"):
        said.append(run(tiny, wrong, "stackseg", *verb.split(), ok=False))
        assert "authentication failed" in said[-1], verb
        assert said[-1].count("\n") == 1, verb
    own = {**wrong, "MLFLOW_TRACKING_URI": database}
    said.append(run(tiny, own, "stackseg", "search", "--trials", "1", "--study", "other", ok=False))
    assert said[-1].endswith("Correct user and password in --storage\n")
    kept = {f"terminal {place}": text.encode() for place, text in enumerate(said)}
    kept |= {str(file): file.read_bytes() for file in tiny.rglob("*") if file.is_file()}
    rows = [*rows_of(database), *rows_of(studies)]
    assert {"runs", "tags", "params", "trials", "study_user_attributes"} <= {table for table, _ in rows}
    assert [where for where, content in (*kept.items(), *rows) if any(one in content for one in SECRETS)] == []
