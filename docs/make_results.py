"""Write docs/results.md and its pictures from the MLflow runs of recipe projects.

    python docs/make_results.py PROJECT [PROJECT …] [--data RECIPE TEXT]

PROJECT is a project made by `stackseg new --recipe` whose outputs/ are those of the recipe. Where its registry holds
them, the page also tells two more versions: the original's setting, with what the recipe gains over it on the same
planes, and the recipe with `split.method=random`, which shows what leaks. The page says how each is made.
`--data` says what a recipe was scored on where that is not the published set. Sections of recipes that are not named
stay as they are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from make_pictures import PICTURES, reduce_picture
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from stackseg.dataset.records import Catalog, read_catalog
from stackseg.evaluation.bootstrap import MIN_UNITS, Interval, bootstrap_interval, gain_of_same_classes
from stackseg.evaluation.evaluate import TILE, Evaluation, PlaneCounts, count_planes, independent_units
from stackseg.model.bundle import load_bundle, read_spec
from stackseg.params import Params, read_params
from stackseg.recipes.recipe import Recipe, read_recipe
from stackseg.registry.versions import RegisteredModel, bundle_at, read_registered_model
from stackseg.tracking.store import open_store_to_read

PAGE = Path(__file__).parent / "results.md"
HEAD = """# Results

What each recipe gives on the data at hand, written from its MLflow runs by `python docs/make_results.py`. The test part
took no part in training or in any choice; its interval says how sure the score is, by
[resampling](explanation/intervals.md) what is independent in it.

"""


@dataclass(frozen=True)
class ScoredRun:
    """A training whose version is registered, and its scores."""

    version: str
    run: Run
    evaluation: Evaluation

    @property
    def split(self) -> str:
        """Method of its split."""
        return str(self.run.data.params["split.method"])

    @property
    def minutes(self) -> float:
        """Minutes of its training, without validation."""
        epochs = MlflowClient().get_metric_history(self.run.info.run_id, "training/seconds")
        return sum(one.value for one in epochs) / 60


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", nargs="+", type=Path, metavar="PROJECT")
    parser.add_argument("--data", nargs=2, action="append", default=[], metavar=("RECIPE", "TEXT"))
    given = parser.parse_args()
    notes = dict(given.data)
    sections = _present_sections() if PAGE.exists() else {}
    for project in given.projects:
        title, *lines = _section(project, notes)
        sections[title] = "\n".join(lines)
    PAGE.write_text(HEAD + "\n".join(f"{title}\n{text}" for title, text in sections.items()), encoding="utf-8")
    print(f"{PAGE}: {len(sections)} recipes, {len(given.projects)} of them anew")


def _present_sections() -> dict[str, str]:
    """Return the page's sections by their headings."""
    parts = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    return {f"## {title}\n": text for title, _, text in (one.partition("\n\n") for one in parts)}


def _section(project: Path, notes: dict[str, str]) -> Iterator[str]:
    """Yield the lines about one project."""
    params = read_params(project / "params.yaml")
    recipe = read_recipe(params.project.model_name)
    # MLflow leaves the address of the project before in the environment
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if not open_store_to_read(project):
        raise SystemExit(f"{project}: no MLflow store; train first")
    model = read_registered_model(params.project.model_name)
    runs = list(_scored_runs(model))
    digest = read_spec(project / "outputs" / "model").digest
    # with few planes a random split may train on the same ones, to the same weights
    mine = [one for one in runs if one.run.data.tags["bundle_digest"] == digest and one.split == params.split.method]
    leaky = [one for one in runs if one.split == "random" and params.split.method != "random"]
    if not mine:
        raise SystemExit(f"{project}: outputs/model is no version of it; `dvc repro`")
    best = mine[0]
    yield f"## {recipe.title}\n"
    yield f"{recipe.about}\n\nData: {recipe.data}; scored on: {_data_note(project, notes)}\n"
    original = _original(runs, best, recipe)
    yield from _scores(best, original, leaky[0] if leaky else None)
    if original is not None:
        yield from _gain(best, original, recipe, project, params)
    yield from _quantities(best.evaluation, recipe.title)
    yield from _picture(best, params.project.model_name)
    yield from _how(best, params.project.model_name)


def _scored_runs(model: RegisteredModel) -> Iterator[ScoredRun]:
    for number, version in model.versions.items():
        run = MlflowClient().get_run(str(version.run_id))
        tree = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/evaluation.json")
        yield ScoredRun(number, run, Evaluation.model_validate(tree))


def _original(runs: list[ScoredRun], best: ScoredRun, recipe: Recipe) -> ScoredRun | None:
    """Return the training of the original's setting with the recipe's split, if there is one."""
    if recipe.original is None:
        return None
    wanted: dict[str, str] = {}
    for key, value in recipe.original.params.items():
        values = {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        wanted |= {name: "null" if one is None else str(one) for name, one in values.items()}
    for one in runs:
        if wanted.items() <= one.run.data.params.items() and one.split == best.split:
            return one
    return None


def _data_note(project: Path, notes: dict[str, str]) -> str:
    if project.name in notes:
        return notes[project.name]
    specimens = sorted(one.name for one in (project / "data").iterdir() if one.is_dir())
    return f"`data/{'`, `data/'.join(specimens)}`"


def _scores(best: ScoredRun, original: ScoredRun | None, leaky: ScoredRun | None) -> Iterator[str]:
    shown = [(f"honest split ({best.split})", best)]
    shown += [("the original's setting", original)] if original else []
    shown += [("random split", leaky)] if leaky else []
    yield "| | test planes | mean IoU | " + " | ".join(one.name for one in best.evaluation.scores.classes) + _more(best)
    yield "|---|---|---|" + "---|" * (len(best.evaluation.scores.classes) + _more(best).count("|") - 1)
    for name, one in shown:
        scores = one.evaluation.scores
        mean = _with_interval(one.evaluation.mean_iou, one.evaluation.mean_iou_interval)
        cells = [name, str(scores.num_planes), mean, *(_figure(each.iou) for each in scores.classes)]
        yield f"| {' | '.join([*cells, *_field_scores(one.evaluation)])} |"
    yield ""
    if leaky is not None:
        size = (leaky.evaluation.mean_iou or 0) - (best.evaluation.mean_iou or 0)
        yield f"A random split of the same planes shows {size:+.4f}: what leaks, and what other test planes make.\n"


def _more(best: ScoredRun) -> str:
    more = {"rand_vi": ["V_rand", "V_info"], "objects": ["F1 at IoU 0.5", "mean AP"]}
    names = [name for key, names in more.items() if getattr(best.evaluation, key) is not None for name in names]
    return "".join(f" | {name}" for name in names) + " |"


def _field_scores(evaluation: Evaluation) -> list[str]:
    found = []
    if evaluation.rand_vi is not None:
        found += [_figure(evaluation.rand_vi.v_rand), _figure(evaluation.rand_vi.v_info)]
    if evaluation.objects is not None:
        objects = evaluation.objects
        found += [_with_interval(objects.f1["0.5"], objects.f1_interval), _figure(objects.mean_ap)]
    return found


def _gain(best: ScoredRun, original: ScoredRun, recipe: Recipe, project: Path, params: Params) -> Iterator[str]:
    """Yield how much the recipe gains over the original's setting on the same planes, with a paired interval."""
    catalog = read_catalog(project / "outputs" / "catalog.json")
    counts = [_counts(one, catalog, project, params) for one in (best, original)]
    unit, units = independent_units(counts[0], catalog, params.evaluate)
    if len(units) >= MIN_UNITS:
        place = {one.ref: number for number, one in enumerate(counts[0])}
        pairs = [
            [np.sum([one[place[plane.ref]].counts_cc for plane in group], axis=0) for one in counts] for group in units
        ]
        about = f"{len(units)} units: {unit}"
    else:
        pairs = [*zip(*(np.concatenate([plane.tiles_tcc for plane in one]) for one in counts), strict=True)]
        planes = "one test plane" if len(counts[0]) == 1 else f"{len(counts[0])} test planes"
        about = f"{len(pairs)} tiles of {TILE}² pixels of {planes}, so it says nothing of others"
    pairs_u2cc = np.array(pairs)
    gain_of = gain_of_same_classes(pairs_u2cc)
    interval = bootstrap_interval(
        pairs_u2cc,
        gain_of,
        num_samples=params.evaluate.bootstrap_samples,
        confidence=params.evaluate.confidence,
        seed=catalog.seed,
        lowest=-1.0,
    )
    yield (
        f"The original's setting: {recipe.original.about if recipe.original else ''}. Against it the recipe gains "
        f"{gain_of(pairs_u2cc.sum(axis=0)):+.4f} in mean IoU ({interval.low:+.4f} to {interval.high:+.4f}, paired, "
        f"{about}).\n"
    )


def _counts(one: ScoredRun, catalog: Catalog, project: Path, params: Params) -> list[PlaneCounts]:
    with bundle_at(f"models:/{params.project.model_name}/{one.version}", f"version {one.version}") as folder:
        bundle = load_bundle(folder)
        # the sums are of planes that it was trained without
        if {(plane.specimen, plane.plane) for plane in one.evaluation.planes} != {
            (ref.specimen, ref.z) for ref, _ in catalog.planes("test")
        }:
            raise SystemExit(f"{project}: version {one.version} was scored on other planes")
        return count_planes(bundle, catalog, project / "data", params.evaluate)


def _quantities(evaluation: Evaluation, title: str) -> Iterator[str]:
    """Yield shares of the classes, and counts of objects, true and predicted."""
    scores = evaluation.scores
    yield "| quantity on the test part | masks | model | error |"
    yield "|---|---|---|---|"
    for one in scores.classes:
        true, found = (100 * n / scores.num_pixels for n in (one.num_truth_pixels, one.num_predicted_pixels))
        yield f"| share of {one.name} | {true:.2f} % | {found:.2f} % | {found - true:+.2f} points |"
    if evaluation.objects is not None:
        true, found = evaluation.objects.num_truth, evaluation.objects.num_predicted
        yield f"| objects | {true} | {found} | {100 * (found - true) / true:+.1f} % |"
    yield ""


def _picture(best: ScoredRun, name: str) -> Iterator[str]:
    uri = best.run.info.artifact_uri
    files = [one.path for one in mlflow.artifacts.list_artifacts(artifact_uri=f"{uri}/pictures")]
    drawn = sorted(one for one in files if Path(one).name.startswith(("median", "worst")))
    local = mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/pictures/{Path(drawn[0]).name}")
    reduce_picture(Path(local), PICTURES / f"results_{name}.png", 1280)
    which = "The median plane" if Path(drawn[0]).name.startswith("median") else "The worst plane"
    yield f"![{which} of {name}: input, masks, prediction, error](pictures/results_{name}.png)\n"
    yield f"*{which} of the test part: input, masks, prediction, error.*\n"


def _how(best: ScoredRun, name: str) -> Iterator[str]:
    tags, params = best.run.data.tags, best.run.data.params
    yield (
        f"Trained for {params['train.epochs']} epochs in {best.minutes:.0f} minutes on {params['hardware']}; version "
        f"{best.version}, bundle `{tags['bundle_digest'][:12]}`.\n"
    )
    original = read_recipe(name).original
    yield f"```bash\nstackseg new {name} --recipe {name} && cd {name} && stackseg fetch {name}"
    yield "git add . && git commit -m data              # dvc exp run compares with a commit"
    if original is not None:
        changes = [change for key, value in original.params.items() for change in _overrides(key, value)]
        yield "dvc repro catalog"
        yield "# the original's setting"
        yield " \\\n  ".join(["dvc exp run --temp", *(f"-S '{one}'" for one in changes)])
    yield "dvc repro                                    # the recipe"
    if best.split != "random":
        yield "dvc exp run --temp -S split.method=random -S split.gap=0   # what leaks"
    yield "```\n"


def _with_interval(value: float | None, interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{_figure(value)} (no interval: {interval.num_units} independent units, {interval.unit})"
    return f"{_figure(value)} ({interval.low:.4f} to {interval.high:.4f})"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _overrides(key: str, value: Any) -> Iterator[str]:
    """Yield what sets a key of params.yaml in `dvc exp run -S`, which would join an object with what is there."""
    if isinstance(value, dict):
        section, _, name = key.partition(".")
        there = getattr(getattr(Params(), section), name)
        yield from (f"~{key}.{one}" for one in there if one not in value)
        yield from (f"{'' if one in there else '+'}{key}.{one}={weight}" for one, weight in value.items())
    else:
        yield f"{key}={'null' if value is None else value}"


if __name__ == "__main__":
    main()
