"""How often the interval of a test part holds the score of the planes that were kept back.

    python benchmarks/coverage.py IMAGES MASKS --train 12 [--split random] [--test 15 40 80] [--set train.epochs=4 …]

A model is trained briefly on a few planes, and all others (the pool) are counted once. Then a test part is drawn from
the pool again and again, as a split draws it: single planes for --split random, a contiguous run of planes for
--split blocks, and its interval is computed as evaluate computes it. A line of JSON says for each size of the test part
in which share of the splits the interval held

- others: the score of all other planes of the pool. They are a sample, too: with n test planes of a pool of N even a
  perfect interval of independent planes holds their score less often than its confidence; `best` says how often
- pool: the score of the whole pool, of which the test planes are a part (a perfect interval holds it more often)
- endless: the score of the pool, where test planes are drawn from it with replacement (random only). A perfect interval
  holds it as often as its confidence says

with the Monte-Carlo error of the share, and how wide the interval was. In `--cache` the counts stay, for the next run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from new_project import new_project, pair
from scipy import stats

from stackseg.catalog.build import build_catalog
from stackseg.dataset.specimens import find_specimens
from stackseg.environment import apply_quiet_environment
from stackseg.evaluation.bootstrap import (
    Statistic,
    bootstrap_interval,
    group_into_blocks,
    mean_iou_of_same_classes,
)
from stackseg.evaluation.evaluate import count_planes
from stackseg.evaluation.object_scores import f1_at_half
from stackseg.model.bundle import load_bundle
from stackseg.model.confusion import Counts, iou_per_class
from stackseg.model.devices import pick_device
from stackseg.params import read_params
from stackseg.params.file import write_values
from stackseg.training.train import Machine, train

StatisticOf = Callable[[Counts], Statistic]
CONFIDENCE = 0.95
QUICK = {
    "train.epochs": 6,
    "train.patches_per_epoch": 64,
    "train.patch_size": 128,
    "train.batch_size": 4,
    "train.validate_every": 6,
}


def main() -> None:
    """Count, draw splits, and print a line of JSON for each size of the test part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--split", choices=["random", "blocks"], default="blocks")
    parser.add_argument("--train", type=int, default=3, help="planes that train; one in four of them chooses the epoch")
    parser.add_argument("--test", type=int, nargs="+", default=[10], help="planes of a test part")
    parser.add_argument("--block-planes", type=int, default=8)
    parser.add_argument("--crop", type=int, help="side in pixels of the middle of each plane that is used")
    parser.add_argument("--splits", type=int, default=400)
    parser.add_argument("--samples", type=int, default=1000, help="resamples of an interval")
    parser.add_argument("--set", nargs="*", default=[], help="params other than those proposed, key=value")
    parser.add_argument("--cache", type=Path, help="file of the counts (.npz)")
    arguments = parser.parse_args()
    apply_quiet_environment()
    cache: Path | None = arguments.cache and arguments.cache.resolve()
    if cache is not None and cache.exists():
        counted = dict(np.load(cache))
    else:
        counted = count_pool(arguments)
        if cache is not None:
            np.savez_compressed(cache, **counted)
    for num_test in arguments.test:
        found = simulate(counted, num_test, arguments)
        print(json.dumps({"set": arguments.images.parent.name, "split": arguments.split, **found}), flush=True)


def count_pool(arguments: argparse.Namespace) -> dict[str, Counts]:
    """Train on some planes; return the counts of the others, `counts_ucc` and, of objects, `objects_ut3`."""
    images, masks = arguments.images.resolve(), arguments.masks.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.crop:
            images, masks = (_cropped(one, folder / one.name, arguments.crop) for one in (images, masks))
        project = folder / "project"
        new_project(project, images, masks, QUICK | dict(map(pair, arguments.set)))
        os.chdir(project)
        write_values(
            Path("params.yaml"), {"split.method": "explicit", "split.explicit": _named(Path("data"), arguments)}
        )
        params = read_params(Path("params.yaml"))
        data = Path("data")
        catalog = build_catalog(data, params)
        train(params, catalog, data=data, model=Path("model"), checkpoints=Path("checkpoints"), machine=Machine())
        bundle = load_bundle(Path("model"), pick_device("auto"))
        planes = count_planes(bundle, catalog, data, params.evaluate)
        os.chdir("/")
    counted = {"counts_ucc": np.array([one.counts_cc for one in planes])}
    if catalog.instances:
        counted["objects_ut3"] = np.array([one.objects_t3 for one in planes])
    return counted


def simulate(counted: dict[str, Counts], num_test: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw test parts of so many planes; return for each score how often their intervals held it."""
    rng = np.random.default_rng(0)
    num_pool = len(counted["counts_ucc"])
    draw = _random_planes if arguments.split == "random" else _run_of_planes
    splits = list(draw(num_pool, num_test, arguments.splits, rng))
    block = 1 if arguments.split == "random" else arguments.block_planes
    found: dict[str, Any] = {"pool": num_pool, "test": num_test, "splits": len(splits), "block_planes": block}
    perfect = stats.norm.ppf((1 + CONFIDENCE) / 2) / math.sqrt(1 + num_test / max(1, num_pool - num_test))
    found["best"] = round(float(2 * stats.norm.cdf(perfect) - 1), 3)
    for name, (counts_u, statistic_of) in _scores(counted).items():
        whole = statistic_of(counts_u)(counts_u.sum(axis=0))
        held: dict[str, list[bool]] = {"others": [], "pool": [], "endless": []}
        widths: list[float] = []
        without: list[str] = []
        for chosen in splits:
            other = np.setdiff1d(np.arange(num_pool), chosen)
            targets = {"others": statistic_of(counts_u[other])(counts_u[other].sum(axis=0)), "pool": whole}
            ends = _ends(counts_u[chosen], statistic_of, chosen, block, arguments.samples)
            if isinstance(ends, str):
                without.append(ends)
                continue
            widths.append(ends[1] - ends[0])
            for target, value in targets.items():
                if value is not None:
                    held[target].append(ends[0] <= value <= ends[1])
            if arguments.split == "random" and whole is not None:
                chosen_again = rng.integers(num_pool, size=num_test)
                ends = _ends(counts_u[chosen_again], statistic_of, chosen_again, block, arguments.samples)
                if not isinstance(ends, str):
                    held["endless"].append(ends[0] <= whole <= ends[1])
        found[name] = {"score": None if whole is None else round(whole, 4)}
        found[name] |= {key: _share(values) for key, values in held.items() if values}
        if widths:
            found[name]["width"] = round(float(np.mean(widths)), 4)
        if without:
            found[name]["without"] = [len(without), without[0]]
    return found


def _ends(
    counts_u: Counts, statistic_of: StatisticOf, chosen: npt.NDArray[np.int64], block: int, num_samples: int
) -> tuple[float, float] | str:
    """Return both ends of the interval of a test part, or why there is none."""
    if block == 1:
        units, unit = [[place] for place in range(len(chosen))], "plane"
    else:
        units, unit = group_into_blocks(["set"] * len(chosen), chosen.tolist(), block), f"block of {block} planes"
    summed_u = np.array([counts_u[unit_].sum(axis=0) for unit_ in units])
    interval = bootstrap_interval(
        summed_u, statistic_of(summed_u), num_samples=num_samples, confidence=CONFIDENCE, seed=7, unit=unit
    )
    if interval.low is None or interval.high is None:
        return str(interval.reason)
    return interval.low, interval.high


def _scores(counted: dict[str, Counts]) -> dict[str, tuple[Counts, StatisticOf]]:
    counts_ucc = counted["counts_ucc"]

    def iou_of(index: int) -> Statistic:
        return lambda counts_cc: iou_per_class(counts_cc)[index]

    scores: dict[str, tuple[Counts, StatisticOf]] = {"mean IoU": (counts_ucc, mean_iou_of_same_classes)}
    for index in range(counts_ucc.shape[1]):
        scores[f"IoU {index}"] = (counts_ucc, lambda _, index=index: iou_of(index))
    if "objects_ut3" in counted:
        scores["F1"] = (counted["objects_ut3"], lambda _: f1_at_half)
    return scores


def _random_planes(
    num_pool: int, num_test: int, num_splits: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    for _ in range(num_splits):
        yield np.sort(rng.permutation(num_pool)[:num_test])


def _run_of_planes(
    num_pool: int, num_test: int, num_splits: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    starts = np.arange(num_pool - num_test + 1)
    if len(starts) > num_splits:
        starts = np.sort(rng.permutation(starts)[:num_splits])
    for start in starts:
        yield np.arange(start, start + num_test)


def _share(values: Sequence[bool]) -> list[float]:
    share = float(np.mean(values))
    return [round(share, 3), round(math.sqrt(share * (1 - share) / len(values)), 3)]


def _named(data: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Name the planes of the explicit split: the first ones of a stack, or single ones, train; the others are the test.

    Fields are drawn, for neighbours in a file are often of one kind.
    """
    (specimen,) = find_specimens(data)
    order = np.arange(len(specimen))
    if arguments.split == "random":
        np.random.default_rng(0).shuffle(order)
    num_validation = max(1, arguments.train // 4)
    validation, test = order[arguments.train - num_validation : arguments.train], order[arguments.train :]
    return {
        "validation": [f"{specimen.name}/{z}" for z in validation],
        "test": [f"{specimen.name}/{z}" for z in sorted(test)],
        "unused": [],
    }


def _cropped(path: Path, target: Path, side: int) -> Path:
    stack_zyx = tifffile.imread(path)
    top, left = ((length - side) // 2 for length in stack_zyx.shape[1:3])
    cropped_zyx = stack_zyx[:, top : top + side, left : left + side]
    tifffile.imwrite(target, cropped_zyx, photometric="minisblack", metadata={"axes": "ZYX"})
    return target


if __name__ == "__main__":
    main()
