"""MkDocs hook: the reference pages that are written from the code while the site is built.

params.yaml comes from the typed sections, the verbs from Typer, the server's request and answer from the signature
that is logged with every model. A new key, option or answer field without a description ends the build.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from stackseg.cli.main import app
from stackseg.params import Params, read_params
from stackseg.serving.packaging import SIGNATURE

ROOT = Path(__file__).parents[1]

PARAMETERS = {
    "output": "How the mask is written: `tiff`, `png` (one plane) or `npz` (NumPy's compressed file).",
    "probabilities": "Also send the probabilities of all classes, with `tiff` or `npz`.",
    "tta": "Test-time augmentation: `model` as the model was scored; `none`, `flips` (four times as long) or `d4` "
    "(eight times) give other masks than those.",
    "plane": "Segment only this plane of the stack, counted from 0. The other planes are its context. -1: all planes.",
    "ignore_voxel_size": "Segment although the voxel size is more than a factor of 2 from the training data's.",
}
ANSWER = {
    "mask": "Class indices in the form named by `output`, as base64; numbers of objects from 1 where the model tells "
    "these apart.",
    "probabilities": "Probabilities (planes, classes, Y, X) as a TIFF in base64, if asked for. With `npz` they are in "
    "the file of the mask.",
    "output": "Form of the mask.",
    "shape": "Shape of the mask.",
    "num_objects": "Objects in each plane; null where the mask holds class indices.",
    "classes": "Names of the classes, in the order of their indices.",
    "colours": "Display colours of the classes.",
    "fractions": "Share of the pixels that each class has.",
    "drift": "How far intensities, noise and voxel size are from the training part's.",
    "warnings": "The same in sentences; empty if nothing is unusual.",
    "model_name": "Registered model.",
    "model_version": "Version of the registered model.",
    "bundle_digest": "Digest of the bundle: weights and all that inference reads.",
    "code_digest": "Digest of the code that served.",
    "git_commit": "Commit that trained the model.",
    "data_md5": "DVC's digest of the data that trained the model.",
    "context_slices": "Neighbouring planes on each side that the network reads.",
    "intensity_scope": "Whose statistics standardise the image.",
    "milliseconds": "Time that the segmentation took.",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    pages = {"params": params_page(), "verbs": verbs_page(), "server": server_page()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name in each cell the column it belongs to: on a phone, rows are shown as lists of cells."""
    return re.sub(r"<table>.*?</table>", _with_labels, html, flags=re.DOTALL)


def _with_labels(table: re.Match[str]) -> str:
    labels = [re.sub("<.*?>", "", head) for head in re.findall(r"<th[ >].*?</th>", table[0], re.DOTALL)]
    rows = re.split(r"(?=<tr[ >])", table[0])
    return "".join(_with_labels_in_row(row, labels) for row in rows)


def _with_labels_in_row(row: str, labels: list[str]) -> str:
    start, *cells = re.split(r"<td(?=[ >])", row)
    return start + "".join(f'<td data-label="{label}"{cell}' for label, cell in zip(labels, cells, strict=False))


def params_page() -> str:
    """Return every key of params.yaml, section by section."""
    schema = Params.model_json_schema()
    shipped = read_params(ROOT / "params.yaml").model_dump()
    text = (ROOT / "docs" / "reference" / "params.intro.txt").read_text(encoding="utf-8")
    top = {name: one for name, one in schema["properties"].items() if "$ref" not in one}
    text += _section("", {"properties": top}, schema, shipped)
    for name, one in schema["properties"].items():
        if name not in top:
            text += _section(name, _resolved(one, schema), schema, shipped[name])
    return text


def _section(name: str, section: dict[str, Any], schema: dict[str, Any], shipped: dict[str, Any]) -> str:
    """Return the heading and the table of a section, and those of the sections in it."""
    text = f"\n## {name or 'Top level'}\n\n"
    # "Section `train`." says no more than the heading
    if description := re.sub(r"^Section `[\w.]+`[.:]\s*", "", section.get("description", "")):
        text += f"{description[0].upper()}{description[1:]}\n\n"
    prefix = f"{name}." if name else ""
    rows, inner = [], ""
    for key, one in section["properties"].items():
        target = _resolved(one, schema)
        if "$ref" in one:
            inner += _section(prefix + key, target, schema, shipped[key])
            continue
        if "description" not in one:
            raise PluginError(f"{prefix}{key} of params.yaml has no description")
        required = key in section.get("required", ())
        default = _code(one["default"]) if "default" in one else "required" if required else "empty"
        ships = shipped[key] if key in shipped else one.get("default")
        if "default" in one and ships != one["default"] and not isinstance(ships, dict | list):
            default += f"; {_code(ships)} in the shipped file"
        meaning = " ".join(one["description"].split())
        rows.append((f"`{prefix}{key}`", _type(one, schema), default, meaning))
        for entry in _entries(one, schema):
            inner += _section(f"{prefix}{key}[…]", entry, schema, {})
    if rows:
        text += _table(("key", "type", "default", "meaning"), rows)
    return text + inner


def _entries(one: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the sections that a list or mapping of sections holds."""
    for place in ("items", "additionalProperties"):
        held = one.get(place)
        if isinstance(held, dict) and "properties" in (entry := _resolved(held, schema)):
            yield entry


def _resolved(one: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = one.get("$ref")
    return dict(schema["$defs"][reference.rpartition("/")[2]]) if reference else one


def _type(one: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return type, choices and bounds of a key in words."""
    if "anyOf" in one:
        return " or ".join(dict.fromkeys(_type(kind, schema) for kind in one["anyOf"]))
    if "enum" in one:
        return ", ".join(_code(value) for value in one["enum"])
    if "const" in one:
        return _code(one["const"])
    if "$ref" in one:
        return "any value"
    kind = str(one.get("type", "any value"))
    if kind == "array":
        inner = _resolved(one["items"], schema)
        return "list of sections (below)" if "properties" in inner else f"list of {_type(one['items'], schema)}"
    if kind == "object":
        held = one.get("additionalProperties")
        if isinstance(held, dict) and "properties" in _resolved(held, schema):
            return "mapping of keys to sections (below)"
        return f"mapping of names to {_type(held, schema)}" if isinstance(held, dict) and held else "mapping"
    if "pattern" in one and one["pattern"].startswith("^#"):
        return 'colour `"#rrggbb"`'
    words = {
        "null": "null",
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
    }
    bounds = [
        f"{sign} {one[name]}"
        for name, sign in (
            ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")
        )
        if name in one
    ]  # fmt: skip
    return " ".join([words.get(kind, kind), ", ".join(bounds)]).strip()


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`" if not isinstance(value, str) else f"`{value}`"


def verbs_page() -> str:
    """Return every verb with its arguments and options, grouped as `stackseg --help` groups them."""
    text = (ROOT / "docs" / "reference" / "verbs.intro.txt").read_text(encoding="utf-8")
    group: Any = typer.main.get_command(app)
    panels: dict[str, list[tuple[str, Any]]] = {}
    for name, verb in group.commands.items():
        panels.setdefault(str(verb.rich_help_panel), []).append((f"stackseg {name}", verb))
    for panel, verbs in panels.items():
        text += f"\n## {panel}\n"
        for name, verb in verbs:
            text += "".join(_verb(*one) for one in _with_subverbs(name, verb))
    return text


def _with_subverbs(name: str, verb: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(verb, "commands"):
        yield name, verb
    else:
        for inner, one in verb.commands.items():
            yield from _with_subverbs(f"{name} {inner}", one)


def _verb(name: str, verb: Any) -> str:
    shown = [one for one in verb.params if one.name != "help" and not one.hidden]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = ["[OPTIONS]"] if len(shown) > len(arguments) else []
    usage = " ".join([name, *(_metavar(one) for one in arguments), *options])
    # outside of code, <specimen> would be taken for HTML
    said = re.sub(r"`[^`]*`|<", lambda match: "&lt;" if match[0] == "<" else match[0], verb.help)
    text = f"\n### {name}\n\n{said}\n\n```text\n{usage}\n```\n\n"
    rows = []
    for one in shown:
        if not one.help:
            raise PluginError(f"{one.name} of {name} has no help")
        names = f"`{_metavar(one)}`" if one in arguments else ", ".join(f"`{flag}`" for flag in one.opts)
        variable = f" Variable: `{one.envvar}`." if one.envvar else ""
        rows.append((names, _default(one), one.help + variable))
    return text + (_table(("option", "default", "meaning"), rows) if rows else "")


def _metavar(one: Any) -> str:
    name = one.metavar or one.name.upper()
    return name if one.required else f"[{name}]"


def _default(one: Any) -> str:
    if one.required:
        return "required"
    if one.default is None or one.default is False:
        return "–"
    return f"`{one.default}`"


def server_page() -> str:
    """Return request and answer of the served model."""
    intro = (ROOT / "docs" / "reference" / "server.intro.txt").read_text(encoding="utf-8")
    parameters = [
        (f"`{one.name}`", one.dtype.name, _code(one.default), _meaning(PARAMETERS, one.name))
        for one in SIGNATURE.params
    ]
    answer = [
        (f"`{one.name}`", _kind(one) + ("" if one.required else " or null"), _meaning(ANSWER, one.name))
        for one in SIGNATURE.outputs
    ]
    for described, there in ((PARAMETERS, SIGNATURE.params), (ANSWER, SIGNATURE.outputs)):
        if left := set(described) - {one.name for one in there}:
            raise PluginError(f"docs/reference_pages.py describes what the server does not know: {sorted(left)}")
    return intro.replace("@PARAMETERS@", _table(("key of `params`", "type", "default", "meaning"), parameters)).replace(
        "@ANSWER@", _table(("field", "type", "meaning"), answer)
    )


def _kind(column: Any) -> str:
    kind = column.type
    inner = getattr(kind, "dtype", None)
    return f"list of {inner.name}" if inner is not None else getattr(kind, "name", "object")


def _meaning(meanings: dict[str, str], name: str) -> str:
    if name not in meanings:
        raise PluginError(f"docs/reference_pages.py says nothing about the server's {name}")
    return meanings[name]


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines) + "\n"
