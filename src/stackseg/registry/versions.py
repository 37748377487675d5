"""Registered versions: list them, find the one that is meant, and bring its bundle here."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from stackseg.errors import ModelError, StoreError

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
NONE_YET = "`dvc repro` makes one; if it finds nothing to do, `stackseg register` brings in the one of outputs/"
_ABSENT = {CHALLENGER: "no version was registered since the last promotion", PREVIOUS: "no earlier champion"}


@dataclass(frozen=True)
class Registered:
    """The registered model: versions by number, newest first, and which of them each alias names."""

    name: str
    versions: dict[str, ModelVersion]
    aliases: dict[str, str]

    def aliases_of(self, version: str) -> list[str]:
        """Return the aliases that name a version."""
        return sorted(alias for alias, named in self.aliases.items() if named == version)


def registered(name: str) -> Registered:
    """Return what the registry knows of a model; nothing, if it was never registered."""
    client = MlflowClient()
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return Registered(name, {}, {})
        raise
    versions: list[ModelVersion] = []
    token = None
    while token != "":
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        versions, token = [*versions, *page], page.token or ""
    ordered = sorted(versions, key=lambda one: -int(one.version))
    # search results carry no aliases: the registered model does
    return Registered(
        name,
        {str(one.version): one for one in ordered},
        {alias: str(version) for alias, version in model.aliases.items()},
    )


def find(known: Registered, wanted: str) -> str:
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
                f"its artifacts cannot be had ({str(error).splitlines()[0][:160]})",
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
