"""Whether the files of a data set speak one language: the same number means the same in all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from stackseg.dataset.channels import ColourPolicy
from stackseg.dataset.files.stack import StackInfo
from stackseg.dataset.specimens import Specimen
from stackseg.errors import DataError

_GREY = ("grey", "inverted grey")


def require_agreement(specimens: Sequence[Specimen], colour: ColourPolicy) -> None:
    """Refuse images or masks that do not go together, naming two files.

    Images have to agree in type, channels, bits, palette and in what their samples mean; grey and RGB may stand side by
    side where `data.colour` converts. Masks have to agree within a specimen. Specimens may differ, for the class table
    names all their codes, but not where one code means two things: another palette, or grey drawn the other way round.

    Raises
    ------
    DataError
        Two files do not agree.
    """
    images = [info for one in specimens for info in _image_files(one)]
    for info in images:
        first = images[0]
        _require_same_pixels(info, first, colour)
        mixed = colour != "keep" and {first.encoding.kind, info.encoding.kind} == {"grey", "RGB"}
        if problem := "" if mixed else info.encoding.conflict(first.encoding):
            raise _disagree(problem, info, first, "convert all images to one kind, such as Fiji: Image > Type > 8-bit")
        if info.dtype == first.dtype and info.encoding.bits != first.encoding.bits:
            problem = f"{info.encoding.bits} bits a sample, not {first.encoding.bits} bits"
            raise _disagree(problem, info, first, "bring all images to one scale: their intensities are compared")
    remedy = "save all masks alike, for instance as RGB (Fiji: Image > Type > RGB Color), whose colours say the class"
    for specimen in specimens:
        _require_alike(_mask_files(specimen), remedy)
    for kinds in (_GREY, ("palette",)):
        _require_alike((i for one in specimens for i in _mask_files(one) if i.encoding.kind in kinds), remedy)


def fitting_colour(specimen: Specimen, colour: ColourPolicy) -> ColourPolicy:
    """Return the policy under which a first specimen's images go together: grey for grey beside RGB."""
    channels = {info.num_channels for info in _image_files(specimen)}
    return "grey" if colour == "keep" and channels == {1, 3} else colour


def _require_same_pixels(info: StackInfo, first: StackInfo, colour: ColourPolicy) -> None:
    if info.num_channels not in ((1, 3) if colour != "keep" else (first.num_channels,)):
        same = f"{first.num_channels}, as {first.path} has"
        raise DataError(
            f"{info.num_channels} channels",
            expected=same if colour == "keep" else f"1 or 3, for data.colour is {colour}",
            where=str(info.path),
            remedy="set data.colour in params.yaml to grey or rgb to convert all"
            if colour == "keep"
            else "give all images the same channels, and set data.colour to keep",
        )
    if info.dtype != first.dtype:
        raise DataError(
            f"pixels of type {info.dtype}",
            expected=f"{first.dtype}, as {first.path} has",
            where=str(info.path),
            remedy="convert all images to one type: their intensities are compared",
        )


def _require_alike(files: Iterable[StackInfo], remedy: str) -> None:
    first: StackInfo | None = None
    for info in files:
        first = first or info
        if problem := info.encoding.conflict(first.encoding):
            raise _disagree(problem, info, first, remedy)


def _disagree(problem: str, info: StackInfo, first: StackInfo, remedy: str) -> DataError:
    found, _, expected = problem.partition(", not ")
    return DataError(found, expected=f"{expected}, as {first.path} has", where=str(info.path), remedy=remedy)


def _image_files(specimen: Specimen) -> Iterator[StackInfo]:
    planes = specimen.labelled[:1] if specimen.is_stack else specimen.labelled
    return (specimen.image_file(z).info for z in planes)


def _mask_files(specimen: Specimen) -> Iterator[StackInfo]:
    planes = specimen.labelled[:1] if specimen.is_stack else specimen.labelled
    return (specimen.mask_file(z).info for z in planes)
