"""groups.csv as editors and spreadsheets write it: read rightly, or refused by the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stackseg.catalog.groups import read_groups
from stackseg.dataset.specimens import Specimen, find_specimens
from stackseg.dataset.splits import PlaneRef
from stackseg.errors import DataError
from tiny_projects import write_specimen

ROWS = [("rock", 0, "left"), ("rock", 1, "left"), ("grés", 0, "right, upper"), ("grés", 1, "Ω")]
WANTED = {PlaneRef(name, z): group for name, z, group in ROWS}
PLAIN = 'specimen,plane,group\nrock,0,left\nrock,1,left\ngrés,0,"right, upper"\ngrés,1,Ω\n'


@pytest.fixture(scope="module")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> list[Specimen]:
    data = tmp_path_factory.mktemp("data")
    for name in ("rock", "grés"):
        write_specimen(data / name, np.zeros((2, 4, 6), np.uint8), np.zeros((2, 4, 6), np.uint8))
    return find_specimens(data)


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", ";").replace("right;", "right,").replace("\n", ";\r\n").encode("utf-8-sig"),
        PLAIN.replace(",", "\t").replace("right\t", "right,").encode(),
        ' Specimen ;PLANE ; "Group"\n rock ; 0;left \nrock;1; left\ngrés;0; "right, upper" \ngrés;1;Ω'.encode(),
        ("\n" + PLAIN.replace("grés,0", "\n,,\ngre\u0301s,00")).encode(),
        ("group,note,plane,specimen\n" + "".join(f'"{group}",,{z},{name}\n' for name, z, group in ROWS)).encode(),
    ],
    ids=["plain", "mark", "CRLF", "CR", "semicolons", "tabs", "spaces and case", "blank lines, accents", "columns"],
)  # fmt: skip
def test_what_editors_write_is_read(specimens: list[Specimen], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "groups.csv").write_bytes(content)
    assert read_groups(tmp_path / "groups.csv", specimens) == WANTED


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rock,1,left", "rock,1,", r"line 3: no group for rock/1"),
        ("rock,1,left", "rock,1,left\nrock,1,left", r"line 4: rock/1 is named in line 3 already"),
        ("rock,1,left", "rock,1,left\n\nrock,1,right", r"line 5: rock/1 is named in line 3 already"),
        ("rock,1", "Rock,1", r"line 3: specimen 'Rock'; expected one of grés, rock"),
        ("rock,1", "rock,2", r"line 3: plane '2' of rock; expected a whole number from 0 to 1"),
        ("rock,1", "rock,1.0", r"line 3: plane '1\.0' of rock"),
        ("rock,1", "rock,-1", r"line 3: plane '-1' of rock"),
        ("rock,1", "rock,", r"line 3: plane '' of rock"),
        ("rock,1,left\n", "", r"groups\.csv: no group for rock/1"),
        ('"right, upper"', "right, upper", r"line 4: 4 fields; expected 3"),
        ('"right, upper"', '"right, upper', r"line 5: a quote that does not end on its line"),
        ("left", "left" * 40_000, r"line 2: no CSV"),
        (
            "specimen,plane,group",
            "specimen,plane,part",
            r"line 1: the first line is 'specimen,plane,part'; expected the",
        ),
        ("specimen,plane,group", "group,plane,group,specimen", r"line 1: the first line is"),
        ("specimen,plane,group\n", "", r"line 1: the first line is 'rock,0,left'"),
        ("specimen,plane,group", "specimen;plane;group", r"line 2: specimen 'rock,0,left'"),
        (PLAIN, "", r"line 1: the first line is ''"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(
    specimens: list[Specimen], tmp_path: Path, old: str, new: str, told: str
) -> None:
    assert old in PLAIN
    (tmp_path / "groups.csv").write_text(PLAIN.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=told):
        read_groups(tmp_path / "groups.csv", specimens)


@pytest.mark.parametrize(
    ("encoding", "told"),
    [("cp1252", r"line 4 is not UTF-8 \(byte 0xe9.*CSV UTF-8"), ("utf-16", r"the file is UTF-16; expected UTF-8")],
)
def test_other_encodings_are_refused(specimens: list[Specimen], tmp_path: Path, encoding: str, told: str) -> None:
    (tmp_path / "groups.csv").write_text(PLAIN.replace("Ω", "x"), encoding=encoding)
    with pytest.raises(DataError, match=rf"groups\.csv: {told}"):
        read_groups(tmp_path / "groups.csv", specimens)
