"""The registered model: its versions, aliases and history, and the bundle of the version that is meant."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient
from pydantic import BaseModel, ConfigDict

from stackseg.errors import ModelError, StoreError, one_line

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
HISTORY_PREFIX = "stackseg.history."
NONE_YET = "`dvc repro` makes one; if it finds nothing to do, `stackseg register` brings in the one of outputs/"
_ABSENT = {CHALLENGER: "no version was registered since the last promotion", PREVIOUS: "no earlier champion"}


class ChampionChange(BaseModel):
    """A change of champion: who, when, from, to, why, and the figures it rests on."""

    # older releases wrote more fields, and also changes that came to nothing
    model_config = ConfigDict(frozen=True, extra="ignore")

    when: datetime
    who: str
    host: str
    action: Literal["promote", "force", "rollback"]
    from_version: str | None
    to_version: str
    why: str
    figures: dict[str, Any]
    outcome: str = "done"


@dataclass(frozen=True)
class RegisteredModel:
    """Versions by number, newest first; which of them each alias names; changes of champion, oldest first."""

    name: str
    versions: dict[str, ModelVersion]
    aliases: dict[str, str]
    history: tuple[ChampionChange, ...] = ()
    description: str = ""

    def aliases_of(self, version: str) -> list[str]:
        """Return the aliases that name a version."""
        return sorted(alias for alias, named in self.aliases.items() if named == version)


def read_registered_model(name: str) -> RegisteredModel:
    """Return what the registry knows of a model; nothing, if it was never registered.

    `previous` is the latest champion before the present one that is still there, by the history: so it is right
    however the champion was changed, and wherever a change was interrupted.
    """
    try:
        model = MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return RegisteredModel(name, {}, {})
        raise
    found = sorted(mlflow.search_model_versions(filter_string=f"name='{name}'"), key=lambda one: -int(one.version))
    versions = {str(one.version): one for one in found}
    # search results carry no aliases: the registered model does
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    changes = [model.tags[key] for key in sorted(model.tags) if key.startswith(HISTORY_PREFIX)]
    recorded = [ChampionChange.model_validate_json(text) for text in changes]
    history = tuple(one for one in recorded if not one.outcome.startswith("abandoned"))
    champions = [version for one in history for version in (one.from_version, one.to_version)]
    earlier = [one for one in champions if one in versions and one != aliases.get(CHAMPION)]
    if earlier:
        aliases[PREVIOUS] = str(earlier[-1])
    return RegisteredModel(name, versions, aliases, history, model.description or "")


def find(known: RegisteredModel, wanted: str) -> str:
    """Return the number of the version that an alias or a number names.

    Raises
    ------
    StoreError
        There is none; the message lists what there is.
    """
    number = known.aliases.get(wanted, wanted)
    if number in known.versions:
        return number
    there = [*known.aliases, *known.versions]
    absent = _ABSENT.get(wanted) if there else None
    raise StoreError(
        absent or f"no version or alias {wanted!r}",
        expected=f"one of {', '.join(there)}" if there else "a registered version",
        where=f"registered model {known.name}",
        remedy="`stackseg models` lists them; `stackseg promote` names a champion" if there else NONE_YET,
    )


def version_at(uri: str) -> ModelVersion:
    """Return the version that models:/NAME@ALIAS or models:/NAME/VERSION names.

    Raises
    ------
    StoreError
        It is spelled otherwise, or there is none.
    """
    named = re.fullmatch(r"models:/([^/@]+)[/@]([^/@]+)", uri)
    if named is None:
        raise StoreError("no version's address", expected="models:/NAME@ALIAS or models:/NAME/VERSION", where=uri)
    known = read_registered_model(named[1])
    return known.versions[find(known, named[2])]


def uri_of(version: ModelVersion) -> str:
    """Return a version's address, as people know it."""
    return f"models:/{version.name}/{version.version}"


@contextmanager
def bundle_at(uri: str, called: str) -> Iterator[Path]:
    """Yield a copy of the bundle inside a logged model, from wherever it is kept.

    Parameters
    ----------
    uri
        As MLflow names it, e.g. the source of a version.
    called
        What errors name, also those about the copy: it is gone by the time that they are read.

    Raises
    ------
    ModelError
        The artifacts are not there, or hold no bundle of ours.
    """
    with tempfile.TemporaryDirectory(prefix="stackseg-", ignore_cleanup_errors=True) as folder:
        try:
            root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        except KeyboardInterrupt:
            # MLflow's threads go on copying until the process ends; what they write meanwhile is removed after them
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            raise
        except (MlflowException, OSError) as error:
            raise ModelError(
                f"its artifacts cannot be had ({one_line(error, 600)})",
                where=called,
                remedy="check the version by `stackseg models`; a moved project is mended by `stackseg relocate`",
            ) from None
        try:
            inside = Model.load(str(root)).flavors["python_function"]["artifacts"]["bundle"]["path"]
        except (MlflowException, OSError, KeyError, TypeError):
            raise ModelError(
                "no model of stackseg's",
                where=called,
                expected="a bundle among its artifacts",
                remedy="name another version",
            ) from None
        try:
            yield root / inside
        except ModelError as error:
            found, where = (text.replace(str(root / inside), called) for text in (error.found, error.where))
            raise ModelError(found, expected=error.expected, where=where, remedy=error.remedy) from None
