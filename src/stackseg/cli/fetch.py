"""Fetch the published data of a recipe."""

from __future__ import annotations

import tempfile
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from stackseg.cli import data
from stackseg.cli.console import counting, say
from stackseg.cli.project import load_params
from stackseg.errors import DataError

SOURCES = Path("sources.yaml")


def attach(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(rich_help_panel=data.PANEL)(fetch)


def fetch(
    name: Annotated[
        str,
        typer.Argument(help="sandstone, nuclei, nuclei-corrected, mitochondria or membranes."),
    ],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A folder with the files, or with images.tif and masks.tif or instances.tif."),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Another address of the same files; their checksums are the same.")
    ] = None,
) -> None:
    """Download published data and add them: converted to images and masks, their source and licence recorded.

    A download that broke off goes on where it was. sources.yaml keeps the checksum of every file: the next download
    must give the same.
    """
    import pooch

    from stackseg.params.file import read_tree, write_tree
    from stackseg.recipes.download import download
    from stackseg.recipes.sources import arrange, read_publication

    publication = read_publication(name)
    params = load_params()
    # a table that names classes has nothing to do with numbers of objects
    takes_objects = params.data.instances or data.has_no_table(params)
    say(f"{name}: licence {publication.licence}")
    if source is not None and (source / "images.tif").exists():
        numbered = source / "instances.tif"
        masks = numbered if takes_objects and numbered.exists() else source / "masks.tif"
        data.add(source / "images.tif", masks, name=name)
        return
    recorded = read_tree(SOURCES) if SOURCES.exists() else {}
    known = {file: entry["sha256"] for file, entry in recorded.get(name, {}).get("files", {}).items()}
    urls = publication.urls()
    if source is None:
        files = Path(pooch.os_cache("stackseg")) / name
        if mirror is not None:
            urls = {file: f"{mirror.rstrip('/')}/{file}" for file in urls}
        with counting("downloading files") as progress:
            found = download(urls, known, files, progress)
    else:
        files = source
        missing = [file for file in urls if not (source / file).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(urls)} files are missing, such as {missing[0]}",
                expected="the files as they are published, or images.tif and masks.tif",
                where=str(source),
                remedy="look where the files are, or leave --from out to download them",
            )
        found = {file: pooch.file_hash(str(source / file), alg="sha256") for file in urls}
        if changed := [file for file in urls if known.get(file, found[file]) != found[file]]:
            raise DataError(
                "another file than recorded",
                where=str(source / changed[0]),
                remedy=f"look at it, then remove its entry from {SOURCES}",
            )
    with tempfile.TemporaryDirectory() as work:
        for specimen in arrange(publication, files, Path(work)):
            masks = specimen.instances if takes_objects and specimen.instances is not None else specimen.masks
            data.add(specimen.images, masks, name=specimen.name)
    recorded[name] = {
        "licence": publication.licence,
        "fetched": date.today().isoformat(),  # the user's own day
        "files": {file: {"url": urls[file], "sha256": found[file]} for file in urls},
    }
    write_tree(SOURCES, recorded)
    say(f"{SOURCES} says where the files are from, and their checksums")
