"""How the command line speaks: tables, progress, one line per error."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_DAYS_S = 7 * 24 * 3600.0


def out() -> Console:
    """Return the console for results."""
    return Console(highlight=False)


def err() -> Console:
    """Return the console for progress and errors."""
    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a line of result, unwrapped."""
    out().print(text, soft_wrap=True, markup=False)


def warn(text: str) -> None:
    """Print a warning."""
    err().print(f"[yellow]warning:[/yellow] {_escape(text)}", soft_wrap=True)


def next_step(text: str) -> None:
    """Print what to type next."""
    out().print(f"[bold]next:[/bold] {_escape(text)}", soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, whole: Sequence[str] = ()) -> None:
    """Print a table; numbers are right-aligned, and columns named by `whole` are never broken into lines."""
    shown = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    listed = [list(row) for row in rows]
    for place, name in enumerate(columns):
        numeric = bool(listed) and all(_is_number(row[place]) for row in listed)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=name in whole)
    for row in listed:
        shown.add_row(
            *[cell if isinstance(cell, str) and cell.startswith("[on ") else _escape(_text(cell)) for cell in row]
        )
    out().print(shown)


def print_json(tree: Any) -> None:
    """Print JSON, for programs."""
    typer.echo(json.dumps(tree, indent=2))


def swatch(colour: str) -> str:
    """Return a patch of a display colour."""
    return f"[on {colour}]   [/]"


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress over things that are counted; gives a function of (done, all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = err()
    # where nobody watches, rich would leave an empty line of it
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def counting_pixels(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """Show progress over planes, and how fast it is; gives a function of (done, all, pixels computed so far)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("planes, {task.fields[rate]},"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    console = err()
    start = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, rate="… megapixels/s")

        def show(done: int, total: int, pixels: int) -> None:
            rate = pixels / 1e6 / max(1e-3, time.monotonic() - start)
            progress.update(task, completed=done, total=total, rate=f"{rate:.2f} megapixels/s")

        yield show


def training_progress() -> Progress:
    """Return the progress bar of a training."""
    console = err()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}"),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("validation IoU {task.fields[iou]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def study_progress() -> Progress:
    """Return the progress bar of a study."""
    console = err()
    return Progress(
        BarColumn(bar_width=max(1, min(30, console.width - 66))),  # the text is never cut for it
        TextColumn("{task.completed}/{task.total} trials, {task.fields[pruned]} pruned, best {task.fields[best]},"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=_DAYS_S,  # trials take longer than the half minute that rich looks back
    )


def figure(value: float | None, digits: int = 4) -> str:
    """Return a score as text; null stays null."""
    return "null" if value is None else f"{value:.{digits}f}"


def _text(cell: Any) -> str:
    return figure(cell) if isinstance(cell, float) or cell is None else str(cell)


def _is_number(cell: Any) -> bool:
    return cell is None or isinstance(cell, int | float)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def count_of_planes(num: int) -> str:
    """Return "1 plane", or "7 planes"."""
    return f"{num} plane{'s' * (num != 1)}"
