"""Change the champion: setting its alias is the change, all else follows from it and may be missing.

MLflow sets one alias per call. Whatever interrupts a change, the champion is the old one or the new one; at worst the
entry in the history, the alias `previous` or a description is missing, and the next change brings them up to date.
"""

from __future__ import annotations

import getpass
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from stackseg.errors import StoreError
from stackseg.registry.description import update_descriptions
from stackseg.registry.versions import (
    CHALLENGER,
    CHAMPION,
    HISTORY_PREFIX,
    PREVIOUS,
    ChampionChange,
    read_registered_model,
)
from stackseg.tracking.store_errors import store_lock

MAX_TAG = 4800
"""Characters of a tag; a database server takes 5000."""


def set_champion(
    name: str,
    version: str,
    *,
    expected: str | None,
    action: Literal["promote", "force", "rollback"],
    why: str,
    figures: dict[str, Any],
    lock: Path,
) -> ChampionChange:
    """Make a version the champion and record it in the history.

    Parameters
    ----------
    name, version
        Registered model, and the version that becomes its champion.
    expected
        The champion on which the decision rests, or None.
    action, why, figures
        For the history.
    lock
        File that keeps changes from this machine apart.

    Raises
    ------
    StoreError
        The champion has changed since, or the version was deleted meanwhile.
    """
    client = MlflowClient()
    with store_lock(lock):
        found = client.get_registered_model(name).aliases.get(CHAMPION)
        former = None if found is None else str(found)
        if former != expected:
            raise StoreError(
                f"the champion is version {former or '(none)'} by now",
                expected=f"version {expected or '(none)'}, as when this began",
                where=f"registered model {name}",
                remedy="`stackseg models --history` says who changed it; then type the command again",
            )
        try:
            client.set_registered_model_alias(name, CHAMPION, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise StoreError(
                f"version {version} was deleted meanwhile, the champion stays {former or '(none)'}",
                where=f"registered model {name}",
                remedy="`stackseg models` lists what is there",
            ) from None
        change = ChampionChange(
            when=datetime.now(UTC),
            who=getpass.getuser(),
            host=socket.gethostname(),
            action=action,
            from_version=former,
            to_version=version,
            why=why,
            figures=figures,
        )
        text = change.model_dump_json()
        if len(text) > MAX_TAG:  # of many classes: the figures stay in the version's own tags
            text = change.model_copy(update={"figures": {}, "why": why[:1000]}).model_dump_json()
        key = f"{HISTORY_PREFIX}{change.when:%Y%m%dT%H%M%S.%f}.{uuid.uuid4().hex[:8]}"
        client.set_registered_model_tag(name, key, text)
        known = read_registered_model(name)
        if PREVIOUS in known.aliases:  # for whoever asks MLflow itself
            client.set_registered_model_alias(name, PREVIOUS, known.aliases[PREVIOUS])
        if known.aliases.get(CHALLENGER) in (version, former):
            client.delete_registered_model_alias(name, CHALLENGER)
        update_descriptions(known, version, former)
    return change


def note_verdict(name: str, version: str, verdict: str) -> None:
    """Keep with a version what the gate said."""
    MlflowClient().set_model_version_tag(name, version, "gate", verdict[:MAX_TAG])
    update_descriptions(read_registered_model(name), version)
