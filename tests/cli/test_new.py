"""A project of one's own: its files, and that every recipe's are those of this repository but for what it changes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from ruamel.yaml import YAML
from typer.testing import CliRunner

from stackseg.cli.main import app
from stackseg.errors import DataError, ParamsError, StacksegError
from stackseg.intake.params_update import SAMPLE_TRAINING
from stackseg.model.weights_file import find_weights_file
from stackseg.params import read_params
from stackseg.params.file import write_values
from stackseg.recipes.recipe import FOLDER, NAMES, read_recipe
from stackseg.search.space.parse import read_space
from verbs import verb

ROOT = Path(__file__).parents[2]


def plain(path: Path) -> dict:
    return YAML(typ="safe").load(path.read_text())


def test_the_repository_is_what_the_template_gives() -> None:
    template = Path(str(FOLDER / "template"))
    params = plain(template / "params.yaml")
    here = plain(ROOT / "params.yaml")
    params["data"]["classes"] = here["data"]["classes"]
    params["train"] |= SAMPLE_TRAINING
    assert params == here
    stages, own = plain(template / "stages.yaml"), plain(ROOT / "dvc.yaml")
    for stage in own["stages"].values():
        code = [one for one in stage["deps"] if one.startswith("src/stackseg/")]
        assert code
        stage["deps"] = [one for one in stage["deps"] if one not in code] + ["requirements.txt"]
    assert stages == own


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_project_with_reasons(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["new", "my project", "--recipe", name])
    assert done.exit_code == 0, done.output
    assert f"cd 'my project', then stackseg fetch {name}" in done.output
    folder = tmp_path / "my project"
    assert (folder / ".dvc" / "config").exists()
    recipe = read_recipe(name)
    params = read_params(folder / "params.yaml")
    assert params.project.model_name == name
    tree = plain(folder / "params.yaml")
    for section, values in recipe.params.items():
        assert {key: tree[section][key] for key in values} == values
    assert "# pixels, a multiple of 32" in (folder / "params.yaml").read_text()  # comments stay
    readme = (folder / "README.md").read_text()
    assert all(reason in readme for reason in recipe.reasons)
    assert f"models:/{name}@champion" in readme
    assert "The project that it follows: U-Net" in readme


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.txt").touch()
    with pytest.raises(DataError, match="there: it is there already and not empty"):
        CliRunner().invoke(app, ["new", "there"], catch_exceptions=False)
    with pytest.raises(ParamsError, match=r"no recipe 'nuclea'; expected one of sandstone, nuclei"):
        CliRunner().invoke(app, ["new", "other", "--recipe", "nuclea"], catch_exceptions=False)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["there"]


def test_added_files_keep_the_recipes_table_and_settings(tmp_path: Path) -> None:
    def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("stackseg")), *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    random = np.random.default_rng(0)
    for kind, stack in (("i", random.integers(0, 255, (12, 64, 64))), ("m", random.integers(0, 2, (12, 64, 64)) * 255)):
        tifffile.imwrite(tmp_path / f"{kind}.tif", stack.astype(np.uint8), photometric="minisblack", metadata=None)
    assert run("new", "p", "--recipe", "mitochondria", folder=tmp_path).returncode == 0
    before = read_params(tmp_path / "p" / "params.yaml")
    done = run("add", "../i.tif", "../m.tif", folder=tmp_path / "p")
    assert done.returncode == 0, done.stderr
    assert "mitochondrion" in done.stdout
    after = read_params(tmp_path / "p" / "params.yaml")
    fitted = {
        "split": after.split,
        "train": after.train,
        "model": after.model,
        "search": after.search,
    }  # the recipe leaves them as they are by default
    assert after == before.model_copy(update=fitted)
    assert (after.split.gap, after.train.patch_size) == (0, 64)
    assert (tmp_path / "p" / "data.dvc").exists()
    assert run("check", folder=tmp_path / "p").returncode == 0


def test_files_of_one_s_own_are_added_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    masks = (np.arange(8 * 64 * 64).reshape(8, 64, 64) // 1000 % 2).astype(np.uint8)
    tifffile.imwrite("im.tif", masks * 90 + 20, photometric="minisblack", metadata={"axes": "ZYX"})
    tifffile.imwrite("ma.tif", masks, photometric="minisblack", metadata={"axes": "ZYX"})
    for words in (["mine", "im.tif"], ["mine", "im.tif", "nowhere.tif"]):
        refused = CliRunner().invoke(app, ["new", *words])
        assert isinstance(refused.exception, StacksegError)
        assert not (tmp_path / "mine").exists()
    done = CliRunner().invoke(app, ["new", "mine", "im.tif", "ma.tif"])
    assert done.exit_code == 0, done.output
    assert "settings that suit these data" in done.output
    params = read_params(tmp_path / "mine" / "params.yaml")
    # a search can begin with what was proposed, and its encoders have the weights that were proposed
    encoders = params.search.space["model.encoder"].choices or []
    assert params.model.encoder in encoders
    assert all(find_weights_file(one, params.model.encoder_weights) for one in encoders)
    read_space(params)
    assert (tmp_path / "mine" / "data.dvc").exists()
    assert read_params(tmp_path / "mine" / "params.yaml").train.patch_size == 64


def test_scribbles_are_added_with_what_is_not_drawn_left_out(project: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    masks_zyx = random.integers(1, 4, (8, 64, 64)).astype(np.uint8)
    masks_zyx[random.random(masks_zyx.shape) > 0.1] = 0
    masks_zyx[6:] = 0  # nothing is drawn there
    for name, stack in (("i", random.integers(0, 255, (8, 64, 64)).astype(np.uint8)), ("m", masks_zyx)):
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    write_values(project / "params.yaml", {"data.unlabelled": "ignore"})
    told = verb(project, "add", str(tmp_path / "i.tif"), str(tmp_path / "m.tif"), "--name", "rock")
    assert re.search(r"0 .* ignored", told)
    data = read_params(project / "params.yaml").data
    assert [one.codes for one in data.classes] == [(1,), (2,), (3,)]
    assert (data.ignore, data.unlabelled) == (None, "ignore")
    # further scribbles lack a class and hold another that is in none
    tifffile.imwrite(tmp_path / "m.tif", np.where(masks_zyx == 3, 9, masks_zyx), photometric="minisblack")
    verb(project, "add", str(tmp_path / "i.tif"), str(tmp_path / "m.tif"), "--name", "more")
    shown, catalog = verb(project, "check"), json.loads(verb(project, "check", "--json"))
    assert [[plane["z"] for plane in one["planes"]] for one in catalog["specimens"]] == [[*range(6)]] * 2
    training = [plane["z"] for plane in catalog["specimens"][0]["planes"] if plane["part"] == "training"]
    share = (np.mean(masks_zyx[training] > 0) + np.mean(np.isin(masks_zyx[training], (1, 2)))) / 2
    assert re.search(rf"training +{2 * len(training)} +{share:.2%} ", shown)
