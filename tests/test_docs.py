"""README and docs name only what is there: files, verbs and their options, keys of params.yaml, functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from stackseg.cli.main import app
from stackseg.params import Params
from stackseg.params.file import dotted_keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
INTRODUCTIONS = sorted((ROOT / "docs").rglob("*.intro.txt"))
# docs/reference_pages.py writes these while the site is built
GENERATED = {ROOT / "docs" / "reference" / f"{name}.md" for name in ("params", "verbs", "server")}
# options of git, dvc, mlflow and of benchmarks/
OTHER_TOOLS = {"--temp", "--queue", "--workspace", "--all-commits", "--allowed-hosts", "--epochs", "--sampler"}
FILES = (".yaml", ".dvc", ".json", ".csv", ".safetensors", ".py", ".lock", ".onnx", ".xml", ".bin")

by_page = pytest.mark.parametrize("page", [*PAGES, *INTRODUCTIONS], ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def verbs() -> dict[str, set[str]]:
    """Return the options of every verb."""
    command: Any = typer.main.get_command(app)
    return dict(_verbs(command, ""))


def _verbs(group: Any, prefix: str) -> Iterator[tuple[str, set[str]]]:
    for name, verb in group.commands.items():
        if hasattr(verb, "commands"):
            yield from _verbs(verb, f"{prefix}{name} ")
        else:
            yield prefix + name, {flag for one in verb.params for flag in one.opts} | {"--help"}


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "make run " in text
    assert "make test " in text


@by_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    relative = [one.partition("#")[0] for one in targets if "://" not in one and not one.startswith("#")]
    found = {one: (page.parent / one).resolve() for one in relative}
    assert [one for one, path in found.items() if not path.exists() and path not in GENERATED] == []


@by_page
def test_files_of_the_repository_exist(page: Path) -> None:
    named = {path for code in _inline(page) for path in re.findall(r"\b(?:src|tests|docs|benchmarks)/[\w./-]+", code)}
    assert [one for one in sorted(named) if not (ROOT / one).exists()] == []


@by_page
def test_verbs_and_their_options_exist(page: Path, verbs: dict[str, set[str]]) -> None:
    for command in _commands(page):
        words = command.split()
        name = next((" ".join(words[1:num]) for num in (3, 2) if " ".join(words[1:num]) in verbs), None)
        assert name is not None, command
        assert set(re.findall(r"(?<=\s)--[a-z][a-z-]*", command)) <= verbs[name], command


@by_page
def test_options_named_alone_exist(page: Path, verbs: dict[str, set[str]]) -> None:
    known = set().union(*verbs.values()) | OTHER_TOOLS
    named = {match[0] for code in _inline(page) if (match := re.match(r"--[a-z][a-z-]*", code))}
    assert named <= known


@by_page
def test_params_keys_exist(page: Path) -> None:
    sections = "|".join(Params.model_fields)
    keys = set(dotted_keys())
    text = page.read_text(encoding="utf-8")
    named = {match[0] for code in _inline(page) if (match := re.match(rf"({sections})(\.[a-z_]+)+", code))}
    named |= set(re.findall(r"-S ([a-z_.]+)=", text))
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        tree = YAML(typ="safe").load(block)
        for section in set(tree) & set(Params.model_fields) if isinstance(tree, dict) else ():
            named |= {f"{section}.{key}" for key in tree[section]}
    # the last part may be a name within a mapping, such as train.loss.dice
    unknown = [one for one in named if one not in keys and one.rpartition(".")[0] not in {"train.loss", "search.space"}]
    assert [one for one in sorted(unknown) if not one.endswith(FILES)] == []


@by_page
def test_python_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"^::: stackseg\.([\w.]+)\.(\w+)$", text, re.MULTILINE)
    named += re.findall(r"^from stackseg\.([\w.]+) import (\w+)$", text, re.MULTILINE)
    assert [f"{module}.{name}" for module, name in named if name not in _defined(module)] == []


def test_the_tutorial_shows_what_was_recorded() -> None:
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    included = set(re.findall(r'--8<-- "recorded/(\w+)\.txt"', tutorial))
    script = (ROOT / "docs" / "record_tutorial.sh").read_text(encoding="utf-8")
    recorded = set(re.findall(r"^record (\w+) ", script, re.MULTILINE))
    assert included == recorded == {path.stem for path in (ROOT / "docs" / "recorded").glob("*.txt")}


def _inline(page: Path) -> list[str]:
    """Return the code spans of a page, without its blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", text)]


def _commands(page: Path) -> Iterator[str]:
    """Yield the commands of stackseg that a page tells people to type."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|bat)?\n(.*?)```", text, re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *_inline(page)]:
        for part in re.split(r"&&|\||;", line):
            if match := re.search(r"(?:^|\s|=)stackseg [a-z].*", part):
                yield match[0].strip(" =")


def _defined(module: str) -> set[str]:
    path = ROOT / "src" / "stackseg" / f"{module.replace('.', '/')}.py"
    nodes = ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else []
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
