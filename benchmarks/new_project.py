"""A project of two files, as `stackseg new` makes it, for the benchmarks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stackseg.params.file import write_values


def stackseg(*words: str | Path, folder: Path) -> None:
    """Run a verb in a folder and print nothing but its errors."""
    command = [Path(sys.executable).with_name("stackseg"), *words]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)


def new_project(folder: Path, images: Path, masks: Path, changed: dict[str, Any]) -> None:
    """Make a project in a folder that is not there yet, with what `add` proposes and some params changed."""
    stackseg("new", folder, images.resolve(), masks.resolve(), folder=folder.parent)
    write_values(folder / "params.yaml", changed)


def pair(text: str) -> tuple[str, Any]:
    """Return key and value of an option key=value, whose value is read as YAML."""
    key, _, value = text.partition("=")
    return key, YAML(typ="safe").load(value)
