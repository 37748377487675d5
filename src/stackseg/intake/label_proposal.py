"""A first class table for masks just met, and whether their values are classes at all."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence, Set
from itertools import chain, combinations

import numpy as np
import numpy.typing as npt

from stackseg.dataset.labels.codes import RawCode
from stackseg.dataset.labels.table import LabelTable
from stackseg.errors import DataError

_DISPLAY = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")  # Okabe and Ito, 2008
_MAX_CLASSES_BY_SIGHT = 32
_FREQUENT_SHARE = 0.95
_NUM_STRAY = 6
_OBJECTS_PER_PLANE = 5
_NEAR = 16  # grey levels that compression or interpolation may move a value by


def propose_table(
    counts: Mapping[RawCode, int],
    *,
    planes: Sequence[Set[RawCode]] = (),
    may_be_lossy: bool = False,
    where: str = "masks",
) -> LabelTable:
    """Return a table with a class for each raw code found in masks, in rising order of codes.

    Two codes of which one is 0 or black are called background and foreground, all else class_0, class_1, …

    Parameters
    ----------
    counts
        Pixels per raw code, over all planes of all masks.
    planes
        The codes of each plane, to see whether all are coded alike.
    may_be_lossy
        Whether the masks say that their compression changes values: then values that crowd around a frequent one are
        one class.
    where
        File or folder named in messages.

    Raises
    ------
    DataError
        There is one code only, or the codes look like instance labels, an image, or labels that were interpolated
        or compressed with loss.
    """
    found = {code: number for code, number in counts.items() if number > 0}
    by_hand = "name the true values in `--classes FILE`"
    if len(found) < 2:
        raise DataError(
            f"{len(found)} distinct values ({', '.join(map(str, found))})",
            expected="two classes or more",
            where=where,
            remedy=f"annotate at least one plane that holds several classes, or {by_hand}",
        )
    if may_be_lossy and (smeared := _smeared_classes(found)):
        names = ("background", "foreground") if len(smeared) == 2 and 0 in smeared[0] else _numbered(len(smeared))
        return LabelTable(names, tuple(smeared), _display_colours([raw[0] for raw in smeared]))
    if warning := label_warning(found):
        remedy = f"export labels without interpolation, smoothing or JPEG, or {by_hand}"
        if "instance" in warning:
            remedy = (
                "if they number objects, name background and object and set data.instances: true in params.yaml; or "
                f"give all objects of a class one value (Fiji: Image > Adjust > Threshold), or {by_hand}"
            )
        raise DataError(f"{len(found)} distinct values: it {warning}", where=where, remedy=remedy)
    if _mixes_binary_codes(planes):
        raise DataError(
            "some planes hold 0 and 1, others 0 and 255, none all three: is one class coded in two ways?",
            expected="one value per class",
            where=where,
            remedy="name both values of the class in `--classes FILE` (raw: [1, 255]), or convert the masks",
        )
    codes = sorted(found, key=lambda code: (isinstance(code, str), code))
    is_binary = len(codes) == 2 and codes[0] in (0, "#000000", "#00000000")
    names = ("background", "foreground") if is_binary else _numbered(len(codes))
    return LabelTable(names, tuple((code,) for code in codes), _display_colours(codes))


def _numbered(num_classes: int) -> tuple[str, ...]:
    return tuple(f"class_{index}" for index in range(num_classes))


def _smeared_classes(counts: Mapping[RawCode, int]) -> list[tuple[RawCode, ...]]:
    """Return the values of each class where lossy compression moved some of them a little, the true one first."""
    numbers = sorted(code for code in counts if isinstance(code, int))
    groups = _groups(numbers)
    if len(numbers) < len(counts) or len(groups) == len(numbers):
        return []
    if len(groups) < 2 or not all(
        len(one) == 1 or _is_blurred([counts[code] for code in one], counts) for one in groups
    ):
        return []
    return [tuple(sorted(group, key=lambda code: -counts[code])) for group in groups]


def _mixes_binary_codes(planes: Sequence[Set[RawCode]]) -> bool:
    """Tell whether some binary masks say 1 for what others call 255."""
    return {*chain.from_iterable(planes)} == {0, 1, 255} and not any({1, 255} <= codes for codes in planes)


def instance_table() -> LabelTable:
    """Return a table for masks that number objects."""
    return LabelTable(("background", "object"), ((0,), (1,)), ("#000000", _DISPLAY[0]), instances=True)


def are_instances(planes: Sequence[Set[RawCode]], num_regions: int) -> bool:
    """Tell whether grey masks clearly hold a value per object: many values, each of them one region of a plane.

    Parameters
    ----------
    planes
        The codes of each plane.
    num_regions
        Connected regions of one value other than 0, over all planes: of classes there are many more than of values.
    """
    codes = {*chain.from_iterable(planes)}
    return 0 in codes and len(codes) > _MAX_CLASSES_BY_SIGHT and _one_region_a_value(planes, num_regions)


def instance_question(planes: Sequence[Set[RawCode]], num_regions: int) -> str:
    """Return why grey masks may hold a value per object and not per class, "" where they do not look so.

    The parameters are those of `are_instances`. Few values may be classes that are a region each, such as layers.
    """
    if not _one_region_a_value(planes, num_regions):
        return ""
    num_values = sum(len(codes - {0}) for codes in planes)
    return (
        f"are these instance labels? Nearly every value of a plane is one connected region ({num_values} values in "
        f"{len(planes)} planes): if they are objects, set data.instances: true in params.yaml and name two classes, "
        "background and object"
    )


def _one_region_a_value(planes: Sequence[Set[RawCode]], num_regions: int) -> bool:
    num_values = sum(len(codes - {0}) for codes in planes)
    if num_values < _OBJECTS_PER_PLANE * len(planes) or num_regions > 1.1 * num_values:
        return False
    return all(isinstance(code, int) for codes in planes for code in codes)


def _display_colours(codes: list[RawCode]) -> tuple[str, ...]:
    """Return a colour per class: its own in colour masks, black for 0, else others that are easy to distinguish."""
    spare = chain(_DISPLAY, (_hue(step) for step in range(360)))
    chosen: list[str] = []
    for code in codes:
        own = code[:7] if isinstance(code, str) else "#000000" if code == 0 else next(spare)
        while own in chosen:
            own = next(spare)
        chosen.append(own)
    return tuple(chosen)


def _hue(step: int) -> str:
    red, green, blue = colorsys.hsv_to_rgb(step * 0.618034 % 1, 0.7 if step % 2 else 0.45, 0.9)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def label_warning(counts: Mapping[RawCode, int]) -> str:
    """Return why codes with these pixel numbers may be no classes, "" where nothing speaks against it."""
    return _warn_of_many(counts) if len(counts) > _MAX_CLASSES_BY_SIGHT else _warn_of_few(counts)


def _warn_of_many(counts: Mapping[RawCode, int]) -> str:
    """Say what a mask with many values seems to be: instance labels leave few gaps, and no object stands out."""
    numbers = sorted(code for code in counts if isinstance(code, int))
    objects = [number for code, number in counts.items() if code != 0]
    few_gaps = len(numbers) == len(counts) and numbers[0] == 0 and 2 * len(numbers) > numbers[-1]
    if few_gaps and 2 * max(objects) < sum(objects) and (numbers[-1] > 255 or counts[0] > sum(objects)):
        return "looks like instance labels (a value per object) or is an image"
    return "looks anti-aliased or is an image"


def _warn_of_few(counts: Mapping[RawCode, int]) -> str:
    """Say why some of a few values may be no classes; numbers counted from 0, and 250 to 255, pass.

    Interpolation and lossy compression leave many rare values next to or between the frequent ones. A few such values
    cannot be distinguished from classes by their numbers of pixels.
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
    return len(group) > 1 and max(group) >= 0.75 * total and total >= 0.01 * sum(counts.values())


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
