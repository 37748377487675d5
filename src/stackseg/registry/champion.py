"""Move the aliases champion and previous so that an interruption at any point can be mended, and remember each move.

MLflow moves one alias per call and cannot compare and swap. A move is therefore written down first, as a tag of the
registered model (the intent); each step may be repeated, and whoever finds an intent whose process is gone completes
it. The champion is only ever pointed elsewhere, never taken away.
"""

from __future__ import annotations

import getpass
import socket
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import BaseModel, ConfigDict, ValidationError

from stackseg.errors import StoreError
from stackseg.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, Registered, registered
from stackseg.tracking.store_errors import store_lock

INTENT_TAG = "stackseg.move"
HISTORY_PREFIX = "stackseg.history."
MAX_TAG = 4800
"""Characters of a registered model's tag; a database server takes 5000."""
STALE_SECONDS = 60
"""Age from which a move begun on another machine counts as interrupted; one takes less than a second."""


class Move(BaseModel):
    """A change of champion: who, when, from, to, why, and the figures it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    when: datetime
    who: str
    host: str
    action: Literal["promote", "force", "rollback"]
    model: str
    from_version: str | None
    to_version: str
    previous_before: str | None
    why: str
    figures: dict[str, Any]
    outcome: str = ""


def plan(
    known: Registered,
    to_version: str,
    action: Literal["promote", "force", "rollback"],
    why: str,
    figures: dict[str, Any],
) -> Move:
    """Return the move of the champion from where it is known to be."""
    return Move(
        id=uuid.uuid4().hex,
        when=datetime.now(UTC),
        who=getpass.getuser(),
        host=socket.gethostname(),
        action=action,
        model=known.name,
        from_version=known.aliases.get(CHAMPION),
        to_version=to_version,
        previous_before=known.aliases.get(PREVIOUS),
        why=why,
        figures=figures,
    )


def carry_out(move: Move, lock: Path) -> Move:
    """Move the aliases, and return the move with its outcome.

    Parameters
    ----------
    move
        From `plan`; nothing happens if the champion has changed since.
    lock
        File that keeps the moves of this machine apart.

    Raises
    ------
    StoreError
        The champion has changed since, another machine is moving it, or the version was deleted meanwhile.
    """
    client = MlflowClient()
    with store_lock(lock):
        _complete(client, move.model)
        found = registered(move.model)
        if found.aliases.get(CHAMPION) != move.from_version:
            raise _changed(move, found.aliases.get(CHAMPION))
        client.set_registered_model_tag(move.model, INTENT_TAG, _fitting(move))
        written = _intent(client, move.model)
        if written is None or written.id != move.id:
            raise _under_way(move.model, written)
        done = _steps(client, move, "done")
    if done.outcome != "done":
        raise StoreError(
            f"version {move.to_version} was deleted meanwhile, the champion stays {move.from_version or '(none)'}",
            where=f"registered model {move.model}",
            remedy="`stackseg models` lists what is there",
        )
    return done


def complete_interrupted(model: str, lock: Path) -> Move | None:
    """Complete a move that an interruption left half done, and return it; None where there is nothing to mend.

    Raises
    ------
    StoreError
        A move that another machine began within the last minute is not done yet.
    """
    client = MlflowClient()
    if _intent(client, model) is None:
        return None
    with store_lock(lock):
        return _complete(client, model)


def history(model: str) -> list[Move]:
    """Return the moves of a registered model, oldest first."""
    tags = _tags(MlflowClient(), model)
    return [Move.model_validate_json(tags[key]) for key in sorted(tags) if key.startswith(HISTORY_PREFIX)]


def _complete(client: MlflowClient, model: str) -> Move | None:
    move = _intent(client, model)
    if move is None:
        return None
    # the lock is held: a move of this machine cannot be under way
    age = (datetime.now(UTC) - move.when).total_seconds()
    if move.host != socket.gethostname() and age < STALE_SECONDS:
        raise _under_way(model, move)
    return _steps(client, move, "done, completed after an interruption")


def _steps(client: MlflowClient, move: Move, outcome: str) -> Move:
    """Do the steps that are left; each may be done twice."""
    if not _exists(client, move.model, move.to_version) or not _point_to_it(client, move):
        _restore_previous(client, move)
        outcome = f"abandoned: version {move.to_version} was deleted"
    elif _tag_of(client, move.model, CHALLENGER) == move.to_version:
        client.delete_registered_model_alias(move.model, CHALLENGER)
    done = move.model_copy(update={"outcome": outcome})
    key = f"{HISTORY_PREFIX}{move.when:%Y%m%dT%H%M%S.%f}.{move.id[:8]}"
    client.set_registered_model_tag(move.model, key, _fitting(done))
    client.delete_registered_model_tag(move.model, INTENT_TAG)
    return done


def _point_to_it(client: MlflowClient, move: Move) -> bool:
    """Point previous to the old champion and champion to the new version; False if that is deleted meanwhile."""
    former = move.from_version
    if former is not None and former != move.to_version:
        _unless_deleted(lambda: client.set_registered_model_alias(move.model, PREVIOUS, former))
    return _unless_deleted(lambda: client.set_registered_model_alias(move.model, CHAMPION, move.to_version))


def _restore_previous(client: MlflowClient, move: Move) -> None:
    before = move.previous_before
    if before is None:
        client.delete_registered_model_alias(move.model, PREVIOUS)
    else:
        _unless_deleted(lambda: client.set_registered_model_alias(move.model, PREVIOUS, before))


def _unless_deleted(call: Callable[[], object]) -> bool:
    try:
        call()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _exists(client: MlflowClient, model: str, version: str) -> bool:
    return _unless_deleted(lambda: client.get_model_version(model, version))


def _tag_of(client: MlflowClient, model: str, alias: str) -> str | None:
    named = client.get_registered_model(model).aliases.get(alias)
    return None if named is None else str(named)


def _tags(client: MlflowClient, model: str) -> dict[str, str]:
    try:
        return dict(client.get_registered_model(model).tags)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def _intent(client: MlflowClient, model: str) -> Move | None:
    text = _tags(client, model).get(INTENT_TAG)
    if text is None:
        return None
    try:
        return Move.model_validate_json(text)
    except ValidationError:
        raise StoreError(
            f"the tag {INTENT_TAG} is no move of stackseg's",
            where=f"registered model {model}",
            remedy="delete the tag in `mlflow ui`, then look at the aliases by `stackseg models`",
        ) from None


def _fitting(move: Move) -> str:
    text = move.model_dump_json()
    if len(text) <= MAX_TAG:
        return text
    # many classes: their figures stay with the version's own tags
    return move.model_copy(update={"figures": {}, "why": move.why[:1000]}).model_dump_json()


def _changed(move: Move, champion: str | None) -> StoreError:
    return StoreError(
        f"the champion is version {champion or '(none)'} by now",
        expected=f"version {move.from_version or '(none)'}, as when this began",
        where=f"registered model {move.model}",
        remedy="`stackseg models --history` says who moved it; then type the command again",
    )


def _under_way(model: str, move: Move | None) -> StoreError:
    who = f"by {move.who} on {move.host} since {move.when:%H:%M:%S} UTC" if move is not None else "elsewhere"
    return StoreError(
        f"another change of champion is under way ({who})",
        where=f"registered model {model}",
        remedy="type the command again in a minute: it completes what was interrupted",
    )
