"""The command that goes on with a study, to be typed."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from stackseg.cli.project import CATALOG, DATA

if TYPE_CHECKING:
    from stackseg.search.workers import Order


def same_search(order: Order, storage: str | None, catalog: Path) -> str:
    """Return the command that goes on with this study, to be typed; passwords are left out."""
    options = [
        ("--trials", order.num_trials, None),
        ("--workers", order.num_workers, 1),
        ("--top", order.num_kept, 1),
        ("--study", order.study, order.params.search.study),
        ("--storage", None if storage is None else _without_password(storage), None),
        ("--data", order.data, DATA),
        ("--catalog", catalog, CATALOG),
        ("--device", order.machine.device, "auto"),
    ]
    given = [f"{name} {quote(str(value))}" for name, value, default in options if value not in (None, default)]
    return " ".join(["stackseg search", *given])


def _without_password(storage: str) -> str:
    import sqlalchemy

    from stackseg.tracking.uri import shown_uri

    scheme = storage.partition(":")[0].partition("+")[0]
    if scheme in ("sqlite", "journal"):  # files: an @ is of their name
        return storage
    if scheme == "grpc":
        return shown_uri(storage)
    url = sqlalchemy.make_url(storage)._replace(password=None)
    return url.difference_update_query(["password", "sslpassword"]).render_as_string()
