"""Digests: what DVC writes for the same files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stackseg.dataset.fingerprints import by_specimen, data_digest, file_md5
from stackseg.dataset.splits import PlaneRef
from stackseg.errors import DataError
from tiny_projects import write_specimen

DVC = [sys.executable, "-m", "dvc"]


def test_files_and_folders_have_the_digest_that_dvc_gives_them(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name, content in (("b/images.tif", b"1"), ("b/10.tif", b"22"), ("a.csv", b"x\r\ny\n"), ("ä ö/z", b"")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "alone.bin").write_bytes(bytes(range(256)))
    subprocess.run([*DVC, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    subprocess.run([*DVC, "add", "-q", "data", "alone.bin"], cwd=tmp_path, check=True)
    assert f"md5: {data_digest(folder)}\n" in (tmp_path / "data.dvc").read_text()
    assert f"md5: {file_md5(tmp_path / 'alone.bin')}\n" in (tmp_path / "alone.bin.dvc").read_text()

    before = data_digest(folder)
    (folder / "a.csv").rename(folder / "c.csv")
    assert data_digest(folder) != before


def test_a_recorded_name_is_looked_up_and_no_path(tmp_path: Path) -> None:
    for name in ("data/rock", "elsewhere"):
        write_specimen(tmp_path / name, np.zeros((2, 4, 6), np.uint8), np.zeros((2, 4, 6), np.uint8))
    ((found, _),) = by_specimen([PlaneRef("rock", 0)], tmp_path / "data")
    assert found.name == "rock"
    for name in ("../elsewhere", str(tmp_path / "elsewhere"), "./rock"):
        with pytest.raises(DataError, match="no specimen"):
            by_specimen([PlaneRef(name, 0)], tmp_path / "data")
