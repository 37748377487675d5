"""Match single image files with their mask files by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from natsort import natsorted

from stackseg.errors import DataError

# only what is known to be a suffix: in `images.010` the end is the plane's number
_SUFFIX = re.compile(r"(\.ome)?\.(tiff?|btf|tf2|tf8|png)$", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


def natural_pairs(images: Sequence[Path], masks: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pair images with masks in the order people count (2 before 10), each with exactly one other.

    Names without suffix must agree; else the last number in them must (`images.010` and `mitos_3D.010`), where it is
    unlike in all images and in all masks.

    Raises
    ------
    DataError
        Some file has no partner or several.
    """
    problem = ""
    for key in (_stem, _last_number):
        image_of, mask_of = ({key(path): path for path in paths} for paths in (images, masks))
        unique = len(image_of) == len(images) and len(mask_of) == len(masks)
        if unique and None not in image_of and image_of.keys() == mask_of.keys():
            return [(image, mask_of[key(image)]) for image in natsorted(images, key=lambda path: path.name)]
        problem = problem or _mismatch(images, masks)
    raise DataError(
        problem,
        expected="a mask for each image, of the same name or the same last number",
        where=str(images[0].parent if images else masks[0].parent if masks else "."),
        remedy="rename the files so that they agree, or set the odd ones aside",
    )


def _stem(path: Path) -> str:
    return _SUFFIX.sub("", path.name)


def _last_number(path: Path) -> int | None:
    numbers = _NUMBER.findall(_stem(path))
    return int(numbers[-1]) if numbers else None


def _mismatch(images: Sequence[Path], masks: Sequence[Path]) -> str:
    """Say how many files there are and which names are the first to find no partner, or stand twice."""
    sides = {"image": Counter(map(_stem, images)), "mask": Counter(map(_stem, masks))}
    words = [f"{len(images)} images and {len(masks)} masks"]
    for side, other, paths in (("image", "mask", images), ("mask", "image", masks)):
        lonely = [path.name for path in natsorted(paths, key=lambda path: path.name) if _stem(path) not in sides[other]]
        if lonely:
            words.append(f"no {other} for {', '.join(lonely[:3])}{', …' if len(lonely) > 3 else ''}")
        twice = natsorted(stem for stem, times in sides[side].items() if times > 1)
        if twice:
            words.append(f"several {side}s called {twice[0]}")
    return "; ".join(words)
