"""Files and folders that are written whole or not at all: aside first, then put in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_aside(path: Path) -> Iterator[Path]:
    """Yield the name to write a file under; at the end it takes its place, after an error it is removed.

    Folders above it are made. An OSError that names no file, as that of a full disk, names this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        _name_file(error, path)
        raise


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; at the end it takes the place of `folder`, after an error it is removed.

    What was in `folder` is removed only when the new one is there.
    """
    aside, former = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if folder.exists():
            if former.exists():  # a killed write left it
                shutil.rmtree(former)
            os.replace(folder, former)
        os.replace(aside, folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        _name_file(error, folder)
        raise
    shutil.rmtree(former, ignore_errors=True)


def write_text_aside(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with file_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _name_file(error: BaseException, path: Path) -> None:
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)
