"""Verbs that make models which no training of this project made: ensemble, export, import-model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stackseg.cli.console import counting, next_step, say
from stackseg.cli.models import PANEL
from stackseg.cli.predict import bundle_folder
from stackseg.cli.project import CATALOG, DATA, load_params, ready_store
from stackseg.cli.stages import CatalogFile

if TYPE_CHECKING:
    from stackseg.dataset.records import Catalog
    from stackseg.model.bundle import BundleSpec
    from stackseg.params.inference import Runtime

EXPORTS: dict[str, Runtime] = {"onnx": "onnxruntime", "openvino": "openvino"}


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command(rich_help_panel=PANEL)(ensemble)
    app.command(rich_help_panel=PANEL)(export)
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


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The folder of a bundle, a version, alias or models:/…")
    ],
    to: Annotated[Literal["onnx", "openvino"], typer.Option(help="ONNX Runtime, or Intel's OpenVINO.")],
    out: Annotated[Path, typer.Option(help="Folder to write the model and its scores into.")] = Path(
        "outputs/exported"
    ),
    data: Annotated[Path, typer.Option(help="The data folder.")] = DATA,
    catalog: CatalogFile = CATALOG,
) -> None:
    """Make a model that another runtime computes on the CPU, and compare it with torch on the validation part.

    It is a bundle with the converted network beside the weights: evaluate, promote, predict and serve take it as any
    other. What the comparison found is in its bundle.json. `predict --runtime` tries a runtime without this.
    """
    from stackseg.dataset.records import read_catalog
    from stackseg.evaluation.compare_runtimes import compare_runtimes
    from stackseg.model.bundle import load_bundle
    from stackseg.model.export import export_bundle
    from stackseg.tracking.adopted import require_unseen_test_part

    runtime = EXPORTS[to]
    described = read_catalog(catalog)
    with bundle_folder(model) as folder, counting("comparing") as progress:
        require_unseen_test_part(load_bundle(folder).spec, described, model)
        spec = export_bundle(
            folder,
            runtime,
            out / "model",
            lambda one, other: compare_runtimes(one, other, described, data, progress),
        )
    figures = spec.exported
    assert figures is not None  # noqa: S101  # for the type checker
    faster = figures.ms_per_megapixel_torch / figures.ms_per_megapixel
    say(
        f"{runtime} takes {figures.ms_per_megapixel:.0f} ms per megapixel, torch {figures.ms_per_megapixel_torch:.0f} "
        f"({faster:.2f} times as fast) on {figures.hardware}"
    )
    if figures.mean_iou is not None and figures.mean_iou_torch is not None:
        say(
            f"mean IoU {figures.mean_iou:.4f} on {figures.num_planes} validation planes, torch "
            f"{figures.mean_iou_torch:.4f}; {figures.differing_pixels:.4%} of the pixels differ"
        )
    _adopt(spec, described, out, f"export to {to}")


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
            for name in (SPEC_FILE, WEIGHTS_FILE, *(spec.exported.files if spec.exported else ())):
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
    from stackseg.model.runtimes import CONVERTED_FILES

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
        # these files and no other, whatever their paths in it
        converted = [name for names in CONVERTED_FILES.values() for name in names]
        for name in (SPEC_FILE, WEIGHTS_FILE, *converted):
            inside = [one for one in archive.namelist() if Path(one).name == name]
            if not inside and name in converted:
                continue
            if len(inside) != 1:
                raise ModelError(
                    f"{len(inside)} files named {name}", expected="one", where=str(source), remedy="pack one bundle"
                )
            try:
                (Path(folder) / name).write_bytes(archive.read(inside[0]))
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # damaged, or with a password
                raise ModelError(f"{inside[0]} cannot be unpacked ({error})", where=str(source)) from None
        yield Path(folder)
