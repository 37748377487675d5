"""Match single image files with their mask files by name."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

from natsort import natsorted

from stackseg.errors import DataError

# only what is known to be a suffix: in `images.010` the end is the plane's number
_SUFFIX = re.compile(r"(\.ome)?\.(tiff?|btf|tf2|tf8|png)$", re.IGNORECASE)
_WORD = r"[^\d\s_.-]+"
_TOKEN = re.compile(rf"\d+|{_WORD}")
_LABELLED = re.compile(rf"({_WORD})(\d+)")

Token = str | int
"""A word or a number of a name."""


def natural_pairs(images: Sequence[Path], masks: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pair images with masks in the order people count (2 before 10), each with exactly one other.

    Names without suffix must agree. Else what tells the names of a folder apart must: all their words and numbers but
    those that are the same in the whole folder, such as those of `images.010` and `mitos_3D.010`. Leading zeros, case,
    and how a system writes accents are no matter.

    Raises
    ------
    DataError
        Some file has no partner or several.
    """
    stems = [_stem(path) for path in images], [_stem(path) for path in masks]
    refusals: list[tuple[int, list[str]]] = []
    for image_keys, mask_keys in (stems, _telling_keys(*stems)):
        num_left, words = _left_over(images, image_keys, masks, mask_keys)
        if not num_left:
            mask_of = dict(zip(mask_keys, masks, strict=True))
            pairs = [(image, mask_of[key]) for image, key in zip(images, image_keys, strict=True)]
            return natsorted(pairs, key=lambda pair: pair[0].name)
        refusals.append((num_left, words))
    _, fewest = min(refusals, key=lambda one: one[0])
    raise DataError(
        "; ".join([f"{len(images)} images and {len(masks)} masks", *fewest]),
        expected="a mask for each image, whose name has the same numbers and words",
        where=str(images[0].parent if images else masks[0].parent if masks else "."),
        remedy="rename the files so that they agree, or set the odd ones aside",
    )


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", _SUFFIX.sub("", path.name))


def _telling_keys(images: Sequence[str], masks: Sequence[str]) -> tuple[list[Hashable], list[Hashable]]:
    """Return of each name what tells it from the others of its folder, in a form that a partner's name has too."""
    folders = [[_tokens(stem) for stem in stems] for stems in (images, masks)]
    if len(images) == len(masks) == 1:
        telling = _common_part(folders[0][0], folders[1][0])
    elif _other_numbers_vary(*folders):
        telling = [[tuple(one) for one in folder] for folder in folders]
    else:
        telling = [_without_common(folder) for folder in folders]
    # t1 and t2 are no partners, even where a whole folder is of t1 and the other of t2
    labels = [[_labelled(stem) for stem in stems] for stems in (images, masks)]
    shared = set.intersection(*(set(one) for one in [*labels[0], *labels[1]])) if images and masks else set()
    image_keys, mask_keys = (
        [(key, frozenset((word, one[word]) for word in shared)) for key, one in zip(*side, strict=True)]
        for side in zip(telling, labels, strict=True)
    )
    return [*image_keys], [*mask_keys]


def _tokens(stem: str) -> list[Token]:
    return [int(one) if one.isdecimal() else one for one in _TOKEN.findall(stem.casefold())]


def _labelled(stem: str) -> dict[str, tuple[int, ...]]:
    """Return the words directly before a number, such as the t of t1, and their numbers."""
    found = _LABELLED.findall(stem.casefold())
    return {word: tuple(int(number) for other, number in found if other == word) for word, _ in found}


def _common_part(image: list[Token], mask: list[Token]) -> list[list[tuple[Token, ...]]]:
    """Return the key of a single pair: one name must hold the numbers of the other, or without any, its words."""
    shorter, longer = sorted((_numbers(image), _numbers(mask)), key=len)
    if not longer:
        shorter, longer = sorted((image, mask), key=len)
    rest = iter(longer)
    agree = bool(shorter) and all(one in rest for one in shorter)
    return [[tuple(shorter)]] * 2 if agree else [[tuple(image)], [tuple(mask)]]


def _other_numbers_vary(images: list[list[Token]], masks: list[list[Token]]) -> bool:
    """Return whether names with equally many numbers vary in, say, the first in images and the second in masks."""
    numbers = [[_numbers(one) for one in folder] for folder in (images, masks)]
    if len({len(one) for folder in numbers for one in folder}) != 1:
        return False
    image_places, mask_places = (_varying_places(folder) for folder in numbers)
    return image_places != mask_places


def _without_common(names: list[list[Token]]) -> list[tuple[Token, ...]]:
    """Leave out the words and numbers that are the same in all names; of unlike names, those at start and end."""
    if len({len(one) for one in names}) == 1:
        places = _varying_places(names)
        return [tuple(one[place] for place in places) for one in names]
    shortest = min((len(one) for one in names), default=0)
    start = next((n for n in range(shortest) if len({one[n] for one in names}) > 1), shortest)
    end = next((n for n in range(shortest - start) if len({one[-1 - n] for one in names}) > 1), shortest - start)
    return [tuple(one[start : len(one) - end]) for one in names]


def _varying_places(names: list[list[Token]]) -> list[int]:
    return [place for place, column in enumerate(zip(*names, strict=True)) if len(set(column)) > 1]


def _numbers(tokens: list[Token]) -> list[Token]:
    return [one for one in tokens if isinstance(one, int)]


def _left_over(
    images: Sequence[Path], image_keys: Sequence[Hashable], masks: Sequence[Path], mask_keys: Sequence[Hashable]
) -> tuple[int, list[str]]:
    """Return how many files have no partner or several, and what to say of them."""
    num_left, words = 0, []
    sides = (("image", "mask", images, image_keys, mask_keys), ("mask", "image", masks, mask_keys, image_keys))
    for side, other, paths, own, others in sides:
        times, present = Counter(own), set(others)
        lonely = [path.name for path, key in zip(paths, own, strict=True) if key not in present]
        alike = [path.name for path, key in zip(paths, own, strict=True) if times[key] > 1]
        num_left += len(lonely) + len(alike)
        if lonely:
            words.append(f"no {other} for {_first_three(lonely)}")
        if alike:
            words.append(f"{side}s that nothing tells apart: {_first_three(alike)}")
    return num_left, words


def _first_three(names: list[str]) -> str:
    ordered = natsorted(names)
    return f"{', '.join(ordered[:3])}{', …' if len(ordered) > 3 else ''}"
