"""Names under which runs and models are found again."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from stackseg.params.base import Section

_PATTERN, _LONGEST = r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$", 100


def _name(text: str) -> str:
    if not re.fullmatch(_PATTERN, text) or len(text) > _LONGEST:
        raise ValueError(
            f"a name begins with a letter A-Z or a digit, goes on with those, spaces, dots, _ and -, and has at most "
            f"{_LONGEST} characters: MLflow refuses others, such as / and :"
        )
    return text


Name = Annotated[
    str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": _PATTERN, "maxLength": _LONGEST})
]


class ProjectParams(Section):
    """Section `project`."""

    experiment: Name = "stackseg"
    """MLflow experiment that collects the runs."""
    model_name: Name = "stackseg"
    """Registered model that collects the versions."""
