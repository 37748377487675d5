"""The code digest: the train stage's folders, whatever the line ends."""

from __future__ import annotations

from pathlib import Path

import pytest

import stackseg
from stackseg.model.code_digest import TRAIN_STAGE_ROOMS, code_digest

PACKAGE = Path(stackseg.__file__).parent


def change(monkeypatch: pytest.MonkeyPatch, changed: Path) -> None:
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: real(self) + (b"# more" if self == changed else b""))


def test_line_ends_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest()
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: real(self).replace(b"\n", b"\r\n"))
    assert code_digest() == before


@pytest.mark.parametrize("room", TRAIN_STAGE_ROOMS)
def test_a_change_in_a_folder_of_the_train_stage_changes_it(monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    before = code_digest()
    change(monkeypatch, sorted((PACKAGE / room).rglob("*.py"))[-1])
    assert code_digest() != before


@pytest.mark.parametrize("name", ["errors.py", "atomic.py", "evaluation/metrics.py", "catalog/build.py", "cli/main.py"])
def test_a_change_elsewhere_does_not(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = code_digest()
    assert (PACKAGE / name).is_file()
    change(monkeypatch, PACKAGE / name)
    assert code_digest() == before


def test_further_folders_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest("catalog")
    assert before != code_digest()
    change(monkeypatch, PACKAGE / "catalog" / "build.py")
    assert code_digest("catalog") != before
