"""Names under which runs and models are found again."""

from __future__ import annotations

from pydantic import Field

from stackseg.params.base import Section

_NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$"


class ProjectParams(Section):
    """Section `project`."""

    experiment: str = Field("stackseg", pattern=_NAME, max_length=100)
    """MLflow experiment that collects the runs."""
    model_name: str = Field("stackseg", pattern=_NAME, max_length=100)
    """Registered model that collects the versions."""
