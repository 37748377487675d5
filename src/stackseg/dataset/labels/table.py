"""Raw mask values and colours → class indices, by an explicit table; and a first table for masks just met."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from stackseg.dataset.labels.codes import COLOUR, RawCode, code_number, code_of, pixel_codes, raw_counts
from stackseg.dataset.labels.proposal import doubt_labels
from stackseg.errors import DataError, ParamsError

__all__ = ["IGNORE_INDEX", "MAX_CLASSES", "LabelTable", "RawCode", "propose_table", "raw_counts"]

IGNORE_INDEX = 255
"""Class index of pixels that neither train nor score."""
MAX_CLASSES = 254
"""Indices 0 to 253: 255 is `IGNORE_INDEX`, 254 marks unknown pixels inside this module."""

_UNKNOWN = 254
_DISPLAY = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")  # Okabe and Ito, 2008


@dataclass(frozen=True)
class LabelTable:
    """Which raw codes mean which class; the index of a class is its place in `names`.

    Raises
    ------
    ParamsError
        There are no classes or more than 254, the parts do not fit, a code is malformed or stands twice.
    """

    names: tuple[str, ...]
    raw: tuple[tuple[RawCode, ...], ...]
    display: tuple[str, ...]
    ignore: tuple[RawCode, ...] = ()

    def __post_init__(self) -> None:
        codes = [*chain.from_iterable(self.raw), *self.ignore]
        wrong = [code for code in codes if isinstance(code, str) and not COLOUR.fullmatch(code)]
        wrong += [colour for colour in self.display if len(colour) != 7 or not COLOUR.fullmatch(colour)]
        twice = [code for code, times in Counter(map(code_number, codes)).items() if times > 1] if not wrong else []
        problem = ""
        if not 0 < len(self.names) <= MAX_CLASSES:
            problem = f"{len(self.names)} classes; expected 1 to {MAX_CLASSES}"
        elif not len(self.names) == len(self.raw) == len(self.display) or not all(self.raw):
            problem = "every class needs a name, a raw value and a display colour"
        elif wrong:
            problem = f"{wrong[0]!r} is no colour; expected such as '#ff8000'"
        elif twice:
            problem = f"the raw value {code_of(*twice[0])} stands twice"
        if problem:
            raise ParamsError(problem, where="data.classes", remedy="mend the table in params.yaml")

    def map_plane(self, mask_yxc: npt.NDArray[np.generic], *, where: str) -> npt.NDArray[np.uint8]:
        """Return class indices (Y, X) of a raw mask (Y, X, C), `IGNORE_INDEX` where it is to be ignored.

        Raises
        ------
        DataError
            A value is in no class (named with its number of pixels), or the mask is of a kind that holds no labels.
        """
        coded_yx, is_colour = pixel_codes(mask_yxc, where)
        index_of = dict(self._indices(is_colour))
        if coded_yx.dtype.itemsize <= 2:
            limits = np.iinfo(coded_yx.dtype)
            table = np.full(limits.max - limits.min + 1, _UNKNOWN, np.uint8)
            for code, index in index_of.items():
                if limits.min <= code <= limits.max:
                    table[code] = index  # a negative code counts from the end, as its pixels do
            labels_yx: npt.NDArray[np.uint8] = table[coded_yx]
        else:
            labels_yx = np.full(coded_yx.shape, _UNKNOWN, np.uint8)
            for code, index in index_of.items():
                np.copyto(labels_yx, np.uint8(index), where=coded_yx == code)
        if (labels_yx == _UNKNOWN).any():
            raise self._unknown(coded_yx[labels_yx == _UNKNOWN], is_colour, where)
        return labels_yx

    def _indices(self, is_colour: bool) -> Iterator[tuple[int, int]]:
        for index, codes in chain(enumerate(self.raw), ((IGNORE_INDEX, (code,)) for code in self.ignore)):
            for code in codes:
                number, colour = code_number(code)
                if colour == is_colour:
                    yield number, index

    def _unknown(self, codes: npt.NDArray[np.generic], is_colour: bool, where: str) -> DataError:
        values, numbers = np.unique(codes, return_counts=True)
        worst = int(numbers.argmax())
        others = f", and so are {len(values) - 1} other values" if len(values) > 1 else ""
        named = [str(code) for code in (*chain.from_iterable(self.raw), *self.ignore)]
        return DataError(
            f"value {code_of(int(values[worst]), is_colour)} ({numbers[worst]} pixels) is in no class{others}",
            expected=f"one of {', '.join(named[:12])}{', …' if len(named) > 12 else ''}, as data.classes has",
            where=where,
            remedy="add it to data.classes or data.ignore in params.yaml, or mend the mask",
        )


def propose_table(counts: Mapping[RawCode, int], *, where: str = "masks") -> LabelTable:
    """Return a table with a class for each raw code found in masks, in rising order of codes.

    Two codes of which one is 0 or black are called background and foreground, all else class_0, class_1, …

    Parameters
    ----------
    counts
        Pixels per raw code, over all planes of all masks.
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
    if doubt := doubt_labels(found):
        remedy = f"export labels without interpolation, smoothing or JPEG, or {by_hand}"
        if "instance" in doubt:
            remedy = f"give all objects of a class one value (Fiji: Image > Adjust > Threshold), or {by_hand}"
        raise DataError(f"{len(found)} distinct values: it {doubt}", where=where, remedy=remedy)
    codes = sorted(found, key=lambda code: (isinstance(code, str), code))
    is_binary = len(codes) == 2 and codes[0] in (0, "#000000", "#00000000")
    names = ("background", "foreground") if is_binary else tuple(f"class_{index}" for index in range(len(codes)))
    return LabelTable(names, tuple((code,) for code in codes), _display_colours(codes))


def _display_colours(codes: list[RawCode]) -> tuple[str, ...]:
    """Return a colour per class: its own in colour masks, black for 0, else ones that are told apart easily."""
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
