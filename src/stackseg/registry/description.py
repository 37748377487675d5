"""What MLflow's pages say of a version and of the registered model, in Markdown."""

from __future__ import annotations

from mlflow.tracking import MlflowClient

from stackseg.dataset.records import Catalog
from stackseg.evaluation.evaluate import Evaluation
from stackseg.model.bundle import BundleSpec
from stackseg.registry.versions import CHAMPION, ChampionChange, RegisteredModel

MAX_DESCRIPTION = 5000
"""Characters that MLflow's column takes."""
MAX_CLASSES = 25
CLASS_SCORES = {"IoU": "iou", "Dice": "dice", "boundary F1": "boundary_f1", "boundary IoU": "boundary_iou"}


def scores_markdown(spec: BundleSpec, evaluation: Evaluation, catalog: Catalog) -> str:
    """Return the score table with its interval, and where the model comes from: split, leakage, data, code, digest."""
    interval, leakage, lineage, network = (
        evaluation.mean_iou_interval,
        catalog.leakage,
        spec.lineage,
        spec.inference.network,
    )
    between = interval.reason or (
        f"{figure(interval.low)} to {figure(interval.high)} with {interval.confidence:.0%} confidence, "
        f"{interval.num_units} independent units ({interval.unit})"
    )
    classes = evaluation.scores.classes
    rows = [
        f"| {' | '.join([one.name.replace('|', '/'), *(figure(getattr(one, key)) for key in CLASS_SCORES.values())])} |"
        for one in classes[:MAX_CLASSES]
    ]
    if len(classes) > MAX_CLASSES:
        rows.append(f"| and {len(classes) - MAX_CLASSES} more, in evaluation.json | | | | |")
    planes = [f"{len(catalog.planes(part))} {part}" for part in ("training", "validation", "test")]
    leaks = ": **held-out planes resemble training planes**" if leakage.leaks else ""
    dirty = " with uncommitted changes" if lineage.git_dirty else ""
    return "\n".join(
        [
            f"**Mean IoU {figure(evaluation.mean_iou)}** on {evaluation.scores.num_planes} planes of the "
            f"{evaluation.part} part; interval: {between}.",
            "",
            f"| class | {' | '.join(CLASS_SCORES)} |",
            "|---" * (1 + len(CLASS_SCORES)) + "|",
            *rows,
            "",
            f"- Network: {network.architecture} with {network.encoder}, scored on {evaluation.device} in "
            f"{evaluation.precision}",
            f"- Split: {catalog.split.method}; planes: {', '.join(planes)}",
            f"- Leakage: {figure(leakage.figure)} (0 is clean, 1 is trained on){leaks}",
            f"- Data: md5 `{lineage.data_md5}`, catalogue `{lineage.catalog_digest[:12]}`",
            f"- Code: commit `{lineage.git_commit or 'unknown'}`{dirty}",
            f"- Bundle: `{spec.digest}`",
        ]
    )


def promotion_markdown(version: str, known: RegisteredModel) -> str:
    """Return what the gate said of a version, since when it is the champion, whom it replaced and who replaced it."""
    gate = known.versions[version].tags.get("gate")
    began = next((one for one in reversed(known.history) if one.to_version == version), None)
    ended = next((one for one in reversed(known.history) if one.from_version == version), None)
    is_champion = known.aliases.get(CHAMPION) == version
    lines = ["## Promotion", ""]
    if gate:
        lines.append(f"- Gate: {gate}")
    if began is not None:
        instead = f" instead of version {began.from_version}" if began.from_version else ""
        lines.append(f"- Champion since {_when(began)}{instead}: {_why(began)}")
    elif ended is None and not is_champion:
        lines.append("- Not the champion so far")
    if ended is not None and not is_champion:
        lines.append(f"- Replaced by version {ended.to_version} on {_when(ended)}: {_why(ended)}")
    return "\n".join(lines)


def champion_markdown(known: RegisteredModel) -> str:
    """Return which version of a registered model is the champion, how good it is and how it is used."""
    version = known.versions.get(known.aliases.get(CHAMPION, ""))
    if version is None:
        return "## Champion\n\nNone yet: `stackseg promote` lets a version through the gate."
    score = (
        f"mean IoU {version.tags.get('mean_iou', 'unknown')}, {version.tags.get('mean_iou_interval', 'no interval')}"
    )
    return "\n".join(
        [
            "## Champion",
            "",
            f"Version {version.version}: {score}.",
            "",
            "- `stackseg predict IN.tif OUT.tif` segments a stack, `stackseg serve` answers requests",
            f"- `mlflow models serve -m models:/{known.name}@champion --env-manager local` serves it by MLflow alone",
            "- `stackseg rollback` brings back the version before, `stackseg models --history` lists all changes",
        ]
    )


def update_descriptions(known: RegisteredModel, *versions: str | None) -> None:
    """Bring the descriptions of a registered model and of some of its versions up to date with aliases and history."""
    client = MlflowClient()
    client.update_registered_model(known.name, with_section(known.description, champion_markdown(known)))
    for version in known.versions.keys() & set(versions):
        described = with_section(known.versions[version].description or "", promotion_markdown(version, known))
        client.update_model_version(known.name, version, described)


def with_section(description: str, section: str) -> str:
    """Return a description with its last section, known by its heading, replaced; what stands above is kept."""
    above = description.partition(section.partition("\n")[0])[0].rstrip()
    above = above[: max(0, MAX_DESCRIPTION - 2 - len(section))]
    return f"{above}\n\n{section}".lstrip()[:MAX_DESCRIPTION]


def figure(value: float | None) -> str:
    """Return a score as text; null stays null."""
    return "null" if value is None else f"{value:.4f}"


def _when(change: ChampionChange) -> str:
    return f"{change.when:%Y-%m-%d %H:%M} UTC ({change.action} by {change.who})"


def _why(change: ChampionChange) -> str:
    return " ".join(change.why.split())[:300]
