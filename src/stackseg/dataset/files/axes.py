"""What the dimensions of an image file mean, and how large its voxels are, from its own metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from stackseg.errors import DataError

VoxelSize = tuple[float | None, float | None, float | None]

_UM_PER_UNIT: dict[str, float] = {
    "pm": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "um": 1.0,
    "µm": 1.0,  # micro sign, as Fiji and OME write it
    "μm": 1.0,  # Greek mu, which looks the same
    "\\u00b5m": 1.0,  # ImageJ's ASCII spelling
    "micron": 1.0,
    "microns": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "picometer": 1e-6,  # spelt out, as OME-Zarr does
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
# inch is left out on purpose: where a micrograph says inch, it means the dpi of a screen or printer
_NARROWEST_PLANE = 5


def name_axes(axes: str, shape: tuple[int, ...], *, where: str, option: str | None = None) -> str:
    """Return the meaning of a file's dimensions, a letter of Z, C, S, Y, X for each, or refuse what is ambiguous.

    Parameters
    ----------
    axes
        tifffile's letters for the dimensions longer than one, Y and X always among them. I and Q stand for
        pages without metadata: they are planes.
    shape
        Sizes of these dimensions.
    where
        File named in messages.
    option
        The user's own letters (`--axes`), which override all else.
    """
    if option is not None:
        return _given_axes(axes, shape, where=where, option=option)
    others = [letter for letter in axes if letter not in "YX"]
    plain = [letter for letter in others if letter in "IQ"]
    sizes = ", ".join(f"{letter}={size}" for letter, size in zip(axes, shape, strict=True))
    problem = ""
    if axes.count("Y") != 1 or axes.count("X") != 1:
        problem = "it does not tell rows (Y) from columns (X)"
    elif unknown := [letter for letter in others if letter not in "IQZCS"]:
        time = "T is time" if unknown == ["T"] else f"{', '.join(unknown)} are neither planes nor channels"
        problem = f"{time}, and planes (Z) and channels (C) are what is segmented"
    elif "C" in others and "S" in others:
        problem = "channels (C) and colour samples (S) exclude each other"
    elif plain and len([letter for letter in others if letter != "S"]) > 1:
        problem = "it does not say which dimension holds the planes"
    elif plain and shape[axes.index("X")] < _NARROWEST_PLANE:
        problem = f"planes {shape[axes.index('X')]} pixels wide look like channels stored last"
    if problem:
        raise DataError(f"its dimensions are {sizes}: {problem}", where=where, remedy=_advice(axes, shape))
    return "".join("Z" if letter in plain else letter for letter in axes)


def refuse_ambiguous_channels(axes: str, shape: tuple[int, ...], *, where: str) -> None:
    """Raise for what `tifffile.imwrite` calls channels or colours unasked, and may as well be grey planes."""
    sizes = ", ".join(f"{letter}={size}" for letter, size in zip(axes, shape, strict=True))
    ambiguous = "S" if "S" in axes else "C"
    planes, channels = (axes.replace(ambiguous, letter).translate(str.maketrans("QI", "ZZ")) for letter in "ZC")
    either = f"`--axes {planes}` for planes or " if planes.count("Z") == 1 else ""
    raise DataError(
        f"its dimensions are {sizes}: tifffile writes {shape[axes.index(ambiguous)]} grey planes and as many channels "
        "alike unless the axes are named",
        where=where,
        remedy=f"say what they are: {either}`--axes {channels}` for channels",
    )


def _given_axes(axes: str, shape: tuple[int, ...], *, where: str, option: str) -> str:
    """Return the user's letters, checked against the file."""
    letters = option.upper()
    if len(set(letters)) != len(letters) or not set("YX") <= set(letters) <= set("ZCYX"):
        raise DataError(
            f"`--axes {option}`",
            expected="the letters Y and X, and Z and C where there are any, each once",
            where=where,
        )
    if len(shape) == 2:
        letters = letters.replace("Z", "").replace("C", "")  # one grey plane of a set whose other files hold more
    if len(letters) != len(shape):
        sizes = " × ".join(str(size) for size in shape)
        raise DataError(
            f"`--axes {option}` names {len(letters)} dimensions, and the file has {len(shape)} longer than one "
            f"({sizes}, read as {axes})",
            where=where,
            remedy=_advice(axes, shape),
        )
    return letters


def _advice(axes: str, shape: tuple[int, ...]) -> str:
    if len(shape) > 4 or axes.count("Y") != 1 or axes.count("X") != 1:
        return (
            "name the dimensions with `--axes`, such as `--axes ZYX`, or save planes and channels alone "
            "(Fiji: Image > Hyperstacks > Make Subset)"
        )
    fixed = {"Y", "X", *({"Z"} if "Z" in axes else set()), *({"C"} if "C" in axes or "S" in axes else set())}
    free = [letter for letter in "ZC" if letter not in fixed]
    words = ["C" if letter == "S" and "C" not in axes else letter for letter in axes]
    words = [letter if letter in fixed else (free.pop(0) if free else "?") for letter in words]
    if shape[axes.index("X")] < _NARROWEST_PLANE and len(shape) == 3:
        words = list("YXC")
    if "?" in words or len(set(words)) < len(words):
        return "name the dimensions with `--axes`, the letters Z, C, Y and X each at most once, such as `--axes ZCYX`"
    return f"say what they are with `--axes`, for instance `--axes {''.join(words)}`"


def ome_voxel_size(xml: str) -> VoxelSize | None:
    """Return (z, y, x) in micrometres from the first image of an OME-XML header, None where it does not say."""
    pixels = ElementTree.fromstring(xml).find(".//{*}Pixels")
    if pixels is None:
        return None
    unit = {axis: pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"}
    return _known(tuple(in_micrometres(pixels.get(f"PhysicalSize{axis}"), unit[axis]) for axis in "ZYX"))


def imagej_voxel_size(metadata: Mapping[str, Any], resolution_yx: tuple[Any, Any]) -> VoxelSize | None:
    """Return (z, y, x) in micrometres from ImageJ's description and the resolution tags (pixels per unit)."""
    unit = str(metadata.get("unit", ""))
    y, x = (_per_pixel(rational) for rational in resolution_yx)
    return _known(
        (
            in_micrometres(metadata.get("spacing"), str(metadata.get("zunit", unit))),
            in_micrometres(y, str(metadata.get("yunit", unit))),
            in_micrometres(x, unit),
        )
    )


def _per_pixel(rational: Any) -> float | None:
    match rational:
        case (int(pixels), int(units)) if pixels > 0 and units > 0:
            return units / pixels
    return None


def in_micrometres(value: Any, unit: str) -> float | None:
    """Return a length in micrometres, None where value or unit are not known."""
    factor = _UM_PER_UNIT.get(unit.strip().lower())
    try:
        size = abs(float(value)) * factor if factor is not None else 0.0
    except (TypeError, ValueError):
        return None
    return size if 0 < size < math.inf else None


def _known(size_zyx: tuple[float | None, ...]) -> VoxelSize | None:
    z, y, x = size_zyx
    return None if z is y is x is None else (z, y, x)
