"""The classes: which raw mask value or colour means what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stackseg.atomic import read_text
from stackseg.errors import ParamsError
from stackseg.params.base import Section, yaml_problem


def _colour(text: str) -> str:
    if not re.fullmatch("#[0-9a-f]{6}", text.lower()):
        raise ValueError('a colour is written "#rrggbb"')
    return text.lower()


def _raw_colour(text: str) -> str:
    if not re.fullmatch("#[0-9a-f]{6}([0-9a-f]{2})?", text.lower()):
        raise ValueError('a mask value is a whole number or a colour "#rrggbb" ("#rrggbbaa" where not opaque)')
    return text.lower()


Colour = Annotated[str, AfterValidator(_colour), WithJsonSchema({"type": "string", "pattern": "^#[0-9a-fA-F]{6}$"})]
RawColour = Annotated[
    str,
    AfterValidator(_raw_colour),
    WithJsonSchema({"type": "string", "pattern": "^#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?$"}),
]
RawCode = int | RawColour


class ClassParams(Section):
    """One class of `data.classes`; its index is its place in the list."""

    name: str = Field(min_length=1, max_length=60)
    """What the class is called in tables, pictures and answers."""
    raw: RawCode | list[RawCode]
    """Raw mask value (integer) or colour ("#rrggbb"); a list where masks were coded in several ways."""
    display: Colour
    """Colour in which the class is drawn."""

    @property
    def codes(self) -> tuple[int | str, ...]:
        """Raw codes of this class."""
        return tuple(self.raw) if isinstance(self.raw, list) else (self.raw,)


class DataParams(Section):
    """Section `data`."""

    classes: list[ClassParams] = Field(default_factory=list, max_length=254)
    """Every class, in the order of its index; `stackseg add` writes it."""
    colour: Literal["keep", "grey", "rgb"] = "keep"
    """Channels fed to the network: as stored; luminance of RGB; grey repeated to RGB (for mixed files)."""
    instances: bool = False
    """Whether masks number objects: 0 is the first class, each other value an object of the second."""
    ignore: RawCode | list[RawCode] | None = None
    """Raw mask value or colour of pixels that neither train nor score; a list for several."""
    unlabelled: Literal["ignore"] | None = None
    """What raw values that no class names are: refused (null), or ignored, as what scribbles leave undrawn."""
    partial: dict[str, list[str]] = Field(default_factory=dict)
    """Specimen to the classes that nobody annotated there: they are neither trained nor scored on it."""

    @property
    def ignored(self) -> tuple[int | str, ...]:
        """Raw codes to be ignored."""
        if self.ignore is None:
            return ()
        return tuple(self.ignore) if isinstance(self.ignore, list) else (self.ignore,)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [one.name for one in self.classes]
        if len(set(names)) < len(names):
            raise ValueError("two classes have the same name")
        codes = [code for one in self.classes for code in one.codes]
        codes += self.ignored
        if len(set(codes)) < len(codes):
            raise ValueError("a raw value or colour is named twice")
        if self.instances and self.classes and (len(self.classes) != 2 or self.classes[0].codes != (0,)):
            raise ValueError("with data.instances there are two classes, of which the first is background with raw: 0")
        if self.instances and (self.unlabelled or self.partial):
            raise ValueError("data.unlabelled and data.partial are for masks of classes, not for data.instances")
        return self


def read_classes(path: Path) -> DataParams:
    """Read a class table from a YAML file: a list of classes, or a mapping with `classes`, `ignore` and `unlabelled`.

    Raises
    ------
    ParamsError
        The file is missing or is no such table.
    """
    try:
        tree = YAML(typ="safe").load(read_text(path, ParamsError))
        return DataParams.model_validate({"classes": tree} if isinstance(tree, list) else tree)
    except FileNotFoundError:
        raise ParamsError("no such file", where=str(path), remedy="check --classes") from None
    except (ValidationError, YAMLError) as error:
        raise ParamsError(
            f"not a class table ({yaml_problem(error)})",
            expected='a list such as `- {name: quartz, raw: 2, display: "#9aa5b1"}`',
            where=str(path),
        ) from None
