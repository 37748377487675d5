"""measure, extract and assemble as they are typed."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stackseg.cli.main import app
from stackseg.dataset.files.stack import open_stack
from stackseg.errors import StacksegError
from stackseg.intake.write_tiff import write_stack
from verbs import verb


def tube(path: Path, voxel_z: float | None = 2.0) -> Path:
    """Write a mask of 6 planes: a tube of index 0 leads through solid of index 2 along z."""
    mask_zyx = np.full((6, 10, 10), 2, np.uint8)
    mask_zyx[:, 4:6, 4:6] = 0
    write_stack(path, mask_zyx, num_planes=6, voxel_size_zyx_um=(voxel_z, 0.5, 0.5))
    return path


def refusal(*words: str) -> str:
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, StacksegError), error
    return error.sentence()


def summary(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_mask_is_measured_with_the_classes_of_the_project(project: Path) -> None:
    tube(project / "mask.tif")
    said = verb(project, "measure", "mask.tif", "--pore", "pore")
    assert "in 3D: objects go on from plane to plane (planes are 2 µm apart); takes about 3.6e-06 GB" in said
    assert "porosity (pore): 4.00% in 1 pores; the largest is 100.00% of the pore space" in said
    assert "along z: percolates, with 100.00%" in said
    assert "along y: does not percolate" in said
    folder = project / "mask_measures"
    names = {"fractions.csv", "objects.csv", "summary.csv", "pores.csv", "fractions.png"}
    assert {one.name for one in folder.iterdir()} == names
    assert [(one["class"], one["volume_um3"]) for one in summary(folder)][::2] == [("pore", "12"), ("quartz", "288")]


def test_planes_are_measured_by_themselves_where_z_is_unknown_or_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tube(tmp_path / "known.tif")
    tube(tmp_path / "unknown.tif", None)
    assert "in 2D: each plane by itself (the file does not say" in verb(tmp_path, "measure", "unknown.tif")
    assert [one["objects"] for one in summary(tmp_path / "unknown_measures")] == ["6", "0", "6"]
    assert [one["class"] for one in summary(tmp_path / "unknown_measures")] == ["class 0", "class 1", "class 2"]
    assert "in 2D" in verb(tmp_path, "measure", "known.tif", "--2d", "--out", "two")
    assert "in 3D" in verb(tmp_path, "measure", "unknown.tif", "--3d", "--out", "three", "--pore", "0")
    assert summary(tmp_path / "three")[0]["median_volume_voxels"] == "24"
    assert "add --3d if the planes are neighbours".capitalize() in refusal(
        "measure", "unknown.tif", "--pore", "0", "--out", "x"
    )
    # predict numbers the objects of each plane anew
    assert "in 2D" in verb(tmp_path, "measure", "known.tif", "--objects", "--out", "objects")
    assert summary(tmp_path / "objects")[1]["objects"] == "6"
    assert "in 3D" in verb(tmp_path, "measure", "known.tif", "--objects", "--3d", "--out", "objects3")
    assert summary(tmp_path / "objects3")[1]["objects"] == "1"


def test_classes_come_from_a_file_and_strangers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tube(tmp_path / "m.tif")
    Path("c.yaml").write_text(
        '- {name: hole, raw: 0, display: "#000000"}\n- {name: rest, raw: 9, display: "#ffffff"}\n'
    )
    command = ("measure", "m.tif", "--classes", "c.yaml")
    told = refusal(*command)
    assert told.startswith(
        "m.tif plane 0: value 2 (96 pixels) is the index of no class; expected 0 to 1, as data.class"
    )
    assert not Path("m_measures").exists()
    assert "no class 'pore'; expected one of hole, rest" in refusal(*command, "--pore", "pore")
    assert "no class '2'" in refusal(*command, "--pore", "2")


def test_a_project_of_objects_measures_objects(project: Path) -> None:
    from stackseg.params.file import read_tree, write_tree

    tree = read_tree(project / "params.yaml")
    classes = [{"name": "background", "raw": 0, "display": "#000000"}, {"name": "cell", "raw": 1, "display": "#ffffff"}]
    tree["data"] |= {"instances": True, "classes": classes}
    write_tree(project / "params.yaml", tree)
    write_stack(project / "m.tif", np.array([[[0, 1, 1], [7, 7, 0]]], np.uint16), num_planes=1)
    verb(project, "measure", "m.tif")
    assert [(one["class"], one["objects"]) for one in summary(project / "m_measures")] == [
        ("background", ""),
        ("cell", "2"),
    ]


def test_folders_are_replaced_only_when_asked_and_never_with_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tube(tmp_path / "m.tif")
    for command, name in (
        (("measure", "m.tif", "--out", "out"), "summary.csv"),
        (("extract", "m.tif", "out"), "m_0.tif"),
    ):
        verb(tmp_path, *command)
        before = (tmp_path / "out" / name).stat().st_mtime_ns
        assert refusal(*command) == "out: the folder is there already. Name another, or add --overwrite"
        assert (tmp_path / "out" / name).stat().st_mtime_ns == before
        verb(tmp_path, *command, "--overwrite")
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        assert "holds other files (thesis.txt)" in refusal(*command, "--overwrite")
        assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
        (tmp_path / "out").rename(tmp_path / f"{name}.old")
    assert "m.tif: a file; expected a folder" in refusal("extract", "m.tif", "m.tif", "--overwrite")


def test_extract_and_assemble_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tube(tmp_path / "m.tif")
    assert verb(tmp_path, "extract", "m.tif", "p") == "p: planes 0 to 5 of m.tif, a file each\n"
    assert verb(tmp_path, "assemble", "p", "again.tif") == "again.tif: 6 planes of 10×10 pixels, uint8\n"
    with open_stack(Path("m.tif")) as first, open_stack(Path("again.tif")) as again:
        assert all(np.array_equal(first.plane(z), again.plane(z)) for z in range(6))
        assert first.info.voxel_size_zyx_um == again.info.voxel_size_zyx_um
    assert "again.tif: the file is there already" in refusal("assemble", "p", "again.tif")
    assert "nothere: no such folder" in refusal("assemble", "nothere", "x.tif")
    assert verb(tmp_path, "extract", "m.tif", "q", "--slices", "2:4").startswith("q: planes 2 to 3")
