"""Bad input through the command line: one line that says what, where and what to do, exit code 1, nothing touched.

The verbs run in this process, through the same `run()` as the command; one test starts the command itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tifffile

from stackseg.cli import main
from stackseg.params.file import read_tree, write_tree

COMMAND = str(Path(sys.executable).parent / "stackseg")


def write(path: Path, stack: Any) -> Path:
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"[-stack.ndim :]})
    return path


def images(num_planes: int = 6) -> Any:
    return np.random.default_rng(0).integers(0, 4000, (num_planes, 40, 48)).astype(np.uint16)


def masks(num_planes: int = 6) -> Any:
    return np.random.default_rng(1).choice(np.array([0, 3], np.uint8), (num_planes, 40, 48))


def pair(folder: Path, image: Any, mask: Any) -> tuple[Path, Path]:
    return write(folder / "i.tif", image), write(folder / "m.tif", mask)


def missing(folder: Path) -> tuple[Path, Path]:
    return write(folder / "i.tif", images()), folder / "nothere.tif"


def empty(folder: Path) -> tuple[Path, Path]:
    found = pair(folder, images(), masks())
    found[0].write_bytes(b"")
    return found


def no_tiff(folder: Path) -> tuple[Path, Path]:
    found = pair(folder, images(), masks())
    found[1].write_bytes(b"GIF89a" + bytes(500))
    return found


def truncated(folder: Path) -> tuple[Path, Path]:
    found = pair(folder, images(), masks())
    found[0].write_bytes(found[0].read_bytes()[:9000])
    return found


def page_count(folder: Path) -> tuple[Path, Path]:
    return pair(folder, images(), masks(5))


def other_size(folder: Path) -> tuple[Path, Path]:
    return pair(folder, images(), masks()[:, :, 1:])


def not_a_number(folder: Path) -> tuple[Path, Path]:
    floats = images().astype(np.float32)
    floats[4, 5, 6] = np.nan
    return pair(folder, floats, masks())


def image_as_mask(folder: Path) -> tuple[Path, Path]:
    return pair(folder, images(), images())


def absurd_header(folder: Path) -> tuple[Path, Path]:
    found = pair(folder, images(), masks())
    with tifffile.TiffFile(found[0]) as file:
        place = file.pages[0].tags["ImageLength"].valueoffset  # type: ignore[union-attr]
    content = bytearray(found[0].read_bytes())
    content[place : place + 4] = struct.pack("<I", 2_000_000_000)
    found[0].write_bytes(bytes(content))
    return found


def two_types(folder: Path) -> tuple[Path, Path]:
    for kind in ("i", "m"):
        (folder / kind).mkdir()
    for z, image in enumerate((images()[0], images()[1].astype(np.uint8))):
        write(folder / "i" / f"f{z}.tif", image)
        write(folder / "m" / f"f{z}.tif", masks()[z])
    return folder / "i", folder / "m"


CASES: dict[str, tuple[Callable[[Path], tuple[Path, Path]], str]] = {
    "missing": (missing, "nothere.tif: no such file"),
    "empty": (empty, "i.tif: "),
    "no TIFF": (no_tiff, "m.tif: "),
    "truncated": (truncated, "i.tif"),
    "page count": (page_count, "5 masks for 6 planes"),
    "other size": (other_size, "masks of 40×47 pixels; expected 40×48"),
    "NaN": (not_a_number, "i.tif plane 4"),
    "image as mask": (image_as_mask, "m.tif"),
    "absurd header": (absurd_header, "i.tif"),
    "two types": (two_types, "f1.tif: pixels of type uint8; expected uint16, as "),
}


def state(folder: Path) -> dict[str, str]:
    """Return the digests of all that a user has in a project."""
    kept = [one for one in sorted(folder.rglob("*")) if one.is_file() and not {".git", ".dvc"} & set(one.parts)]
    return {str(one): hashlib.sha256(one.read_bytes()).hexdigest() for one in kept}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a verb in this process, as the command does, and return what it printed and its exit code."""
    command = ["stackseg", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main.run()
    return subprocess.CompletedProcess(command, int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def added(project_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with data that was added; not to be changed."""
    root = tmp_path_factory.mktemp("added") / "project"
    shutil.copytree(project_template, root)
    site = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root.parent / "site")}
    with contextlib.chdir(root), mock.patch.dict(os.environ, site):
        done = run("add", *pair(root.parent, images(), masks()), "--name", "rock")
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def good(added: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that project, which is the working directory."""
    root = tmp_path / "project"
    shutil.copytree(added, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return root


@pytest.mark.parametrize(("make", "words"), CASES.values(), ids=CASES)
def test_what_cannot_be_added_changes_nothing(
    project: Path, tmp_path: Path, make: Callable[[Path], tuple[Path, Path]], words: str
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    before = state(project)
    done = run("add", *make(folder), "--name", "bad")
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "Traceback" not in done.stdout + done.stderr
    assert state(project) == before


def test_good_data_stays_when_more_is_refused(good: Path, tmp_path: Path) -> None:
    before = state(good)
    folder = tmp_path / "files"
    folder.mkdir()
    for make in (truncated, not_a_number, image_as_mask):
        done = run("add", *make(folder), "--name", "more")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
    other_value = masks()
    other_value[3, 5, 5] = 9
    refused = [
        (images(), masks(), "rock", "the specimen is there already"),
        (images(), masks(), "Rock", "rock: differs from Rock only in case"),
        (images().astype(np.uint8), masks(), "more", "i.tif: pixels of type uint8; expected uint16, as data/rock/"),
        (images(), other_value, "more", "m.tif plane 3: the masks hold 9, which data.classes does not name"),
    ]
    for image, mask, name, words in refused:
        done = run("add", *pair(folder, image, mask), "--name", name)
        (line,) = done.stderr.splitlines()
        assert words in line
        assert done.returncode == 1
    assert state(good) == before


@pytest.mark.parametrize("command", [["sample"], ["add"], ["add", "--replace"]])
def test_data_that_is_a_link_is_refused_before_anything_is_copied(
    project: Path, tmp_path: Path, command: list[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (project / "data").symlink_to(disk, target_is_directory=True)
    files = pair(tmp_path, images(), masks()) if command[0] == "add" else ()
    done = run(*command, *files)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: data: it is a link to {disk}, and `dvc add` refuses links; expected a folder")
    assert list(disk.iterdir()) == []
    refusal = subprocess.run([sys.executable, "-m", "dvc", "add", "data"], capture_output=True, text=True, check=False)
    assert refusal.returncode
    assert "symlink" in refusal.stderr


def test_a_file_manager_s_traces_leave_the_sample_a_sample(project: Path, tmp_path: Path) -> None:
    assert run("sample").returncode == 0
    (project / "data" / ".DS_Store").write_bytes(b"Bud1")
    for kind, stack in (("i", images()), ("m", masks())):
        (tmp_path / kind).mkdir()
        for z in range(6):
            write(tmp_path / kind / f"{z}.tif", stack[z])
    (tmp_path / "i" / "Thumbs.db").touch()
    done = run("add", tmp_path / "i", tmp_path / "m", "--name", "rock")
    assert done.returncode == 0, done.stderr
    assert "i, for they are no images: 'Thumbs.db'" in " ".join(done.stdout.split())
    assert [one.name for one in (project / "data").iterdir()] == ["rock"]


def test_the_command_prints_a_line_and_a_traceback_only_when_it_is_asked_for(project: Path, tmp_path: Path) -> None:
    told, traced = (
        subprocess.run(
            [COMMAND, *debug, "add", "no.tif", "no.tif"], capture_output=True, text=True, check=False, timeout=100
        )
        for debug in ([], ["--debug"])
    )
    assert told.returncode == traced.returncode == 1
    (line,) = told.stderr.splitlines()
    assert line.startswith("error: no.tif: no such file")
    assert "Traceback" in traced.stderr
    assert "DataError" in traced.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epochs: ", "epoch: ", "train.epoch"),
        ("method: blocks", "method: block", "split.method"),
        ("seed: 7", "seed: seven", "seed"),
        ("validation: 0.15", "validation: 1.5", "split.validation"),
    ],
)
def test_params_that_are_none_are_one_line(good: Path, old: str, new: str, words: str) -> None:
    path = good / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    for verb in (["catalog"], ["params", "check"]):
        done = run(*verb)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert words in line
    assert not (good / "outputs").exists()


def test_stages_say_which_comes_first(good: Path) -> None:
    (good / "dvc.yaml").write_text("stages: {}\n")
    for verb in ("train", "evaluate", "register"):
        done = run(verb)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "catalog" in line
    assert not (good / "outputs").exists()


def test_one_plane_can_be_added_but_not_split(project: Path, tmp_path: Path) -> None:
    assert run("add", *pair(tmp_path, images(1), masks(1)), "--name", "single").returncode == 0
    for verb in ("check", "catalog"):
        done = run(verb)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "1 annotated plane" in line
    assert not (project / "outputs").exists()


def test_a_mask_that_changed_after_adding_is_found(good: Path) -> None:
    changed = masks()
    changed[2, 7, 7] = 200
    write(good / "data" / "rock" / "masks.tif", changed)
    for verb in ("check", "catalog"):
        done = run(verb)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "masks.tif plane 2" in line
        assert "200" in line


def test_a_cache_that_cannot_be_written_is_said_with_what_to_do_next(project: Path, tmp_path: Path) -> None:
    (project / ".dvc" / "cache").write_text("no folder")
    done = run("add", *pair(tmp_path, images(), masks()), "--name", "rock")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: `dvc add data` failed: ")
    assert str(project / ".dvc" / "cache") in line
    assert line.endswith("Mend this, then type `dvc add data`: your files are in data/ already")
    (project / ".dvc" / "cache").unlink()
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "data"], check=True)
    assert run("check").returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_leaves_the_catalogue_that_was_there(good: Path) -> None:
    assert run("catalog").returncode == 0
    before = (good / "outputs" / "catalog.json").read_bytes()
    (good / "outputs" / f".catalog.json.{platform.node()}.{os.getpid()}.new").symlink_to("/dev/full")
    done = run("catalog")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: outputs/catalog.json: the disk is full. Free some space")
    assert (good / "outputs" / "catalog.json").read_bytes() == before
    assert [one.name for one in (good / "outputs").iterdir()] == ["catalog.json"]


def test_a_search_is_refused_where_it_cannot_run(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stackseg.cli.search.platform.system", lambda: "Windows")
    done = run("search", "--trials", "2")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: a search needs process groups and alarms, which Windows lacks. Search under Linux")
    assert not (good / "optuna.db").exists()


def test_add_refuses_a_name_that_leaves_data(good: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    before = state(tmp_path)
    done = run("add", *pair(tmp_path, images(), masks()), "--name", "./../../victim", "--replace")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot be the name of a specimen" in line
    assert (tmp_path / "victim").is_dir()
    assert {one: digest for one, digest in state(tmp_path).items() if one in before} == before


# MLflow's own, on being imported
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("postgresql://ada:s3cret%40100@127.0.0.1:1/db", "does not answer (ConnectionRefusedError)"),
        ("http://ada:s3cret@100%@127.0.0.1:1", "does not answer (ConnectionRefusedError)"),
        ("postgresql://ada:x@y:s3cret@127.0.0.1/db", "is no address; expected"),
        ("postgresql://ada:s3cret@127.0.0.1:notanumber/db", "is no address; expected"),
        ("postgresql://ada:s3c@s3cret/@127.0.0.1:1/db", "a password with an @ in it; expected one @"),
        ("postgres+nonsense://ada:s3cret@h/db", "Correct MLFLOW_TRACKING_URI; unset"),
    ],
)  # fmt: skip
def test_a_wrong_tracking_address_is_told_by_every_verb_without_its_password(
    good: Path, monkeypatch: pytest.MonkeyPatch, address: str, words: str
) -> None:
    (good / "dvc.yaml").touch()
    assert run("catalog").returncode == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    image = good / "data" / "rock" / "images.tif"
    opening = (
        "train",
        "evaluate",
        "promote",
        "rollback",
        "models",
        "prune",
        f"predict {image} o.tif",
        "serve --port 0",
    )
    for verb in opening:
        done = run(*verb.split())
        assert done.returncode == 1, verb
        assert done.stderr.count("\n") == 1, done.stderr
        line = done.stderr
        assert line.startswith("error: "), verb
        assert words in line, verb
        assert "s3c" not in line + done.stdout, verb
    assert not (good / "checkpoints").exists()


def search_settings(root: Path, **more: Any) -> None:
    (root / "dvc.yaml").touch()
    tree = read_tree(root / "params.yaml")
    tree["search"] |= {"space": {"train.lr": [2e-3, 1e-4]}, **more}
    write_tree(root / "params.yaml", tree)


def test_outputs_that_cannot_be_written_are_noticed_before_the_work(good: Path) -> None:
    search_settings(good)
    catalog = good / "catalog.json"
    assert run("catalog", "--out", catalog).returncode == 0
    (good / "outputs").write_text("no folder")  # which stops root, too
    for verb in ("train", "evaluate", "search --trials 1", "search --trials 1 --apply"):
        done = run(*verb.split(), "--catalog", catalog)
        assert done.returncode == 1, verb
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: outputs: a file lies where a folder is expected. Move it aside"), verb
        assert done.stdout == "", verb
    assert not (good / "checkpoints").exists()
    assert not (good / "optuna.db").exists()


def test_cmaes_is_refused_on_a_shared_storage_before_anything_runs(good: Path) -> None:
    search_settings(good, sampler={"name": "cmaes", "arguments": {}})
    done = run("search", "--trials", "2", "--storage", "postgresql://ada:s3cret@127.0.0.1:1/studies")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: search.sampler.name: cmaes on postgresql+psycopg://127.0.0.1:1/studies: Optuna unpic"
    )
    assert "Choose tpe, gp or qmc, or leave out --storage" in line
    assert not (good / "mlflow.db").exists()
