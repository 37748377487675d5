"""Whether the values found in masks are classes at all, judged by their numbers of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt

from stackseg.dataset.labels.codes import RawCode

_MAX_CLASSES_BY_SIGHT = 32
_FREQUENT_SHARE = 0.95
_NUM_STRAY = 6
_NEAR = 16  # grey levels that compression or interpolation may move a value by


def doubt_labels(counts: Mapping[RawCode, int]) -> str:
    """Return why codes with these pixel numbers may be no classes, "" where nothing speaks against it."""
    return _doubt_many(counts) if len(counts) > _MAX_CLASSES_BY_SIGHT else _doubt_few(counts)


def _doubt_many(counts: Mapping[RawCode, int]) -> str:
    """Say what a mask with many values seems to be: instance labels leave few gaps, and no object stands out."""
    numbers = sorted(code for code in counts if isinstance(code, int))
    objects = [number for code, number in counts.items() if code != 0]
    few_gaps = len(numbers) == len(counts) and numbers[0] == 0 and 2 * len(numbers) > numbers[-1]
    if few_gaps and 2 * max(objects) < sum(objects) and (numbers[-1] > 255 or counts[0] > sum(objects)):
        return "looks like instance labels (a value per object) or is an image"
    return "looks anti-aliased or is an image"


def _doubt_few(counts: Mapping[RawCode, int]) -> str:
    """Say why some of a few values may be no classes; numbers counted from 0, and 250 to 255, are not doubted.

    Interpolation and lossy compression leave many rare values next to or between the frequent ones. A few such values
    cannot be told from classes by their numbers of pixels.
    """
    numbers = sorted(code for code in counts if isinstance(code, int))
    if len(numbers) == len(counts):
        blurred = [group for group in _groups(numbers) if _is_blurred([counts[one] for one in group], counts)]
        if len(blurred) > 1:
            near = " and ".join(f"{group[0]} to {group[-1]}" for group in blurred[:2])
            return f"looks JPEG-compressed or smoothed, for its values crowd at {near}"
        indices = [number for number in numbers if number < 250]
        if numbers[0] >= 0 and max(indices, default=0) < 2 * len(indices):
            return ""
        between = [counts[number] for number in numbers[1:-1]]
        if len(between) >= _NUM_STRAY and max(between) < min(counts[numbers[0]], counts[numbers[-1]]):
            return f"looks anti-aliased, for all values between {numbers[0]} and {numbers[-1]} are rarer than both"
    frequent = _frequent(counts)
    stray = [code for code in counts if code not in frequent and _lies_near(code, frequent)]
    if len(stray) < _NUM_STRAY:
        return ""
    return f"looks anti-aliased, for {len(stray)} rare values lie next to or between the {len(frequent)} frequent ones"


def _frequent(counts: Mapping[RawCode, int]) -> list[RawCode]:
    """Return the commonest codes that together cover nearly all pixels."""
    codes = sorted(counts, key=lambda code: -counts[code])
    covered = np.cumsum([counts[code] for code in codes])
    return codes[: int(np.searchsorted(covered, _FREQUENT_SHARE * covered[-1])) + 1]


def _groups(values: list[int]) -> list[list[int]]:
    """Split sorted values where more than 8 levels lie between neighbours."""
    cuts = [place for place in range(1, len(values)) if values[place] - values[place - 1] > 8]
    return [values[start:end] for start, end in zip([0, *cuts], [*cuts, len(values)], strict=True)]


def _is_blurred(group: list[int], counts: Mapping[RawCode, int]) -> bool:
    """Tell whether neighbouring values look like one: a frequent one, and a few pixels to either side of it."""
    total = sum(group)
    return len(group) > 1 and max(group) >= 0.9 * total and total >= 0.01 * sum(counts.values())


def _lies_near(code: RawCode, frequent: list[RawCode]) -> bool:
    """Tell whether a code is close to a frequent one, or a mixture of two."""
    point = _point(code)
    others = [_point(one) for one in frequent if isinstance(one, str) == isinstance(code, str)]
    if any(np.abs(point - other).max() <= _NEAR for other in others):
        return True
    for start, end in combinations(others, 2):
        share = float(np.clip((point - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1))
        if np.abs(start + share * (end - start) - point).max() <= 2:
            return True
    return False


def _point(code: RawCode) -> npt.NDArray[np.float64]:
    if isinstance(code, int):
        return np.array([code], np.float64)
    return np.frombuffer(bytes.fromhex(code[1:].ljust(8, "f")), np.uint8).astype(np.float64)
