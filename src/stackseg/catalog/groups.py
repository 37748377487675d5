"""Which planes belong together: data/groups.csv, or runs of planes."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from stackseg.atomic import read_text
from stackseg.dataset.specimens import Specimen
from stackseg.dataset.splits import PlaneRef
from stackseg.errors import DataError

GROUPS_FILE = "groups.csv"
COLUMNS = ("specimen", "plane", "group")
_SEPARATORS = ",;\t"


def runs_of_planes(specimens: Sequence[Specimen], size: int) -> dict[PlaneRef, str]:
    """Return groups of `size` planes in order."""
    return {PlaneRef(one.name, z): f"{one.name}:{z // size}" for one in specimens for z in one.labelled}


def read_groups(path: Path, specimens: Sequence[Specimen]) -> dict[PlaneRef, str]:
    """Read the group of every annotated plane from a CSV file with the columns specimen, plane and group.

    Columns may be in any order among others, separated by commas, semicolons or tabs.

    Raises
    ------
    DataError
        A line is none of that, names what is not there, or a plane twice; or a plane has no line.
    """
    # folders of macOS may spell an accent in another way than the program that wrote the file
    by_name = {unicodedata.normalize("NFC", one.name): one for one in specimens}
    groups: dict[PlaneRef, str] = {}
    lines: dict[PlaneRef, int] = {}
    for line, name, plane, group in _rows(path):
        where = f"{path} line {line}"
        specimen = by_name.get(unicodedata.normalize("NFC", name))
        if specimen is None:
            raise DataError(f"specimen {name!r}", expected=f"one of {', '.join(by_name)}", where=where)
        if not plane.isdecimal() or int(plane) >= len(specimen):
            raise DataError(
                f"plane {plane!r} of {specimen.name}",
                expected=f"a whole number from 0 to {len(specimen) - 1}",
                where=where,
            )
        if not group:
            raise DataError(f"no group for {specimen.name}/{plane}", where=where, remedy="name its group")
        ref = PlaneRef(specimen.name, int(plane))
        if ref in lines:
            raise DataError(f"{ref} is named in line {lines[ref]} already", expected="one line a plane", where=where)
        lines[ref], groups[ref] = line, group
    for specimen in specimens:
        for z in specimen.labelled:
            if PlaneRef(specimen.name, z) not in groups:
                raise DataError(f"no group for {specimen.name}/{z}", where=str(path), remedy="add its line")
    return groups


def _rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield line number, specimen, plane and group as written, without the spaces around them."""
    try:
        text = read_text(path, DataError)
    except FileNotFoundError:
        raise DataError(
            "no such file", where=str(path), remedy="write it (specimen,plane,group), or set split.group_size"
        ) from None
    separator = _separator(text, path)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    header: list[str] = []
    try:
        for fields in reader:
            if any("\n" in field for field in fields):
                raise DataError("a quote that does not end on its line", where=f"{path} line {reader.line_num}")
            row = [field.strip() for field in fields]
            while row and not row[-1]:
                row.pop()
            if not header:
                header = [one.casefold() for one in row]
            elif row:
                if len(row) > len(header):
                    raise DataError(
                        f"{len(row)} fields",
                        expected=f"{len(header)}, as the first line has",
                        where=f"{path} line {reader.line_num}",
                        remedy="put a field that holds the separator into quotes",
                    )
                found = dict(zip(header, row, strict=False))
                specimen, plane, group = (found.get(name, "") for name in COLUMNS)
                yield reader.line_num, specimen, plane, group
    except csv.Error as error:
        raise DataError(f"no CSV ({error})", where=f"{path} line {reader.line_num}") from None


def _separator(text: str, path: Path) -> str:
    """Return the separator by which the first line that is not blank has the columns, each once."""
    lines = text.splitlines()
    number = next((number for number, line in enumerate(lines) if line.strip()), 0)
    first = lines[number] if lines else ""
    for separator in _SEPARATORS:
        names = [one.strip().strip('"').strip().casefold() for one in first.split(separator)]
        if all(names.count(one) == 1 for one in COLUMNS):
            return separator
    raise DataError(
        f"the first line is {first[:60]!r}",
        expected="the names of the columns, specimen,plane,group",
        where=f"{path} line {number + 1}",
    )
