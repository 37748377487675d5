"""Some planes of a stack, as `--slices A:B` names them."""

from __future__ import annotations

import re

from stackseg.errors import ParamsError

_SLICES = re.compile(r"(\d*):(\d*)", re.ASCII)


def planes_of(slices: str | None, num_planes: int) -> range:
    """Return the planes from A on and before B, counted from 0; without A or B from the first or to the last.

    Raises
    ------
    ParamsError
        It is not A:B, names no plane, or a plane that is not there.
    """
    if slices is None:
        return range(num_planes)
    found = _SLICES.fullmatch(slices.strip())
    planes = range(int(found[1] or 0), int(found[2] or num_planes)) if found else range(0)
    if not planes or planes.stop > num_planes:
        raise ParamsError(
            f"{slices!r}",
            expected=f"A:B with 0 ≤ A < B ≤ {num_planes}: from plane A, counted from 0, and before plane B",
            where="--slices",
        )
    return planes
