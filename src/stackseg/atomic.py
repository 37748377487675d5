"""Files and folders: written under a temporary name and then renamed, text as UTF-8 and read as that."""

from __future__ import annotations

import codecs
import glob
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stackseg.errors import StacksegError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; at the end it is renamed to `path`, after an error it is removed.

    Folders above it are made. What killed processes left of it is removed. An OSError without a file name, such as
    that of a full disk, gets this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name_file(error, path)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; at the end it replaces `folder`, after an error it is removed.

    The former folder is removed once the new one is in place. A link to a folder stays a link, to the new one.
    """
    folder = folder.resolve()
    temporary, former = _temporary(folder), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            if former.exists():  # a killed write left it
                shutil.rmtree(former)
            os.replace(folder, former)
        os.replace(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_file(error, folder)
        raise
    shutil.rmtree(former, ignore_errors=True)


def put_once(folder: Path, place: Path) -> None:
    """Move a folder to its place; where another process has put one there, it stays, and the folder where it is."""
    try:
        os.rename(folder, place)
    except OSError:
        if not place.is_dir():
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: Path, refusal: type[StacksegError]) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, with line ends of any system.

    Raises
    ------
    refusal
        It is a folder, or a file in another encoding; the line is named.
    OSError
        There is no such file.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise refusal("a folder", expected="a text file", where=str(path), remedy="check the path") from None
    except UnicodeDecodeError as error:
        if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            found, line = "the file is UTF-16", 1
        else:
            line = len((error.object[: error.start] + b".").splitlines())
            found = f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}: is it Windows-1252?)"
        raise refusal(found, expected="UTF-8", where=str(path), remedy="save it as UTF-8 (Excel: CSV UTF-8)") from None


def require_writable(*folders: Path) -> None:
    """Make folders and write into them for a moment, before hours of work whose result is to be put there.

    Raises
    ------
    OSError
        What writing there raises: no permission, a disk mounted read-only, a file where a folder is expected.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error


def _temporary(path: Path) -> Path:
    """Return a name beside `path` for this process alone, and remove what processes that are gone left there.

    The machine's name is part of it, for several machines may share a folder.
    """
    start = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{glob.escape(start)}*.new"):
        import psutil  # rarely needed, and `--help` is quicker without

        process = left.name.removeprefix(start).removesuffix(".new")
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{start}{os.getpid()}.new")


def _name_file(error: BaseException, path: Path) -> None:
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)
