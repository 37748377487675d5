"""Which planes of a stack may be suggested: neither annotated ones, nor those of the test part or beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from stackseg.dataset.channels import PlaneSource
from stackseg.dataset.fingerprints import pixel_digest
from stackseg.dataset.labels.table import LabelTable
from stackseg.dataset.records import PARTS, Catalog
from stackseg.dataset.specimens import Specimen
from stackseg.dataset.splits import Part, PlaneRef
from stackseg.params.split import SplitParams


@dataclass(frozen=True)
class KnownPlanes:
    """SHA-256 of the decoded pixels of planes that have a mask somewhere, and of those of a test part among them."""

    annotated: frozenset[str]
    test: frozenset[str]


@dataclass(frozen=True)
class Candidates:
    """Plane numbers of one stack, each in rising order."""

    num_planes: int
    allowed: tuple[int, ...]
    annotated: tuple[int, ...]
    kept_from: tuple[int, ...]
    """Planes without a mask that are no candidates, for a test plane is near."""


def find_known(
    specimens: Iterable[Specimen],
    table: LabelTable | None,
    parts: Mapping[PlaneRef, Part],
    catalog: Catalog | None,
    seen: Iterable[str],
) -> KnownPlanes:
    """Return what is annotated and what is tested on, by the pixels of the images.

    Parameters
    ----------
    specimens
        Those of data/, whose annotated planes are read.
    table
        The classes, which say what of a mask is drawn; without them every mask counts.
    parts
        The split of these planes; empty where there are too few for one.
    catalog
        The split that the last training went by, if there was one.
    seen
        Digests of planes that a model has seen.
    """
    annotated, test = set(seen), set()
    for specimen in specimens:
        for z in specimen.labelled if table is None else specimen.annotated(table):
            digest = pixel_digest(specimen.plane(z))
            annotated.add(digest)
            if parts.get(PlaneRef(specimen.name, z)) == "test":
                test.add(digest)
    for _, record in catalog.planes(*PARTS) if catalog is not None else ():
        if record.part == "test":
            test.add(record.image_sha256)
    return KnownPlanes(frozenset(annotated | test), frozenset(test))


def find_candidates(
    source: PlaneSource,
    known: KnownPlanes,
    split: SplitParams,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> Candidates:
    """Read every plane of a stack and return which may be suggested.

    Planes within `split.gap` of a test plane are not; nor is any plane of a specimen that is tested on, where whole
    specimens are.
    """
    annotated, test = [], []
    for z in range(len(source)):
        digest = pixel_digest(source.plane(z))
        if digest in known.annotated:
            annotated.append(z)
        if digest in known.test:
            test.append(z)
        progress(z + 1, len(source))
    reach = len(source) if split.method == "specimens" else split.gap
    without = [z for z in range(len(source)) if z not in set(annotated)]
    kept_from = [z for z in without if any(abs(z - one) <= reach for one in test)]
    return Candidates(
        num_planes=len(source),
        allowed=tuple(z for z in without if z not in set(kept_from)),
        annotated=tuple(annotated),
        kept_from=tuple(kept_from),
    )


def default_distance(stack: Candidates, num: int, split: SplitParams) -> int:
    """Return how far apart suggested planes of a stack lie at least, from each other and from annotated ones.

    It is half of what it would be if all of them were evenly spaced, and more than `split.gap`.
    """
    return max(split.gap + 1, stack.num_planes // (2 * (num + len(stack.annotated))))


def far_from(z: int, others: Sequence[int], distance: int) -> bool:
    """Return whether plane z lies at least so far from all others."""
    return all(abs(z - one) >= distance for one in others)
