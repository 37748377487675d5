"""What annotating suggested planes gives, against evenly spaced, random and foreground-aware random ones.

    python benchmarks/suggest.py IMAGES MASKS [--test 0-55,56-111] [--start 4] [--num 4] [--rounds 2] [--seeds 0 1 2]

All masks but those of a few planes are hidden. Each method then chooses planes round by round, whose masks are shown to
a new training; the first model is the same for all. A line of JSON for each training says how much is annotated, with
validation, and what the test part scores. The test part is what `--test` names, or a quarter of the pages at random.
Pages count as independent: none is too near to another.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from new_project import pair

from stackseg.catalog.build import build_catalog
from stackseg.dataset.specimens import open_specimen
from stackseg.dataset.splits import PlaneRef
from stackseg.environment import apply_quiet_environment
from stackseg.evaluation.evaluate import count_planes
from stackseg.model.bundle import Bundle, load_bundle
from stackseg.model.confusion import iou_per_class, mean_iou
from stackseg.model.devices import pick_device
from stackseg.params import Params
from stackseg.suggestion.choose import Method, choose_planes
from stackseg.suggestion.score import foreground, score_planes
from stackseg.training.train import Machine, train

NAME = "stack"
NUM_VALIDATION = 4
SETTINGS: dict[str, Any] = {
    "split.method": "explicit",
    "split.gap": 0,
    "model.encoder": "tu-test_resnet",  # quick on one core
    "train.patch_size": 64,
    "train.patches_per_epoch": 384,
    "train.batch_size": 8,
    "train.epochs": 12,
    "train.lr": 0.004,
    "train.validate_every": 4,
}


@dataclass(frozen=True)
class Pool:
    """The pages of a set by their use: the test part, the validation part and those that may be annotated."""

    data: Path
    settings: dict[str, Any]
    test: tuple[int, ...]
    validation: tuple[int, ...]
    others: tuple[int, ...]

    def train(self, annotated: Sequence[int], seed: int, model: Path) -> tuple[Bundle, list[float | None], float]:
        """Train on annotated pages; return the model, the IoU of each class of the test part and their mean."""
        parts = {"validation": self.validation, "test": self.test, "unused": {*self.others} - {*annotated}}
        explicit = {f"split.explicit.{part}": [f"{NAME}/{z}" for z in pages] for part, pages in parts.items()}
        params = Params().override({**self.settings, **explicit, "seed": seed})
        catalog = build_catalog(self.data, params)
        train(params, catalog, data=self.data, model=model, checkpoints=model / ".checkpoints", machine=Machine())
        bundle = load_bundle(model, pick_device("auto"))
        counts_cc = np.sum([one.counts_cc for one in count_planes(bundle, catalog, self.data, params.evaluate)], axis=0)
        return bundle, iou_per_class(counts_cc), mean_iou(counts_cc) or 0.0


def main() -> None:
    """Train after each choice; print a line of JSON for each and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--test", type=pages, default=(), help="pages of the test part, such as 0-55,112-167")
    parser.add_argument("--start", type=int, default=4, help="pages annotated at first")
    parser.add_argument("--num", type=int, default=4, help="pages chosen in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", nargs="*", default=[], help="other params, key=value")
    given = parser.parse_args()
    apply_quiet_environment()
    scores: dict[tuple[str, int], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        (data / NAME).mkdir(parents=True)
        (data / NAME / "images.tif").symlink_to(given.images.resolve())
        (data / NAME / "masks.tif").symlink_to(given.masks.resolve())
        settings = {**SETTINGS, "data.classes": classes_of(data / NAME), **dict(map(pair, given.set))}
        for seed in given.seeds:
            pool = draw_pool(data, settings, given.test, seed)
            for method, num, score in follow(pool, given.start, given.num, given.rounds, seed, Path(temporary)):
                scores[method, num].append(score)
    for (method, num), of_seeds in sorted(scores.items(), key=lambda one: one[0][1]):
        gains = np.subtract(of_seeds, scores.get(("random", num), of_seeds))
        print(
            f"{num:3} pages  {method:10}  mean IoU {np.mean(of_seeds):.3f} ({min(of_seeds):.3f} to {max(of_seeds):.3f})"
            f"  against random {gains.mean():+.3f} ({gains.min():+.3f} to {gains.max():+.3f})"
        )


def pages(text: str) -> tuple[int, ...]:
    """Return the numbers that 0-55,112-167 names."""
    ends = [[*map(int, part.split("-"))] for part in text.split(",")]
    return tuple(z for part in ends for z in range(part[0], part[-1] + 1))


def classes_of(folder: Path) -> list[dict[str, Any]]:
    """Return a class for each value of the masks."""
    specimen = open_specimen(folder, NAME)
    values = sorted({int(value) for z in specimen.labelled for value in np.unique(specimen.raw_mask(z))})
    return [{"name": f"class_{value}", "raw": value, "display": f"#{40 * value % 256:02x}ff00"} for value in values]


def draw_pool(data: Path, settings: dict[str, Any], test: Sequence[int], seed: int) -> Pool:
    """Draw the validation part, and the test part where none is named."""
    num_pages = len(open_specimen(data / NAME, NAME))
    order = [int(z) for z in np.random.default_rng(seed).permutation(num_pages) if z not in set(test)]
    if not test:
        test, order = order[: num_pages // 4], order[num_pages // 4 :]
    return Pool(data, settings, tuple(test), tuple(order[:NUM_VALIDATION]), tuple(order[NUM_VALIDATION:]))


def follow(pool: Pool, start: int, num: int, rounds: int, seed: int, folder: Path) -> Iterable[tuple[str, int, float]]:
    """Yield method, annotated pages and mean IoU, after the start and after each round of each method."""
    first = pool.others[:start]
    first_model, *scored = pool.train(first, seed, folder / f"{seed}-start")
    yield report("start", pool, first, seed, *scored)
    for method in get_args(Method):
        annotated, bundle = list(first), first_model
        for round_ in range(rounds):
            annotated += choose(method, pool, bundle, annotated, num, seed)
            bundle, *scored = pool.train(annotated, seed, folder / f"{seed}-{method}-{round_}")
            yield report(method, pool, annotated, seed, *scored)


def choose(method: Method, pool: Pool, bundle: Bundle, annotated: Sequence[int], num: int, seed: int) -> list[int]:
    """Return the pages that a method chooses next, as `stackseg suggest` does."""
    hidden = sorted({*pool.others} - {*annotated})
    ranked = method in ("entropy", "foreground")
    specimen = open_specimen(pool.data / NAME, NAME)
    scored = [score for _, score in score_planes(specimen, bundle, hidden, "flips")] if ranked else []
    scores = foreground(scored) if method == "foreground" else [one.uncertainty for one in scored]
    refs = [PlaneRef(NAME, z) for z in hidden]
    num_annotated = len(annotated) + len(pool.validation)
    chosen = choose_planes(method, refs, num, {NAME: 1}, scores=scores, num_annotated=num_annotated, seed=seed)
    return [ref.z for ref in chosen]


def report(
    method: str, pool: Pool, annotated: Sequence[int], seed: int, iou: list[float | None], mean: float
) -> tuple[str, int, float]:
    """Print a line about one training."""
    specimen = open_specimen(pool.data / NAME, NAME)
    area = sum(np.prod(specimen.shape_yx(z)) for z in (*annotated, *pool.validation))
    line = {
        "seed": seed,
        "method": method,
        "annotated": len(annotated),
        "megapixels": round(float(area) / 1e6, 3),
        "mean_iou": round(mean, 4),
        "iou": [None if one is None else round(one, 3) for one in iou],
    }
    print(json.dumps(line), flush=True)
    return method, len(annotated), mean


if __name__ == "__main__":
    main()
