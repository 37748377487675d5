"""What all sections of params.yaml share: frozen, strict, and no key that nothing reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml.error import YAMLError

from stackseg.errors import one_line


class Section(BaseModel):
    """A typed section: unknown keys are refused, values are not converted, nothing changes after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def yaml_problem(error: ValidationError | YAMLError) -> str:
    """Return on one line what is wrong in a YAML file: the place in its text, or its key and the value there."""
    if isinstance(error, YAMLError):
        return one_line(error, 200)
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key}: " * bool(key) + f"{first['msg'].removeprefix('Value error, ')}, found {repr(first['input'])[:80]}"
