from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stackseg.dataset.labels.table import LabelTable
from stackseg.dataset.records import label_table
from stackseg.intake.label_proposal import instance_table
from stackseg.intake.params_update import SAMPLE_TRAINING, adapt_params
from stackseg.intake.proposal import Proposal
from stackseg.params import Params, read_params
from stackseg.params.file import dotted_keys, read_tree, write_tree, write_values
from stackseg.params.train import TrainParams

ROOT = Path(__file__).parents[2]
TWO: list[tuple[str, tuple[int | str, ...], str]] = [("background", (0,), "#000000"), ("cell", (255,), "#e69f00")]
COLOURS: list[tuple[str, tuple[int | str, ...], str]] = [
    ("background", ("#000000", "#00000000", 0), "#000000"),
    ("yes", ("#ff0000",), "#ff0000"),
    ("3: cells", (-1,), "#00ff00"),
]
PROPOSED = [Proposal("split.gap", 2, "a reason"), Proposal("train.patch_size", 256, "a reason")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")


def adapt(
    path: Path,
    classes: Any = TWO,
    *,
    ignore: Any = None,
    proposals: Any = (),
    fresh: bool = True,
) -> list[str]:
    names, raw, display = zip(*classes, strict=True)
    table = LabelTable(names, raw, display, () if ignore is None else (ignore,))
    return adapt_params(path, table, [*PROPOSED, *proposals], fresh=fresh, anew=fresh, colour="keep")


def comments(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return sorted(line.partition("# ")[2] for line in lines if "# " in line)


class TestFreshData:
    @pytest.mark.parametrize(("classes", "ignore"), [(TWO, None), (TWO, 7), (COLOURS, "#ffffff"), (COLOURS, None)])
    def test_the_table_is_read_back_as_given(self, path: Path, classes: Any, ignore: Any) -> None:
        adapt(path, classes, ignore=ignore)
        data = read_params(path).data
        assert [(one.name, one.codes, one.display) for one in data.classes] == classes
        assert data.ignore == ignore

    def test_masks_that_number_objects_are_said_to_and_others_again_not(self, path: Path) -> None:
        objects, classes = instance_table(), LabelTable(*zip(*TWO, strict=True))
        for table, expected in ((objects, True), (classes, False)):
            changed = adapt_params(path, table, PROPOSED, fresh=True, anew=True, colour="keep")
            assert f"data.instances: {expected}" in changed
            assert label_table(read_params(path)) == table

    def test_the_network_of_a_model_to_begin_with_stays(self, path: Path) -> None:
        write_values(path, {"model.init": "models:/rock@champion"})
        before = read_params(path).model
        adapt(path, proposals=[Proposal("model.encoder_weights", "imagenet-lite", "why")])
        assert read_params(path).model == before

    def test_a_search_space_holds_what_is_proposed(self, path: Path) -> None:
        tree = read_tree(path)
        tree["search"]["space"] = {"train.lr": [0.01], "train.batch_size": {"low": 2, "high": 8}, "train.ema": [None]}
        write_tree(path, tree)
        changed = adapt(path, proposals=[Proposal("train.lr", 0.003, "why"), Proposal("train.batch_size", 4, "why")])
        assert "search.space.train.lr: [0.01, 0.003]" in changed
        space = read_tree(path)["search"]["space"]
        assert space == {"train.lr": [0.01, 0.003], "train.batch_size": {"low": 2, "high": 8}, "train.ema": [None]}

    def test_an_older_file_of_classes_gets_no_new_key(self, path: Path) -> None:
        tree = read_tree(path)
        del tree["data"]["instances"]
        write_tree(path, tree)
        adapt(path)
        assert "instances" not in read_tree(path)["data"]

    def test_comments_and_completeness_survive(self, path: Path) -> None:
        before = comments(path)
        adapt(path, COLOURS, ignore="#ffffff")
        assert comments(path) == before
        tree = read_tree(path)
        for key in dotted_keys():
            node = tree
            for name in key.split("."):
                assert name in node, key
                node = node[name]

    def test_sections_stay_apart(self, path: Path) -> None:
        adapt(path, COLOURS)
        lines = path.read_text(encoding="utf-8").splitlines()
        tops = [place for place, line in enumerate(lines) if line[:1].isalpha() and line.endswith(":")]
        assert len(tops) >= 8
        assert all(lines[place - 1] == "" for place in tops)
        assert not any(line == "" and lines[place - 1] == "" for place, line in enumerate(lines))

    def test_what_the_sample_asked_for_makes_way(self, path: Path) -> None:
        changed = adapt(path)
        assert read_params(path).train == TrainParams()
        reset = [line.partition(":")[0] for line in changed if line.startswith("train.")]
        assert sorted(reset) == sorted(f"train.{key}" for key in SAMPLE_TRAINING)
        assert changed[0] == "data.classes has 2 classes"

    def test_the_user_s_own_split_of_the_sample_makes_way(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        text = text.replace("method: blocks ", "method: explicit ").replace("test: []", 'test: ["specimen/1"]')
        path.write_text(text.replace("fold: null", "fold: 3"), encoding="utf-8")
        assert read_params(path).split.method == "explicit"
        adapt(path)
        assert read_params(path).split == Params().split

    def test_what_is_proposed_is_written(self, path: Path) -> None:
        mine = [Proposal("split.gap", 5, "why"), Proposal("intensity.scope", "plane", "why")]
        changed = adapt(path, proposals=mine)
        params = read_params(path)
        assert (params.split.gap, params.intensity.scope) == (5, "plane")
        assert {"split.gap: 5", "intensity.scope: plane"} <= set(changed)

    def test_twice_is_once(self, path: Path) -> None:
        adapt(path, COLOURS)
        once = path.read_bytes()
        # the table is written again, and is the same
        assert adapt(path, COLOURS) == ["data.classes has 3 classes"]
        assert path.read_bytes() == once

    def test_what_has_nothing_to_do_with_the_data_stays(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace("architecture: Unet ", "architecture: FPN ").replace("seed: 7 ", "seed: 8 "), "utf-8"
        )
        adapt(path)
        params = read_params(path)
        assert (params.model.architecture, params.seed) == ("FPN", 8)

    def test_a_file_without_sections_gets_them(self, tmp_path: Path) -> None:
        path = tmp_path / "params.yaml"
        path.write_text("seed: 3\n", encoding="utf-8")
        adapt(path)
        assert len(read_params(path).data.classes) == 2
        assert read_params(path).seed == 3


class TestFurtherData:
    def test_nothing_changes_where_the_table_is_there(self, path: Path) -> None:
        before = path.read_bytes()
        table = [(one.name, one.codes, one.display) for one in read_params(path).data.classes]
        assert adapt(path, table, fresh=False) == []
        assert path.read_bytes() == before

    def test_only_the_table_changes(self, path: Path) -> None:
        before = read_params(path)
        assert adapt(path, COLOURS, fresh=False) == ["data.classes has 3 classes"]
        after = read_params(path)
        assert after.data.classes != before.data.classes
        assert after.model_copy(update={"data": before.data}) == before

    def test_another_value_to_ignore_is_a_change(self, path: Path) -> None:
        table = [(one.name, one.codes, one.display) for one in read_params(path).data.classes]
        assert adapt(path, table, fresh=False, ignore=255) != []
        assert read_params(path).data.ignore == 255

    def test_what_is_ignored_is_written_and_read_back(self, path: Path) -> None:
        names, raw, display = zip(*TWO, strict=True)
        for ignore, ignores_unlabelled in (((7, "#ff0000"), True), ((7,), True), ((), False)):
            table = LabelTable(names, raw, display, ignore, ignores_unlabelled=ignores_unlabelled)
            adapt_params(path, table, [], fresh=False, anew=False, colour="keep")
            assert label_table(read_params(path)) == table
            before = path.read_bytes()
            assert adapt_params(path, table, [], fresh=False, anew=False, colour="keep") == []
            assert path.read_bytes() == before

    def test_what_nobody_annotated_is_said_of_specimens_that_stay(self, path: Path) -> None:
        write_values(path, {"data.partial": {"rock": ["clay"]}})
        adapt(path, fresh=False)
        assert read_params(path).data.partial == {"rock": ["clay"]}
        adapt(path)
        assert read_params(path).data.partial == {}

    def test_codes_written_in_capitals_are_no_change(self, path: Path) -> None:
        adapt(path, COLOURS, fresh=False)
        path.write_text(path.read_text(encoding="utf-8").replace("#ff0000", "#FF0000"), encoding="utf-8")
        before = path.read_bytes()
        table = [(one.name, one.codes, one.display) for one in read_params(path).data.classes]
        assert adapt(path, table, fresh=False) == []
        assert path.read_bytes() == before


def test_a_table_that_is_kept_leaves_what_was_chosen_and_fits_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    classes = [{"name": "a", "raw": 0, "display": "#000000"}, {"name": "b", "raw": 1, "display": "#ffffff"}]
    table = LabelTable(("a", "b"), ((0,), (1,)), ("#000000", "#ffffff"))
    proposals = [Proposal("split.gap", 0, "why"), Proposal("train.patch_size", 64, "why")]
    for chosen, split, train in (
        ({}, {"gap": 0}, {"patch_size": 64}),
        ({"split.gap": 1}, {"gap": 1}, {"patch_size": 64}),
        ({"train.epochs": 3}, {"gap": 0}, {"patch_size": 256, "epochs": 3}),
    ):
        write_tree(path, Params().override({"data.classes": classes, **chosen}).model_dump(mode="json"))
        adapt_params(path, table, proposals, fresh=True, anew=False, colour="keep")
        after = read_params(path)
        assert {key: getattr(after.split, key) for key in split} == split
        assert {key: getattr(after.train, key) for key in train} == train
        assert [one.name for one in after.data.classes] == ["a", "b"]
