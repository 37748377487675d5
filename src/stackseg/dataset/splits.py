"""Split annotated planes into training, validation and test without leakage."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stackseg.errors import DataError, ParamsError
from stackseg.params.split import SplitParams

Part = Literal["training", "validation", "test", "gap", "unused"]


@dataclass(frozen=True, order=True)
class PlaneRef:
    """An annotated plane: its specimen and its number, counted from 0."""

    specimen: str
    z: int

    def __str__(self) -> str:
        return f"{self.specimen}/{self.z}"


def assign_parts(
    planes: Sequence[PlaneRef], split: SplitParams, seed: int, groups: Mapping[PlaneRef, str] | None = None
) -> dict[PlaneRef, Part]:
    """Give every annotated plane its part.

    The test part depends on neither `fold` nor `folds`: folds only rotate the validation part.

    Parameters
    ----------
    planes
        Every annotated plane.
    split
        Method and shares.
    seed
        Shuffles specimens, groups and random planes; blocks and explicit planes need none.
    groups
        Group of every plane, for method ``groups``.

    Raises
    ------
    DataError
        A part would stay empty.
    ParamsError
        Planes are named that do not exist or are named twice.
    """
    ordered = sorted(planes)
    if split.method == "explicit":
        parts = _explicit(ordered, split)
    elif split.method == "blocks":
        parts = _blocks(ordered, split)
    else:
        parts = _by_unit(ordered, split, seed, groups or {})
    for part in ("training", "validation", "test"):
        if part not in parts.values():
            raise DataError(
                f"the {part} part is empty: {len(ordered)} annotated planes, split.method {split.method}",
                expected="planes in training, validation and test",
                remedy=_remedy(len(ordered), split),
            )
    return parts


def _remedy(num_planes: int, split: SplitParams) -> str:
    if num_planes < 3:
        return "annotate at least three planes, better ten, far apart"
    if split.fold is not None:
        return "lower split.folds: there are fewer units than folds"
    if split.method == "blocks" and split.gap:
        return "set split.gap to 0 (and read the leakage figure), or name the planes by split.method: explicit"
    if split.method in ("specimens", "groups"):
        return f"at least three {split.method} are needed; or take split.method: blocks"
    return "raise split.validation or split.test, or name the planes by split.method: explicit"


def _blocks(ordered: Sequence[PlaneRef], split: SplitParams) -> dict[PlaneRef, Part]:
    parts: dict[PlaneRef, Part] = {}
    for specimen in dict.fromkeys(ref.specimen for ref in ordered):
        refs = [ref for ref in ordered if ref.specimen == specimen]
        if len(refs) < 3:
            # too few planes to cut; another specimen may supply the other parts
            parts.update(dict.fromkeys(refs, "training"))
            continue
        num_test = max(1, round(split.test * len(refs)))
        parts.update(dict.fromkeys(refs[-num_test:], "test"))
        kept = [ref for ref in refs[:-num_test] if refs[-num_test].z - ref.z > split.gap]
        parts.update(dict.fromkeys(refs[len(kept) : -num_test], "gap"))
        first, last = _validation_range(len(kept), len(refs), split)
        validation = kept[first:last]
        parts.update(dict.fromkeys(validation, "validation"))
        for ref in kept[:first] + kept[last:]:
            near = bool(validation) and min(abs(ref.z - other.z) for other in validation) <= split.gap
            parts[ref] = "gap" if near else "training"
    return parts


def _validation_range(num_kept: int, num_all: int, split: SplitParams) -> tuple[int, int]:
    if split.fold is not None:
        return split.fold * num_kept // split.folds, (split.fold + 1) * num_kept // split.folds
    return max(0, num_kept - max(1, round(split.validation * num_all))), num_kept


def _by_unit(
    ordered: Sequence[PlaneRef], split: SplitParams, seed: int, groups: Mapping[PlaneRef, str]
) -> dict[PlaneRef, Part]:
    def unit(ref: PlaneRef) -> Hashable:
        if split.method == "specimens":
            return ref.specimen
        return groups[ref] if split.method == "groups" else ref

    units = list(dict.fromkeys(unit(ref) for ref in ordered))
    random.Random(seed).shuffle(units)
    num_test = max(1, round(split.test * len(units)))
    rest = units[num_test:]
    if split.fold is None:
        validation = set(rest[: max(1, round(split.validation * len(units)))])
    else:
        validation = set(rest[split.fold :: split.folds])
    test = set(units[:num_test])
    return {
        ref: "test" if unit(ref) in test else "validation" if unit(ref) in validation else "training" for ref in ordered
    }


def _explicit(ordered: Sequence[PlaneRef], split: SplitParams) -> dict[PlaneRef, Part]:
    named = split.explicit
    parts: dict[PlaneRef, Part] = {}
    wanted: tuple[tuple[Part, list[str]], ...] = (
        ("validation", named.validation),
        ("test", named.test),
        ("unused", named.unused),
    )
    for part, ranges in wanted:
        for text in ranges:
            specimen, _, numbers = text.rpartition("/")
            first, _, last = numbers.partition("-")
            chosen = [
                ref
                for ref in ordered
                if ref.specimen == specimen and (numbers == "*" or int(first) <= ref.z <= int(last or first))
            ]
            if not chosen:
                raise ParamsError(
                    f"{text} names no annotated plane",
                    where=f"split.explicit.{part}",
                    remedy=f"annotated are e.g. {ordered[0]} and {ordered[-1]}; `stackseg check` lists the planes",
                )
            for ref in chosen:
                if parts.get(ref, part) != part:
                    raise ParamsError(
                        f"{ref} is named for {parts[ref]} and for {part}",
                        where="split.explicit",
                        remedy="name it once",
                    )
                parts[ref] = part
    if split.fold is not None:
        # folds take the place of the named validation part, among all that is neither test nor unused
        rest = [ref for ref in ordered if parts.get(ref, "training") in ("training", "validation")]
        validating = set(rest[split.fold * len(rest) // split.folds : (split.fold + 1) * len(rest) // split.folds])
        parts |= {ref: "validation" if ref in validating else "training" for ref in rest}
    return {ref: parts.get(ref, "training") for ref in ordered}
