"""Errors that a user can mend: one line, and no secret in it."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackseg.errors import StoreError, is_out_of_memory, without_passwords

PASSWORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\"<>"), min_size=1)


def test_the_sentence_says_what_where_and_what_to_do() -> None:
    error = StoreError("it is\nlocked", expected="a free one", where="mlflow.db", remedy="wait")
    assert str(error) == "mlflow.db: it is locked; expected a free one. Wait"


@given(PASSWORDS)
def test_an_address_loses_its_user_and_password(password: str) -> None:
    address = f"postgresql+psycopg://ada:{password}@db.lab:5432/mlflow"
    assert without_passwords(f"could not reach {address} (twice)") == (
        "could not reach postgresql+psycopg://db.lab:5432/mlflow (twice)"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://db/s?user=ada&password=s3cret&sslmode=require", "postgresql://db/s?user=ada&password=…&sslmode=require"),
        ("host=db user=ada password=s3cret dbname=s", "host=db user=ada password=… dbname=s"),
        ("sqlite:////home/ada@lab/mlflow.db", "sqlite:////home/ada@lab/mlflow.db"),
        ("http://127.0.0.1:5000 does not answer", "http://127.0.0.1:5000 does not answer"),
        ("write to ada@lab.org", "write to ada@lab.org"),
    ],
)  # fmt: skip
def test_what_is_a_secret_and_what_is_not(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD"])
def test_what_the_environment_keeps_secret_is_in_no_message(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "s3cret")
    assert "s3cret" not in str(StoreError("login with s3cret failed", where="db", remedy="not s3cret"))


def test_the_password_of_the_tracking_address_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:s3/cr@t@db/mlflow")
    assert "s3/cr@t" not in str(StoreError("the driver says s3/cr@t is wrong"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ImportError("No module named 'torch'"), False),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_memory_that_does_not_suffice_is_known_however_it_is_told(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
