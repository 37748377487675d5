"""Verbs that decide which version is the champion: promote, rollback."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackseg.cli.console import counting, figure, next_step, say, table, warn
from stackseg.cli.models import PANEL
from stackseg.cli.project import CATALOG, DATA, load_params, lock_file, read_registry, ready_store
from stackseg.cli.stages import Device

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from stackseg.params import Params
    from stackseg.registry.gate import Contender, Verdict
    from stackseg.registry.versions import RegisteredModel

REFUSED = 3


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command(rich_help_panel=PANEL)(promote)
    app.command(rich_help_panel=PANEL)(rollback)


def promote(
    version: Annotated[str | None, typer.Argument(help="Version or alias; the challenger by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote without the gate; the reason is recorded.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why, for the history.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of the specimens.")] = DATA,
    catalog: Annotated[Path, typer.Option(help="The catalogue whose test planes decide.")] = CATALOG,
    device: Device = "auto",
) -> None:
    """Make a version the champion, if it passes the gate of params.yaml's section `promotion`.

    Challenger and champion are scored on the same test planes, which neither has seen. Exit code 0: promoted,
    3: not good enough, 1: error.
    """
    from stackseg.registry.champion import note_verdict
    from stackseg.registry.versions import CHALLENGER, CHAMPION, find

    reason = (reason or "").strip()
    if force and not reason:
        raise typer.BadParameter("--force needs --reason TEXT, which the history keeps")
    params = load_params()
    root, _ = ready_store(params)
    known = read_registry(params)
    wanted = find(known, CHALLENGER if version is None else version)
    champion = known.aliases.get(CHAMPION)
    if wanted == champion:
        say(f"version {wanted} is the champion already")
        return
    if force:
        # the gate is left out, but not whether it can be served at all
        _loaded(known.versions[wanted], None)
        warn("the gate is left out: nobody has shown that this version is better")
        _make_champion(root, wanted, known, "force", reason, {})
        return
    verdict = _judged(params, known.versions[wanted], known.versions.get(champion or ""), data, catalog, device)
    show_verdict(verdict, params.promotion.confidence)
    note_verdict(known.name, wanted, verdict.sentence())
    if not verdict.passed:
        for one in verdict.reasons:
            warn(one)
        say(f"refused: version {wanted} does not become the champion")
        raise typer.Exit(REFUSED)
    _make_champion(root, wanted, known, "promote", reason or "passed the gate", verdict.summary())


def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the history.")] = "rollback",
) -> None:
    """Make the previous champion the champion again; a second time goes forward again."""
    from stackseg.registry.versions import PREVIOUS, find

    params = load_params()
    root, _ = ready_store(params)
    known = read_registry(params)
    _make_champion(root, find(known, PREVIOUS), known, "rollback", reason, {})


def _judged(
    params: Params, challenger: ModelVersion, champion: ModelVersion | None, data: Path, catalog: Path, device: str
) -> Verdict:
    from stackseg.dataset.records import read_catalog
    from stackseg.model.devices import pick_device
    from stackseg.registry.gate import compare

    target = pick_device(device)
    asking, standing = _loaded(challenger, target), None if champion is None else _loaded(champion, target)
    with counting("scoring") as progress:
        return compare(asking, standing, read_catalog(catalog), data, params, progress=progress)


def _loaded(version: ModelVersion, device: Any) -> Contender:
    from stackseg.model.bundle import load_bundle
    from stackseg.registry.gate import Contender
    from stackseg.registry.versions import bundle_at, uri_of

    with bundle_at(str(version.source), uri_of(version)) as folder:
        num_bytes = sum(one.stat().st_size for one in folder.iterdir())
        return Contender(str(version.version), load_bundle(folder, device), num_bytes)


def show_verdict(verdict: Verdict, confidence: float) -> None:
    """Print the figures of both models and the gain."""
    champion = f"champion {verdict.champion}" if verdict.champion else "no champion"
    left_out = f", {verdict.num_planes_seen} left out as seen" if verdict.num_planes_seen else ""
    title = f"{verdict.num_planes} test planes ({verdict.num_units} independent: {verdict.unit}){left_out}"
    rows: list[tuple[Any, ...]] = [
        ("mean IoU", verdict.challenger_mean_iou, verdict.champion_mean_iou, _signed(verdict.gain_mean_iou))
    ]
    rows += [(f"IoU {one.name}", one.challenger, one.champion, _signed(one.change)) for one in verdict.classes]
    table(title, ("", f"challenger {verdict.challenger}", champion, "change"), rows)
    if verdict.gain is not None and verdict.gain.low is not None:
        # each end of the two-sided interval is exceeded, or kept below, with the confidence that was asked for
        say(
            f"gain in mean IoU above {verdict.gain.low:+.4f} with {confidence:.0%} confidence, below "
            f"{verdict.gain.high:+.4f} with as much, paired bootstrap"
        )
    say(f"{verdict.ms_per_megapixel:.0f} ms per megapixel here, {verdict.megabytes:.1f} MB")


def _make_champion(
    root: Path, version: str, known: RegisteredModel, action: Any, why: str, figures: dict[str, Any]
) -> None:
    from stackseg.registry.champion import set_champion
    from stackseg.registry.versions import CHAMPION

    former = known.aliases.get(CHAMPION)
    set_champion(known.name, version, expected=former, action=action, why=why, figures=figures, lock=lock_file(root))
    say(f"version {version} is the champion of {known.name}" + (f" (before: {former})" if former else ""))
    uri = quote(f"models:/{known.name}@champion")
    next_step(f"stackseg serve, or: mlflow models serve -m {uri} --env-manager local -p 5001")


def _signed(value: float | None) -> str:
    return figure(None) if value is None else f"{value:+.4f}"
