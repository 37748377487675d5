"""The command line's surface: verbs and options that people's scripts rely on, help that teaches, a quick start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from stackseg.cli.main import app

SURFACE: dict[str, str] = {
    "new": "FOLDER [IMAGES] [MASKS] --recipe",
    "sample": "--height --planes --seed --width",
    "add": "IMAGES MASKS --axes --classes --mask-axes --name --planes --replace",
    "fetch": "NAME --from --mirror",
    "check": "--json",
    "catalog": "[DATA] --out",
    "train": "[DATA] --catalog --device --folds --out --processes --workers",
    "evaluate": "[DATA] --catalog --device --model --out",
    "search": (
        "--apply --catalog --data --device --register-best --resume --storage --study --timeout --top --trials "
        "--workers"
    ),
    "register": "--data --out",
    "models": "--history --json",
    "ensemble": "MODELS --catalog --out",
    "export": "MODEL --catalog --data --out --to",
    "import-model": "SOURCE --catalog --out",
    "promote": "[VERSION] --catalog --data --device --force --reason",
    "rollback": "--reason",
    "predict": (
        "IMAGE OUT --axes --device --fill-holes --ignore-voxel-size --level --min-object --model --orthogonal "
        "--overwrite --part --probabilities --resume --runtime --scheduler --slices --tta --uncertainty --workers"
    ),
    "suggest": "[INPUTS] --axes --device --method --min-distance --model --num --out --tta",
    "serve": "--device --host --max-megabytes --max-megapixels --model --port --timeout --watch --watch-seconds",
    "segment-remote": "URL IMAGE OUT --axes --ignore-voxel-size --in-flight --overwrite --timeout --tta",
    "measure": "MASKS --3d --axes --classes --objects --out --overwrite --pore",
    "extract": "STACK FOLDER --axes --overwrite --slices",
    "assemble": "FOLDER OUT --overwrite",
    "relocate": "--from",
    "prune": "--days --keep --yes",
    "params schema": "--out",
    "params check": "",
}


def verbs() -> dict[str, click.Command]:
    """Return every verb by its words."""
    root = typer.main.get_command(app)
    found: dict[str, click.Command] = {}

    def walk(command: click.Command, words: str) -> None:
        for name, one in getattr(command, "commands", {}).items():
            if hasattr(one, "commands"):
                walk(one, f"{words}{name} ")
            else:
                found[words + name] = one

    walk(root, "")
    return found


def surface(command: click.Command) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    named = [f"{one.name}".upper() if one.required else f"[{one.name}]".upper() for one in arguments]
    options = sorted(max(one.opts, key=len) for one in command.params if one.param_type_name == "option")
    return " ".join([*named, *options])


def test_verbs_and_options_are_these() -> None:
    assert {name: surface(one) for name, one in verbs().items()} == SURFACE


@pytest.mark.parametrize("verb", SURFACE)
def test_every_verb_explains_itself_and_its_options(verb: str) -> None:
    shown = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert shown.exit_code == 0
    command = verbs()[verb]
    sentence = (command.help or "").strip().split("\n")[0]
    assert sentence.endswith(".")
    assert sentence.split()[0] in shown.output
    for one in command.params:
        assert getattr(one, "help", None), f"{verb} {one.name} has no help"


def test_an_unknown_verb_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["trian"]).exit_code == 2
    assert CliRunner().invoke(app, ["train", "--eopchs", "3"]).exit_code == 2


LOADED = """
import sys
from stackseg.cli.main import run
for line in sys.argv[1].splitlines():
    sys.argv = ["stackseg", *line.split()]
    try:
        run()
    except SystemExit as end:
        assert end.code == 0
names = {one if one.startswith("stackseg.params") else one.partition(".")[0] for one in sys.modules}
print("loaded:", *sorted(one for one in names - sys.stdlib_module_names if not one.startswith("_")))
"""
LIGHT = {
    *("stackseg", "typer", "click", "annotated_doc", "shellingham"),
    *("rich", "attr", "markdown_it", "mdurl", "pygments"),
    # Typer checks values by it; but stackseg.params, which has sections of ours, is not to be there
    *("pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"),
}
"""What may be loaded: Typer, rich, and what those two stand on."""


def said_and_loaded(lines: str, **more: str) -> tuple[str, set[str]]:
    command = [sys.executable, "-c", LOADED, lines]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **more})
    said, _, loaded = done.stdout.rpartition("loaded:")
    return said, set(loaded.split())


def test_help_loads_nothing_but_typer_and_rich() -> None:
    said, loaded = said_and_loaded("\n".join(f"{words} --help" for words in ("", *SURFACE)))
    assert said.count("Usage: stackseg") == 1 + len(SURFACE)
    assert loaded <= LIGHT


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_what_a_stage_misses_is_told_before_the_libraries_are_loaded(project: Path, stage: str) -> None:
    script = f"""
import sys
from stackseg.cli.main import run
sys.argv = ["stackseg", {stage!r}]
try:
    run()
finally:
    print(*{{"torch", "mlflow"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: outputs/catalog.json: no such file")
    assert done.stdout.split() == []


def test_completion_loads_nothing_but_typer_and_rich() -> None:
    asked = {"_STACKSEG_COMPLETE": "complete_bash", "COMP_WORDS": "stackseg train --pro", "COMP_CWORD": "2"}
    said, loaded = said_and_loaded("train --pro", **asked)
    assert said.split() == ["--processes"]
    assert loaded <= LIGHT
