"""What follows from the parts of a catalogue's planes: whether they can be trained on, shares, and what to warn of."""

from __future__ import annotations

from collections.abc import Iterator

from stackseg.dataset.records import PARTS, Catalog
from stackseg.dataset.splits import Part
from stackseg.errors import DataError


def with_summary(catalog: Catalog) -> Catalog:
    """Return a catalogue with its class fractions and warnings.

    Raises
    ------
    DataError
        The training part cannot be trained on.
    """
    require_trainable(catalog, catalog.data)
    return catalog.model_copy(
        update={
            "class_fractions": {part: _fractions(catalog, part) for part in PARTS if catalog.planes(part)},
            "warnings": tuple(_warnings(catalog)),
        }
    )


def require_trainable(catalog: Catalog, where: str) -> None:
    """Refuse a training part without contrast, or without a class.

    Raises
    ------
    DataError
        All its planes are constant, or a class has no pixel in it.
    """
    training = catalog.planes("training")
    if all(plane.constant for _, plane in training):
        raise DataError(
            f"all {len(training)} training planes are constant", where=where, remedy="check the images' export"
        )
    # of constant planes none is drawn
    drawn = [plane.class_pixels for _, plane in training if not plane.constant]
    missing = [one.name for one, n in zip(catalog.classes, map(sum, zip(*drawn, strict=True)), strict=True) if n == 0]
    if missing:
        raise DataError(
            f"class {', '.join(missing)} has no pixel in the training part",
            expected="every class of data.classes in training",
            where=where,
            remedy="choose another split (split.method: explicit), annotate more, or drop it from data.classes",
        )


def _fractions(catalog: Catalog, part: Part) -> tuple[float, ...]:
    pixels = catalog.class_pixels(part)
    total = max(1, sum(pixels))
    return tuple(round(n / total, 6) for n in pixels)


def _warnings(catalog: Catalog) -> Iterator[str]:
    for part in ("validation", "test"):
        pixels = catalog.class_pixels(part)
        for one, n in zip(catalog.classes, pixels, strict=True):
            if n == 0:
                yield f"class {one.name} has no pixel in the {part} part: its score there is null"
    constant = [str(ref) for ref, plane in catalog.planes(*PARTS) if plane.constant]
    if constant:
        yield f"{len(constant)} constant planes (first: {constant[0]})"
    leakage = catalog.leakage
    if leakage.leaks:
        yield (
            f"the split leaks: held-out planes resemble their nearest training plane by {leakage.nearest:.2f}, "
            f"far-apart planes each other by {leakage.far:.2f} (leakage {leakage.figure:.2f}; worst "
            f"{leakage.worst_plane} ~ {leakage.worst_nearest}, {leakage.worst_similarity:.2f}): scores flatter"
        )
    sizes = {s.voxel_size_zyx_um for s in catalog.specimens if s.voxel_size_zyx_um is not None}
    if len(sizes) > 1:
        yield f"specimens differ in voxel size: {', '.join(str(one) for one in sorted(sizes, key=str))} µm"
    for specimen in catalog.specimens:
        if specimen.not_annotated:
            yield (
                f"{specimen.name}: {', '.join(specimen.not_annotated)} not annotated (data.partial), so neither "
                f"trained nor scored there, and counted as {catalog.classes[0].name}"
            )
        for note in specimen.notes:
            yield f"{specimen.name}: {note}"
