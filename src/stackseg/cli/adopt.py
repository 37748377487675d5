"""Verbs that bring in models which no training of this project made: ensemble, import-model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackseg.cli.console import next_step, say
from stackseg.cli.models import PANEL
from stackseg.cli.predict import bundle_folder
from stackseg.cli.project import CATALOG, load_params, ready_store
from stackseg.cli.stages import CatalogFile

if TYPE_CHECKING:
    from stackseg.dataset.records import Catalog
    from stackseg.model.bundle import BundleSpec


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command(rich_help_panel=PANEL)(ensemble)
    app.command("import-model", rich_help_panel=PANEL)(import_model)


def ensemble(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Two or more: folders of bundles, versions, aliases or models:/…"),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the ensemble and its scores into.")] = Path(
        "outputs/ensemble"
    ),
    catalog: CatalogFile = CATALOG,
) -> None:
    """Join models to one that answers with the mean of their probabilities.

    Folds, or the best trials of a search, are good members: they err in different places. It takes as long as all of
    them together. No member may have seen the test part.
    """
    from contextlib import ExitStack

    from stackseg.dataset.records import read_catalog
    from stackseg.model.bundle import ParentRecord, read_bundle
    from stackseg.model.ensemble import join_bundles
    from stackseg.tracking.adopted import require_unseen_test_part
    from stackseg.tracking.lineage import git_state

    described = read_catalog(catalog)
    git = git_state(Path.cwd())
    members = []
    with ExitStack() as opened:
        for name in models:
            spec, weights = read_bundle(opened.enter_context(bundle_folder(name)))
            require_unseen_test_part(spec, described, name)
            version = None if Path(name).is_dir() else name
            members.append((ParentRecord(reference=name, version=version, digest=spec.digest), spec, weights))
        joined = join_bundles(out / "model", members, described, (git.commit, git.dirty))
    _adopt(joined, described, out, f"ensemble of {len(members)}")


def import_model(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|ZIP", help="A bundle: bundle.json and model.safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder to copy the model and write its scores into.")] = Path(
        "outputs/imported"
    ),
    catalog: CatalogFile = CATALOG,
) -> None:
    """Take in a bundle that was trained elsewhere, so that it can be scored here, registered and promoted.

    Its digest is verified; its classes must be this project's, and it must not have seen the test part.
    """
    import shutil

    from stackseg.atomic import atomic_folder
    from stackseg.dataset.records import read_catalog
    from stackseg.errors import ModelError
    from stackseg.model.bundle import SPEC_FILE, WEIGHTS_FILE, load_bundle
    from stackseg.tracking.adopted import require_unseen_test_part

    described = read_catalog(catalog)
    with _unpacked(source) as folder:
        spec = load_bundle(folder).spec
        found, expected = list(spec.inference.class_names), [one.name for one in described.classes]
        if found != expected:
            raise ModelError(
                f"its classes are {', '.join(found)}",
                expected=f"{', '.join(expected)}, as in {catalog}",
                where=str(source),
                remedy="name the classes of data.classes as the model does, in its order, and run `dvc repro catalog`",
            )
        require_unseen_test_part(spec, described, str(source))
        with atomic_folder(out / "model") as copy:
            for name in (SPEC_FILE, WEIGHTS_FILE):
                shutil.copyfile(folder / name, copy / name)
    _adopt(spec, described, out, "import")


def _adopt(spec: BundleSpec, catalog: Catalog, out: Path, made_by: str) -> None:
    from stackseg.tracking.adopted import adopt
    from stackseg.tracking.lineage import git_state

    params = load_params()
    _, experiment_id = ready_store(params)
    experiment = (params.project.experiment, experiment_id)
    adopt(spec, catalog, out, experiment=experiment, git=git_state(Path.cwd()), made_by=made_by)
    say(f"{out / 'model'} is bundle {spec.digest[:12]}")
    next_step(f"stackseg evaluate --model {out / 'model'} --out {out}, which scores and registers it")


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """Yield the folder of a bundle, which may lie in a ZIP file, at its top or in one folder."""
    import tempfile
    import zipfile

    from stackseg.errors import ModelError
    from stackseg.model.bundle import SPEC_FILE, WEIGHTS_FILE

    if source.is_dir():
        yield source
        return
    try:
        archive = zipfile.ZipFile(source)
    except FileNotFoundError:
        raise ModelError("no such file or folder", where=str(source), remedy="check the name") from None
    except zipfile.BadZipFile:
        raise ModelError(
            "no ZIP file", expected="a bundle's folder, or a ZIP of it", where=str(source), remedy="check the name"
        ) from None
    with archive, tempfile.TemporaryDirectory() as folder:
        # these two files and no other, whatever their paths in it
        for name in (SPEC_FILE, WEIGHTS_FILE):
            inside = [one for one in archive.namelist() if Path(one).name == name]
            if len(inside) != 1:
                raise ModelError(
                    f"{len(inside)} files named {name}", expected="one", where=str(source), remedy="pack one bundle"
                )
            try:
                (Path(folder) / name).write_bytes(archive.read(inside[0]))
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # damaged, or with a password
                raise ModelError(f"{inside[0]} cannot be unpacked ({error})", where=str(source)) from None
        yield Path(folder)
