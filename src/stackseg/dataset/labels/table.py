"""Raw mask values and colours → class indices, by an explicit table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from stackseg.dataset.labels.codes import COLOUR, RawCode, code_number, code_of, pixel_codes, raw_counts
from stackseg.errors import DataError, ParamsError

__all__ = ["IGNORED_OBJECT", "IGNORE_INDEX", "MAX_CLASSES", "LabelTable", "RawCode", "raw_counts"]

IGNORE_INDEX = 255
"""Class index of pixels that neither train nor score."""
MAX_CLASSES = 254
"""Indices 0 to 253: 255 is `IGNORE_INDEX`, 254 marks unknown pixels inside this module."""

IGNORED_OBJECT = -1
"""What stands for such pixels among the numbers of objects."""

_UNKNOWN = 254


@dataclass(frozen=True)
class LabelTable:
    """Which raw codes mean which class; the index of a class is its place in `names`.

    With `instances` masks number objects: whatever is not 0 is of the second class, and `raw` is not consulted. With
    `ignores_unlabelled` codes that stand nowhere are ignored, not refused; so are those of the classes (indices) that
    are `not_annotated` in the specimen at hand.

    Raises
    ------
    ParamsError
        There are no classes or more than 254, the parts do not fit, a code is malformed or stands twice.
    """

    names: tuple[str, ...]
    raw: tuple[tuple[RawCode, ...], ...]
    display: tuple[str, ...]
    ignore: tuple[RawCode, ...] = ()
    instances: bool = False
    ignores_unlabelled: bool = False
    not_annotated: tuple[int, ...] = ()

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
            A value is in no class (named with its number of pixels) and not to be ignored, or the mask is of a kind
            that holds no labels.
        """
        if self.instances:
            codes_yx, ignored_yx = self._object_codes(mask_yxc, where)
            return np.where(ignored_yx, IGNORE_INDEX, codes_yx != 0).astype(np.uint8)
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
        unknown_yx = labels_yx == _UNKNOWN
        if unknown_yx.any():
            if not self.ignores_unlabelled:
                raise self._unknown(coded_yx[unknown_yx], is_colour, where)
            labels_yx[unknown_yx] = IGNORE_INDEX
        return labels_yx

    def number_objects(self, mask_yxc: npt.NDArray[np.generic], *, where: str) -> npt.NDArray[np.int32]:
        """Return the objects (Y, X) of a raw mask (Y, X, C) of instances, numbered from 1 in rising order of values.

        0 is background, `IGNORED_OBJECT` what is to be ignored.

        Raises
        ------
        DataError
            The mask holds colours, or is of a kind that holds no labels.
        """
        codes_yx, ignored_yx = self._object_codes(mask_yxc, where)
        codes_yx = np.where(ignored_yx, 0, codes_yx)
        values, places_yx = np.unique(codes_yx, return_inverse=True)
        is_object = values != 0
        numbers = np.where(is_object, np.cumsum(is_object), 0)
        return np.where(ignored_yx, IGNORED_OBJECT, numbers[places_yx.reshape(codes_yx.shape)]).astype(np.int32)

    def _object_codes(
        self, mask_yxc: npt.NDArray[np.generic], where: str
    ) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.bool_]]:
        """Return the integers (Y, X) of a mask of instances, and which of its pixels are to be ignored."""
        codes_yx, is_colour = pixel_codes(mask_yxc, where)
        if is_colour:
            raise DataError(
                "colours in a mask of instances",
                expected="an integer per object, 0 for the background",
                where=where,
                remedy="export the labels as integers, or set data.instances to false and name the colours",
            )
        return codes_yx, np.isin(codes_yx, [code for code in self.ignore if isinstance(code, int)])

    def _indices(self, is_colour: bool) -> Iterator[tuple[int, int]]:
        for index, codes in chain(enumerate(self.raw), ((IGNORE_INDEX, (code,)) for code in self.ignore)):
            for code in codes:
                number, colour = code_number(code)
                if colour == is_colour:
                    yield number, IGNORE_INDEX if index in self.not_annotated else index

    def _unknown(self, codes: npt.NDArray[np.generic], is_colour: bool, where: str) -> DataError:
        values, numbers = np.unique(codes, return_counts=True)
        worst = int(numbers.argmax())
        others = f", and so are {len(values) - 1} other values" if len(values) > 1 else ""
        named = [str(code) for code in (*chain.from_iterable(self.raw), *self.ignore)]
        return DataError(
            f"value {code_of(int(values[worst]), is_colour)} ({numbers[worst]} pixels) is in no class{others}",
            expected=f"one of {', '.join(named[:12])}{', …' if len(named) > 12 else ''}, as data.classes has",
            where=where,
            remedy="add it to data.classes or data.ignore in params.yaml, or mend the mask; data.unlabelled: ignore "
            "leaves out whatever is in no class",
        )
