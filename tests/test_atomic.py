"""Files and folders are written whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from stackseg.atomic import atomic_file, atomic_folder, read_text, require_writable, write_text
from stackseg.errors import DataError, ParamsError


def fail(path: Path, error: BaseException) -> None:
    path.write_text("half")
    raise error


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    with atomic_file(path) as temporary:
        temporary.write_text("1")
        assert not path.exists()
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()


def test_an_error_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "good")
    with pytest.raises(OSError, match="No space left") as caught, atomic_file(path) as temporary:
        fail(temporary, OSError(errno.ENOSPC, "No space left on device"))
    assert caught.value.filename == str(path)
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "plots"
    for names in (("a", "b"), ("c",)):
        with atomic_folder(folder) as temporary:
            for name in names:
                (temporary / name).touch()
        assert {one.name for one in folder.iterdir()} == set(names)
    assert list(folder.parent.iterdir()) == [folder]


def test_an_error_leaves_the_folder_that_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "plots"
    with atomic_folder(folder) as temporary:
        (temporary / "good").touch()
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as temporary:
        fail(temporary / "half", KeyboardInterrupt())
    assert [one.name for one in folder.iterdir()] == ["good"]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_write_left_is_no_hindrance(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    for left in (
        f".plots.{platform.node()}.{gone.pid}.new",
        f".plots.{platform.node()}.{os.getpid()}.new",
        ".plots.old",
    ):
        (tmp_path / left).mkdir()
        (tmp_path / left / "stale").touch()
    (tmp_path / "plots").mkdir()
    with atomic_folder(tmp_path / "plots") as temporary:
        (temporary / "fresh").touch()
    assert [one.name for one in (tmp_path / "plots").iterdir()] == ["fresh"]
    assert [one.name for one in tmp_path.iterdir()] == ["plots"]


def test_a_link_to_a_folder_stays_a_link_to_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "disk" / "data" / "old").touch()
    link = tmp_path / "data"
    link.symlink_to(tmp_path / "disk" / "data")
    for name in ("a", "b"):
        with atomic_folder(link) as temporary:
            (temporary / name).touch()
        assert link.is_symlink()
        assert [one.name for one in (tmp_path / "disk" / "data").iterdir()] == [name]
    assert {one.name for one in tmp_path.iterdir()} == {"disk", "data"}
    assert [one.name for one in (tmp_path / "disk").iterdir()] == ["data"]


def test_text_is_read_with_the_mark_and_line_ends_of_any_editor(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content in (b"\xef\xbb\xbf\xc3\xa9\r\nb\r\n", b"\xc3\xa9\rb\r", b"\xc3\xa9\nb\n"):
        path.write_bytes(content)
        assert read_text(path, DataError) == "é\nb\n"


def test_text_in_another_encoding_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content in (b"a\r\nb\r\n\xe9\r\n", b"\xef\xbb\xbfa\n\n\xe9", b"a\rb\r\xe9"):
        path.write_bytes(content)
        with pytest.raises(ParamsError, match=r"a\.csv: line 3 is not UTF-8 \(byte 0xe9.*expected UTF-8"):
            read_text(path, ParamsError)
    path.write_text("é", encoding="utf-16")
    with pytest.raises(DataError, match=r"a\.csv: the file is UTF-16; expected UTF-8"):
        read_text(path, DataError)
    with pytest.raises(DataError, match="a folder; expected a text file"):
        read_text(tmp_path, DataError)


def test_what_cannot_be_written_is_noticed_beforehand(tmp_path: Path) -> None:
    require_writable(tmp_path / "deep" / "outputs")
    assert list((tmp_path / "deep" / "outputs").iterdir()) == []
    (tmp_path / "file").touch()
    for below in ("file", "file/outputs"):
        with pytest.raises(OSError, match=r"File exists|Not a directory") as caught:
            require_writable(tmp_path / below)
        assert caught.value.filename == str(tmp_path / below)
