"""Keys that MLflow takes, made of what users call their classes, specimens and pictures."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

MAX_KEY = 250
"""Characters of a key of MLflow's."""
MAX_FILE_KEY = 120
"""Characters of a key that becomes a part of a file's name, to which MLflow adds as many."""


def accepted_keys(names: Iterable[str], *, flags: int = 0, longest: int = MAX_KEY) -> dict[str, str]:
    """Return each name with its key; no two of them share one, and a name that MLflow takes is its own.

    Parameters
    ----------
    names
        All that are keys of the same kind: metrics of a run, tags of a version, pictures.
    flags
        ``re.ASCII`` where only English letters are taken.
    longest
        Characters of a key.
    """
    keys = {name: _accepted(name, flags)[:longest] for name in names}
    times = Counter(keys.values())

    def distinct(name: str, key: str) -> str:
        if name == key or times[key] == 1:
            return key
        return f"{key[: longest - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    return {name: distinct(name, key) for name, key in keys.items()}


def _accepted(name: str, flags: int) -> str:
    """Return a name without what MLflow refuses: other signs, and parts that a file system would resolve."""
    parts = re.sub(r"[^\w\-. /]", "_", name, flags=flags).split("/")
    return "/".join("_" * max(1, len(part)) if part in ("", ".", "..") else part for part in parts)
