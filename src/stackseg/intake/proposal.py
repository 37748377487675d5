"""Settings that suit a data set, each with its reason, from its fingerprint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stackseg.intake.fingerprint import Fingerprint
from stackseg.params.model import LITE, LITE_ENCODERS
from stackseg.params.split import SplitParams
from stackseg.params.train import TrainParams

ALIKE = 0.2
"""Likeness from which on a neighbour is no independent plane; the leakage figure warns from the same value."""
STRANGERS = 0.05
"""Likeness below which neighbours are images of different things."""
UNEQUAL_EXPOSURE = 0.15
"""Exposure from which on each plane is standardised by itself."""
WHOLE_FIELD = 192
"""Side in pixels from which on a plane can be standardised by itself; smaller tiles hold one class or two."""
PASSES = 24
"""How often training sees each annotated pixel, before the limits below."""
LEAST_EPOCHS, MOST_EPOCHS = 30, 60


@dataclass(frozen=True)
class Proposal:
    """A dotted key of params.yaml, the value that suits the data, and why."""

    key: str
    value: Any
    reason: str

    @property
    def section(self) -> str:
        """Section of params.yaml."""
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """Name within the section."""
        return self.key.partition(".")[2]


def propose(found: Fingerprint) -> list[Proposal]:
    """Return settings for a data set, in the order of params.yaml.

    The figures behind the limits are in docs/explanation/proposals.md.
    """
    return [*_split(found), *_intensity(found), *_model(), *_training(found)]


def _split(found: Fingerprint) -> Iterator[Proposal]:
    nearest = found.likeness.get(min(found.likeness)) if found.likeness else None
    strangers = nearest is not None and nearest < STRANGERS
    if not found.one_size or (strangers and (found.exposure or 0) >= UNEQUAL_EXPOSURE and not _tiles(found)):
        why = "sizes differ" if not found.one_size else "neighbours show different things in different light"
        yield Proposal("split.method", "random", f"{why}: these are independent images, no slices of one stack")
        yield Proposal("split.gap", 0, "independent images need no gap")
        return
    yield Proposal("split.method", "blocks", "slices of a stack: neighbours stay together in one part")
    wanted = next((lag - 1 for lag, alike in found.likeness.items() if alike < ALIKE), 0)
    afforded = len(found.shapes_yx) // 10 * found.spacing
    gap = min(wanted, afforded)
    if wanted <= afforded:
        reason = f"slices {gap + 1} apart are alike by less than {ALIKE:g} (1: copies, 0: strangers)"
    else:
        reason = f"a gap of {wanted} would make the parts strangers, but cost too many of {len(found.shapes_yx)} planes"
    yield Proposal("split.gap", gap, reason)


def _intensity(found: Fingerprint) -> Iterator[Proposal]:
    if found.exposure is None:
        return
    figure = f"the grey value of one class varies by {found.exposure:.2f} of the contrast from plane to plane"
    if found.exposure < UNEQUAL_EXPOSURE:
        yield Proposal("intensity.scope", "dataset", f"{figure}: exposures are equal, and grey values mean something")
    elif _tiles(found):
        yield Proposal("intensity.scope", "dataset", f"{figure}, but planes are too small to be standardised alone")
    else:
        yield Proposal("intensity.scope", "plane", f"{figure}: each plane is standardised by itself")


def _model() -> Iterator[Proposal]:
    yield Proposal("model.architecture", "Linknet", "trains and predicts twice as fast as Unet on this encoder")
    yield Proposal("model.encoder", LITE_ENCODERS[0], "quick on a CPU, and its weights come with a package")
    yield Proposal("model.encoder_weights", LITE, "what photographs taught it need not be learned from few planes")


def _training(found: Fingerprint) -> Iterator[Proposal]:
    defaults = TrainParams()
    smallest = min(map(min, found.shapes_yx))
    side = max(32, min(defaults.patch_size, smallest // 32 * 32))
    why = "" if side == defaults.patch_size else f": the smallest plane has {smallest} pixels"
    yield Proposal("train.patch_size", side, f"patches fit into every plane{why}")
    yield Proposal("train.batch_size", 4, "twice the steps of a batch of 8 in the same time")
    yield Proposal("train.lr", 0.002, "the schedule ends near 0, so it may begin high")
    per_pass = found.megapixels * 1e6 * (1 - SplitParams().validation - SplitParams().test) / side**2
    wanted = round(PASSES * per_pass / defaults.patches_per_epoch)
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, wanted))
    passes = epochs * defaults.patches_per_epoch / per_pass
    yield Proposal(
        "train.epochs", epochs, f"each pixel of {found.megapixels:.1f} megapixels is seen {passes:.0f} times"
    )


def _tiles(found: Fingerprint) -> bool:
    return min(map(min, found.shapes_yx)) < WHOLE_FIELD
