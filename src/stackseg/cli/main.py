"""The command line: verbs grouped by what one wants to do."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from typing import Annotated, NoReturn

import typer

from stackseg import __version__
from stackseg.cli import adopt, data, fetch, maintenance, models, new, params, predict, promote, search, serve, stages
from stackseg.cli.console import err
from stackseg.environment import apply_quiet_environment, quieten_libraries
from stackseg.errors import MachineError, StacksegError, is_out_of_memory, without_passwords

app = typer.Typer(
    name="stackseg",
    help="From a TIFF stack and its masks to a promoted, served segmentation model.\n\n"
    "A first round: `stackseg sample`, then `dvc repro`. With your own files: "
    "`stackseg add IMAGES MASKS`, then `dvc repro`; `mlflow ui` shows every run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
new.attach(app)
data.attach(app)
fetch.attach(app)
stages.attach(app)
search.attach(app)
models.attach(app)
adopt.attach(app)
promote.attach(app)
predict.attach(app)
serve.attach(app)
maintenance.attach(app)
params.attach(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stackseg {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the verb."""


def run() -> None:
    """Run the command line: errors that a user can mend become one line and exit code 1."""
    apply_quiet_environment()
    quieten_libraries()
    first = _first_process()
    try:
        app()
    except KeyboardInterrupt:
        if first is None:
            err().print("interrupted")
        sys.exit(130)
    except Exception as error:
        if first is not None and _has_ended(first):
            sys.exit(1)  # it has said why
        _fail(error)


def _first_process() -> int | None:
    """Return the id of the process that started this one to train with it, or None if it is the first itself."""
    return os.getppid() if os.environ.get("LOCAL_RANK", "0") != "0" else None


def _has_ended(process: int) -> bool:
    """Wait for the first process to end, as it does on an error that all of them meet, and return whether it has."""
    deadline = time.monotonic() + 10
    while os.getppid() == process and time.monotonic() < deadline:
        time.sleep(0.05)
    return os.getppid() != process


def _known(error: Exception) -> StacksegError | None:
    """Return an error as one that a user can mend, or None: then it is a defect of ours, and its traceback is shown."""
    if isinstance(error, StacksegError):
        return error
    if is_out_of_memory(error):
        return MachineError(
            "out of memory",
            where=(str(error).splitlines() or [""])[0][:120],
            remedy="lower train.batch_size, train.patch_size or inference.tile, or close what else runs",
        )
    if isinstance(error, OSError):
        return _machine_error(error)
    from stackseg.tracking.store_errors import as_store_error, is_store_error

    if is_store_error(error):
        import mlflow

        from stackseg.tracking.uri import shown_uri

        return as_store_error(error, shown_uri(mlflow.get_tracking_uri()))
    return None


def _fail(error: Exception) -> NoReturn:
    """Print one line; of a defect of ours, or where it was asked for, the traceback."""
    known = _known(error)
    if known is not None and is_out_of_memory(error):
        # there may be no room for what draws lines either, nor for what other packages do at the exit
        sys.stderr.write(f"error: {known.sentence()}\n")
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)
    if known is None or "--debug" in sys.argv:
        sys.stderr.write(without_passwords("".join(traceback.format_exception(error))))
    else:
        err().print(f"[red]error:[/red] {known.sentence().replace('[', chr(92) + '[')}", soft_wrap=True)
    sys.exit(1)


def _machine_error(error: OSError) -> MachineError | None:
    where = str(error.filename2 or error.filename or "")  # of a copy, the file that was to be written
    if error.errno == errno.ENOSPC:
        return MachineError("the disk is full", where=where, remedy="free some space and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MachineError(
            f"no permission ({os.strerror(error.errno)})" if where else os.strerror(error.errno),
            where=where,
            remedy="mend the permissions of the file or folder, or run elsewhere",
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return MachineError(
            "a file lies where a folder is expected", where=where, remedy="move it aside, or name another folder"
        )
    return None
