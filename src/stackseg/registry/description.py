"""What MLflow's pages say of a version and of the registered model, in Markdown."""

from __future__ import annotations

from shlex import quote

from mlflow.tracking import MlflowClient

from stackseg.dataset.records import Catalog
from stackseg.evaluation.evaluate import Evaluation
from stackseg.model.bundle import BundleSpec, InferenceSpec
from stackseg.model.network import NetworkSpec
from stackseg.registry.versions import CHAMPION, ChampionChange, RegisteredModel
from stackseg.tracking.descriptions import data_section, parent_sentence, score_table, with_section

MAX_DESCRIPTION = 5000
"""Characters that MLflow's column takes."""
MAX_CLASSES = 25
"""Rows of the score table that fit into it."""


def scores_markdown(spec: BundleSpec, evaluation: Evaluation, catalog: Catalog) -> str:
    """Return the score table with its interval, and where the model comes from: split, leakage, data, code, digest."""
    lineage = spec.lineage
    return "\n".join(
        [
            score_table(evaluation, max_classes=MAX_CLASSES),
            "",
            f"- Network: {network_words(spec.inference)}, scored on {evaluation.device} in {evaluation.precision}",
            data_section(catalog, lineage.git_commit, dirty=lineage.git_dirty),
            *([f"- Members: {', '.join(map(str, lineage.members))}"] if lineage.members else []),
            *([] if lineage.parent is None else [f"- {parent_sentence(lineage.parent)}"]),
            f"- Bundle: `{spec.digest}`",
        ]
    )


def network_words(inference: InferenceSpec) -> str:
    """Return what a bundle's network is, for people."""
    kinds = [f"{one.architecture} with {one.encoder}" for one in _networks(inference)]
    words = ", ".join(dict.fromkeys(kinds))
    return f"the mean of {len(kinds)}: {words}" if len(kinds) > 1 else words


def _networks(inference: InferenceSpec) -> list[NetworkSpec]:
    return [one.network for one in inference.members] or [inference.network]


def promotion_markdown(version: str, known: RegisteredModel) -> str:
    """Return what the gate said of a version, since when it is the champion, whom it replaced and who replaced it."""
    gate = known.versions[version].tags.get("gate")
    began = next((one for one in reversed(known.history) if one.to_version == version), None)
    ended = next((one for one in reversed(known.history) if one.from_version == version), None)
    is_champion = known.aliases.get(CHAMPION) == version
    lines = []
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
        return "None yet: `stackseg promote` lets a version through the gate."
    score = (
        f"mean IoU {version.tags.get('mean_iou', 'unknown')}, {version.tags.get('mean_iou_interval', 'no interval')}"
    )
    uri = quote(f"models:/{known.name}@champion")
    return "\n".join(
        [
            f"Version {version.version}: {score}.",
            "",
            "- `stackseg predict IN.tif OUT.tif` segments a stack, `stackseg serve` answers requests",
            f"- `mlflow models serve -m {uri} --env-manager local` serves it by MLflow alone",
            "- `stackseg rollback` brings back the version before, `stackseg models --history` lists all changes",
        ]
    )


def update_descriptions(known: RegisteredModel, *versions: str | None) -> None:
    """Bring the descriptions of a registered model and of some of its versions up to date with aliases and history."""
    client = MlflowClient()
    described = _with_last_section(known.description, "Champion", champion_markdown(known))
    client.update_registered_model(known.name, described)
    for version in known.versions.keys() & set(versions):
        text = promotion_markdown(version, known)
        described = _with_last_section(known.versions[version].description or "", "Promotion", text)
        client.update_model_version(known.name, version, described)


def _with_last_section(description: str, heading: str, text: str) -> str:
    """Return a description that ends in a section; what stands above an earlier one stays, as far as there is room."""
    above = description.partition(f"### {heading}\n")[0]
    return with_section(above[: MAX_DESCRIPTION - len(heading) - len(text) - 10].rstrip(), heading, text)


def _when(change: ChampionChange) -> str:
    return f"{change.when:%Y-%m-%d %H:%M} UTC ({change.action} by {change.who})"


def _why(change: ChampionChange) -> str:
    return " ".join(change.why.split())[:300]
