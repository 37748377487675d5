"""Verbs on params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stackseg.atomic import write_text
from stackseg.cli.console import say
from stackseg.cli.project import load_params

PANEL = "Project"


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Check params.yaml, or write its JSON schema.")
    group.command()(schema)
    group.command()(check)
    app.add_typer(group, name="params", rich_help_panel=PANEL)


def schema(out: Annotated[Path, typer.Option(help="File to write.")] = Path("params.schema.json")) -> None:
    """Write the JSON schema by which editors complete and check params.yaml."""
    from stackseg.params.file import json_schema

    write_text(out, json_schema())
    say(f"wrote {out}")


def check() -> None:
    """Read params.yaml and say whether it is valid."""
    load_params()
    say("params.yaml is valid")
