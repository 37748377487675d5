"""What a search costs and what pruning saves, as ratios measured side by side in one run.

    python benchmarks/search.py [--images I.tif --masks M.tif] [--trials 16] [--repeats 3] [--epochs 9]

Without images, the sample stack is taken, cut down to 32 planes of 128². Figures, by the verbs that a user types:

- pruning: the compute after which a search with the default pruner has what one without it has at its end, from the
  same seeds; counted in epochs trained (each with its validation) and in seconds of trials
- glue: seconds of a trial, with its run, report and bundle, against train() with the same params
- winner: the best of a search against the present params at the same number of patches, mean IoU on the test part with
  the gate's paired interval; it wants --images with five independent test planes or more (--split random --test 0.7)
- workers: seconds from the first trial's beginning to the last one's end, two workers against one, a core for each
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from stackseg.dataset.records import read_catalog
from stackseg.environment import apply_quiet_environment, quieten_libraries
from stackseg.model.bundle import load_bundle
from stackseg.params import read_params
from stackseg.params.file import read_tree, write_tree, write_values
from stackseg.registry.gate import Contender, compare
from stackseg.training.train import Machine, train

TOLERANCE = 0.005
BIN = Path(sys.executable).parent
SPACE = {
    "train.lr": {"low": 1e-4, "high": 3e-2, "log": True},
    "train.optimizer": {"choices": ["adamw", "adam", "sgd"]},
    "train.loss": {"choices": [{"cross_entropy": 1.0, "dice": 1.0}, {"cross_entropy": 1.0}, {"focal": 1.0}]},
    "train.rare_share": {"low": 0.0, "high": 0.66, "step": 0.33},
    "augment.preset": {"choices": ["none", "light", "micrograph"]},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=lambda text: Path(text).resolve())
    parser.add_argument("--masks", type=lambda text: Path(text).resolve())
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=100, help="of the first repeat of pruning and winner")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--patches", type=int, default=48)
    parser.add_argument("--patch-size", type=int, default=128, help="pixels")
    parser.add_argument(
        "--sampler",
        default="random",
        help="of pruning: random draws the same trials with and without it; tpe learns from them, and goes other ways",
    )
    parser.add_argument("--ema", type=float, help="decay per step of the moving average of the weights")
    parser.add_argument("--network", default="Unet/resnet18", help="architecture/encoder of the present params")
    parser.add_argument("--split", choices=["blocks", "random"], default="blocks", help="random: independent images")
    parser.add_argument("--test", type=float, default=0.15, help="share of the planes in the test part")
    parser.add_argument("--only", choices=["pruning", "glue", "workers", "winner"])
    arguments = parser.parse_args()
    if arguments.only == "winner" and arguments.images is None:
        parser.error("winner needs --images and --masks")
    apply_quiet_environment()
    quieten_libraries()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _make_project(arguments)
        measures = {"glue": _glue, "workers": _workers, "pruning": _pruning, "winner": _winner}
        if arguments.images is None:
            del measures["winner"]
        for name, measure in measures.items():
            if arguments.only in (None, name):
                measure(arguments)


def _make_project(arguments: argparse.Namespace) -> None:
    Path("params.yaml").write_text((Path(__file__).parents[1] / "params.yaml").read_text())
    Path("dvc.yaml").write_text("stages: {}\n")
    if arguments.images is None:
        from stackseg.intake.sample import write_sample

        write_sample(Path("data"), (32, 128, 128))
    else:
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run([str(BIN / "dvc"), "init", "-q"], check=True)
        _run("add", str(arguments.images), str(arguments.masks))
    write_values(
        Path("params.yaml"),
        {
            "train.epochs": arguments.epochs,
            "train.validate_every": 1,
            "train.patches_per_epoch": arguments.patches,
            "train.patch_size": arguments.patch_size,
            "train.ema": arguments.ema,
            "inference.tile": 1024,  # most planes as one: validation is not what is measured
            "train.batch_size": 8,
            "train.lr": 1e-3,
            "train.rare_share": 0.33,
            "split.method": arguments.split,
            "split.test": arguments.test,
            "model.architecture": arguments.network.partition("/")[0],
            "model.encoder": arguments.network.partition("/")[2],
        },
    )
    _search_section({"space": SPACE})
    _run("catalog")


def _glue(arguments: argparse.Namespace) -> None:
    """One trial after another with the present params, and train() with the same between them."""
    _search_section({"space": {"train.lr": {"low": 9.9e-4, "high": 1.1e-3}}, "pruner": {"name": "none"}})
    catalog, params = read_catalog(Path("outputs/catalog.json")), read_params(Path("params.yaml"))
    ratios = []
    for repeat in range(arguments.repeats):
        _search(f"glue{repeat}", 2)
        trials = _trials(f"glue{repeat}")
        # the first trial of a process pays for what is set up once
        seconds = (trials[1].duration or trials[1].datetime_complete - trials[1].datetime_start).total_seconds()  # type: ignore[operator]
        same = params.override({"train.lr": trials[1].params["train.lr"]})
        plain = []
        for _ in range(2):
            started = time.perf_counter()
            train(same, catalog, data=Path("data"), model=Path("plain"), checkpoints=Path("plain_checkpoints"),
                  machine=Machine(device="cpu"))  # fmt: skip
            plain.append(time.perf_counter() - started)
        ratios.append(seconds / plain[1])
        print(f"  trial {seconds:.1f} s, train() {plain[1]:.1f} s", flush=True)
    _print("trial ÷ train() with the same params, seconds", ratios)
    _search_section({"space": SPACE})


def _workers(arguments: argparse.Namespace) -> None:
    ratios = []
    section = {"space": {"train.lr": SPACE["train.lr"]}, "pruner": {"name": "none"}, "sampler": {"name": "random"}}
    _search_section(section)
    cores = sorted(os.sched_getaffinity(0))[:2]
    for repeat in range(arguments.repeats):
        spans = []
        for workers in (1, 2):
            name = f"workers{workers}-{repeat}"
            _search(name, 6, workers=workers, cores=cores[:workers])
            trials = _trials(name)
            begun = [one.datetime_start for one in trials if one.datetime_start]
            ended = [one.datetime_complete for one in trials if one.datetime_complete]
            spans.append((max(ended) - min(begun)).total_seconds())
        ratios.append(spans[1] / spans[0])
        print(f"  one worker {spans[0]:.1f} s, two {spans[1]:.1f} s", flush=True)
    _print("two workers ÷ one, seconds for 6 trials of one thread", ratios)
    _search_section({"space": SPACE})


def _pruning(arguments: argparse.Namespace) -> None:
    """Search without pruning, and with it, from the same seeds."""
    epochs, seconds, own = [], [], []
    for seed in range(arguments.seed, arguments.seed + arguments.repeats):
        sampler = {"name": arguments.sampler, "arguments": {"seed": seed}}
        _search_section({"space": SPACE, "pruner": {"name": "none"}, "sampler": sampler})
        _search(f"whole-{seed}", arguments.trials)
        whole = _trials(f"whole-{seed}")
        goal = _best(whole) - TOLERANCE
        _search_section({"space": SPACE, "sampler": sampler})  # the default pruner
        _search(f"pruned-{seed}", arguments.trials)
        pruned = _trials(f"pruned-{seed}")
        num_pruned = sum(one.state == TrialState.PRUNED for one in pruned)
        share = _compute(pruned)[0] / _compute(whole)[0]
        print(f"  seed {seed}: best {_best(whole):.4f} of {len(whole)} without, {_best(pruned):.4f} of {len(pruned)} "
              f"with pruning ({num_pruned} pruned, {share:.3f} of the epochs)", flush=True)  # fmt: skip
        reached = _until(pruned, goal)
        if reached is None:
            print(f"  seed {seed}: not reached", flush=True)
            reached = (math.inf, math.inf)
        epochs.append(reached[0] / _compute(whole)[0])
        seconds.append(reached[1] / _compute(whole)[1])
        own.append((_until(whole, goal) or (math.nan, math.nan))[0] / _compute(whole)[0])
    what = f"until the pruned search is within {TOLERANCE} of the whole search's best ÷ whole search"
    _print(f"epochs {what}", epochs)
    _print(f"seconds of trials {what}", seconds)
    _print("  for comparison, epochs until the whole search itself is there ÷ whole search", own)


def _until(trials: Sequence[FrozenTrial], goal: float) -> tuple[float, float] | None:
    """Return the epochs and seconds of all trials up to the first that reaches the goal."""
    for place, one in enumerate(trials, 1):
        if one.state == TrialState.COMPLETE and one.value is not None and one.value >= goal:
            return _compute(trials[:place])
    return None


def _winner(arguments: argparse.Namespace) -> None:
    """Search, and score the best on the test part; another seed is another split, other weights and another sampler."""
    more = {
        "train.batch_size": [4, 8, 16],
        "train.ema": [None, 0.95],
        "model.architecture": ["Unet", "Linknet", "FPN"],
    }
    for seed in range(arguments.seed, arguments.seed + arguments.repeats):
        _search_section({"space": SPACE | more, "pruner": {"name": "none"}})  # trainings are short
        write_values(Path("params.yaml"), {"seed": seed})
        _run("catalog")
        _search(f"winner-{seed}", arguments.trials)
        (best,) = Path(f"outputs/search/winner-{seed}").glob("trial-*/model")
        catalog, params = read_catalog(Path("outputs/catalog.json")), read_params(Path("params.yaml"))
        present = Path(f"present-{seed}")
        train(params, catalog, data=Path("data"), model=present, checkpoints=Path(f"checkpoints-{seed}"),
              machine=Machine(device="cpu"))  # fmt: skip
        verdict = compare(*(Contender(str(one), load_bundle(one), 0) for one in (best, present)),
                          catalog, Path("data"), params)  # fmt: skip
        found = f"{best.parent.name} {verdict.challenger_mean_iou:.4f}, present {verdict.champion_mean_iou:.4f}"
        print(f"  seed {seed}: {found}, {verdict.num_planes} test planes, {verdict.num_units} units", flush=True)
        if verdict.gain is not None:
            ends = f"above {verdict.gain.low:+.4f}, below {verdict.gain.high:+.4f}"
            print(
                f"    gain {verdict.gain_mean_iou:+.4f}: {ends}, each at {params.promotion.confidence:.0%}", flush=True
            )


def _compute(trials: Sequence[FrozenTrial]) -> tuple[float, float]:
    seconds = sum(one.duration.total_seconds() for one in trials if one.duration is not None)
    return sum(max(one.intermediate_values, default=0) for one in trials), seconds


def _best(trials: Sequence[FrozenTrial]) -> float:
    return max(one.value for one in trials if one.state == TrialState.COMPLETE and one.value is not None)


def _search_section(values: dict[str, object]) -> None:
    tree = read_tree(Path("params.yaml"))
    defaults = {"sampler": {"name": "tpe", "arguments": {}}, "pruner": {"name": "successive_halving", "arguments": {}}}
    tree["search"] |= defaults | values
    write_tree(Path("params.yaml"), tree)


def _search(name: str, num_trials: int, *more: str, workers: int = 1, cores: Sequence[int] | None = None) -> None:
    options = ["--trials", str(num_trials), "--workers", str(workers), "--study", name, "--device", "cpu"]
    _run("search", *options, *more, cores=cores)


def _run(*verb: str, cores: Sequence[int] | None = None) -> None:
    def pin() -> None:
        if cores is not None:
            os.sched_setaffinity(0, cores)

    done = subprocess.run([str(BIN / "stackseg"), *verb], capture_output=True, text=True, check=False, preexec_fn=pin)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def _trials(name: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage="sqlite:///optuna.db").trials


def _print(what: str, ratios: list[float]) -> None:
    print(f"{what}: {min(ratios):.3f} {statistics.median(ratios):.3f} {max(ratios):.3f} (min median max)", flush=True)


if __name__ == "__main__":
    main()
