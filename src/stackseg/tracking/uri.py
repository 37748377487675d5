"""Where the project lies and where its runs are recorded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from stackseg.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import URL

PROJECT_MARKERS = ("params.yaml", "dvc.yaml")
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE_NAME = "mlflow.db"
_BARE_WORDS = ("databricks", "databricks-uc", "uc")  # addresses of MLflow's that are neither path nor URI


def project_root(start: Path | None = None) -> Path:
    """Return the project that holds `start` (the working directory by default).

    It is the nearest folder upwards with a params.yaml and a dvc.yaml. In the temporary workspaces of `dvc exp run
    --temp` and `--queue`, which DVC makes under `$DVC_ROOT/.dvc/tmp` and throws away, it is the project that they
    were copied from, also where that is a subfolder of the DVC repository.

    Raises
    ------
    StoreError
        No folder upwards is a project.
    """
    here = (start or Path.cwd()).resolve()
    folders = (here, *here.parents)
    root = next((folder for folder in folders if all((folder / name).is_file() for name in PROJECT_MARKERS)), None)
    if root is None:
        raise StoreError(
            "no project here or in a folder above",
            expected=f"a folder with {' and '.join(PROJECT_MARKERS)}",
            where=str(here),
            remedy="go to the project's folder (cd) and type the command again",
        )
    dvc_root = os.environ.get("DVC_ROOT")
    if dvc_root and root.is_relative_to((Path(dvc_root) / ".dvc" / "tmp").resolve()):
        workspace = next(folder for folder in (root, *root.parents) if (folder / ".dvc").is_dir())
        return Path(dvc_root).resolve() / root.relative_to(workspace)
    return root


def tracking_uri(root: Path) -> str:
    """Return the address of the tracking store.

    It is `MLFLOW_TRACKING_URI`, in which relative paths count from `root`, not from the working directory; unset, it is
    the database that a bare `mlflow ui` opens at `root`.

    Raises
    ------
    StoreError
        The variable names a database in memory.
    """
    given = os.environ.get(TRACKING_VARIABLE)
    if not given:
        return sqlite_uri(root / DATABASE_NAME)
    scheme, _, rest = given.partition(":")
    if _is_sqlite(scheme):
        path, _, query = rest.removeprefix("///").partition("?")
        if path in ("", "//", ":memory:"):
            raise StoreError(
                f"{given} is a database in memory, which is gone with the process",
                expected="a database file or a server",
                where=TRACKING_VARIABLE,
                remedy=f"unset {TRACKING_VARIABLE}, or give a file: sqlite:///{DATABASE_NAME}",
            )
        return sqlite_uri(root / unquote(path), scheme) + (f"?{query}" if query else "")
    if scheme == "file":
        return (root / url2pathname(urlsplit(given).path)).as_uri()
    is_path = "://" not in given and given not in _BARE_WORDS and not given.startswith("databricks")
    return (root / given).as_uri() if is_path else given


def sqlite_uri(database: Path, scheme: str = "sqlite") -> str:
    """Return the address of a database file."""
    # Only what SQLAlchemy would misread is encoded: for each encoded folder MLflow makes an empty one of that name.
    path = database.as_posix().replace("%", "%25").replace("?", "%3F")
    return f"{scheme}:///{path}"


def database_file(uri: str) -> Path | None:
    """Return the file of a sqlite address as `tracking_uri` gives it, or None for other stores."""
    scheme, _, rest = uri.partition(":")
    return Path(unquote(rest.removeprefix("///").partition("?")[0])) if _is_sqlite(scheme) else None


def own_database(root: Path) -> Path | None:
    """Return the project's own sqlite file, which moves with its folder, or None if the store lies elsewhere."""
    database = database_file(tracking_uri(root))
    return database if database is not None and database.resolve().is_relative_to(root.resolve()) else None


def require_whole_server(uri: str, address: URL, where: str) -> None:
    """Refuse a database server's address with an @ in its password, whose rest was taken for the server's name.

    Raises
    ------
    StoreError
        It has one; `address` is what SQLAlchemy makes of it, `where` names the variable or option.
    """
    if "@" in f"{address.host}{address.database}":
        raise StoreError(
            f"{shown_uri(uri)} has a password with an @ in it",
            expected="one @, before the server's name",
            where=where,
            remedy="write a password's own @ as %40, its / as %2F and its % as %25",
        )


def shown_uri(uri: str) -> str:
    """Return an address fit for a message: without user name, password and query."""
    scheme, separator, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    behind = rest[len(_who(rest)) :].partition("?")[0]
    return f"{scheme}{separator}{behind.rpartition('@')[2]}"


def _who(rest: str) -> str:
    """Return user name and password with their @; a password may have a question mark in it."""
    found = re.match(r"[^:/@?]*(:[^@]*)?@", rest)
    return found.group() if found else ""


def _is_sqlite(scheme: str) -> bool:
    return scheme.partition("+")[0] == "sqlite"
