"""fetch: from a server to a project that checks, with its sources on record."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile

from stackseg.cli.data import DATA
from stackseg.params import read_params
from stackseg.params.file import read_tree, write_values
from stackseg.recipes.sources import read_publication


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("stackseg")), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Return a folder with files such as those of the membranes."""
    random = np.random.default_rng(0)
    for file in read_publication("membranes").urls():
        path = tmp_path / "published" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(path, random.choice(np.array([0, 255], np.uint8), (32, 32)))
    return tmp_path / "published"


def test_from_a_mirror_to_a_project_that_checks(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run("new", "p", "--recipe", "membranes", folder=tmp_path).returncode == 0
    project = tmp_path / "p"
    handler = functools.partial(Quiet, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        done = run("fetch", "membranes", "--mirror", f"http://127.0.0.1:{server.server_port}", folder=project)
        server.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr
    assert "free for research" in done.stdout
    assert run("check", folder=project).returncode == 0
    files = read_tree(project / "sources.yaml")["membranes"]["files"]
    assert len(files) == 60
    assert files["image/3.png"]["url"].endswith("/image/3.png")
    assert read_params(project / "params.yaml").evaluate.membrane_class == "membrane"
    # the same files by hand; one that was changed since is noticed
    (project / DATA).rename(project / "first")
    again = run("fetch", "membranes", "--from", str(published), folder=project)
    assert again.returncode == 0, again.stderr
    iio.imwrite(published / "image" / "3.png", np.zeros((32, 32), np.uint8))
    (project / DATA).rename(project / "second")
    changed = run("fetch", "membranes", "--from", str(published), folder=project)
    assert changed.returncode == 1
    assert "image/3.png: another file than recorded" in changed.stderr.replace("\n", "")


def test_prepared_stacks_and_missing_files(published: Path, tmp_path: Path) -> None:
    assert run("new", "p", "--recipe", "membranes", folder=tmp_path).returncode == 0
    (published / "label" / "29.png").unlink()
    done = run("fetch", "membranes", "--from", str(published), folder=tmp_path / "p")
    assert done.returncode == 1
    assert "1 of 60 files are missing, such as label/29.png" in done.stderr
    random = np.random.default_rng(0)
    for kind, top in (("images", 255), ("masks", 2)):
        stack = random.integers(0, top, (12, 32, 32)).astype(np.uint8)
        tifffile.imwrite(published / f"{kind}.tif", stack, photometric="minisblack", metadata=None)
    assert run("fetch", "membranes", "--from", str(published), folder=tmp_path / "p").returncode == 0
    assert (tmp_path / "p" / "data" / "membranes" / "images.tif").exists()


def test_numbers_of_objects_go_to_a_table_that_takes_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    numbers = np.zeros((12, 32, 32), np.uint16)
    numbers[:, 2:10, 2:10], numbers[:, 2:10, 10:18] = 500, 7
    stacks = {"images": random.integers(0, 255, numbers.shape).astype(np.uint8), "instances": numbers}
    for name, stack in (stacks | {"masks": (numbers > 0).astype(np.uint8)}).items():
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack", metadata=None)
    assert run("new", "p", "--recipe", "nuclei", folder=tmp_path).returncode == 0
    for project, of_objects in (("p", True), ("q", False)):
        if not of_objects:  # as the recipe was before
            assert run("new", "q", "--recipe", "nuclei", folder=tmp_path).returncode == 0
            write_values(tmp_path / "q" / "params.yaml", {"data.instances": False})
        done = run("fetch", "nuclei", "--from", str(tmp_path), folder=tmp_path / project)
        assert done.returncode == 0, done.stderr
        assert ("objects" in done.stdout) is of_objects
        masks = tifffile.imread(tmp_path / project / "data" / "nuclei" / "masks.tif")
        assert np.array_equal(masks, numbers if of_objects else numbers > 0)
        assert read_params(tmp_path / project / "params.yaml").data.instances is of_objects
        assert run("check", folder=tmp_path / project).returncode == 0
