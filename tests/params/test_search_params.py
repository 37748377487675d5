"""Section `search`: what it takes, what it refuses, and how found values are written into params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.errors import ParamsError
from stackseg.params import Params, read_params
from stackseg.params.file import read_tree, write_tree, write_values
from stackseg.params.search import SpaceEntry

ROOT = Path(__file__).parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TestReading:
    def test_a_list_is_short_for_choices(self, tmp_path: Path) -> None:
        short = read_params(written(tmp_path, "search: {space: {train.lr: [0.1, 1], train.loss: [{dice: 1.0}]}}"))
        long = "search: {space: {train.lr: {choices: [0.1, 1]}, train.loss: {choices: [{dice: 1.0}]}}}"
        assert short == read_params(written(tmp_path, long))
        assert short.search.space == {
            "train.lr": SpaceEntry(choices=[0.1, 1]),
            "train.loss": SpaceEntry(choices=[{"dice": 1.0}]),
        }

    def test_choices_keep_their_types(self, tmp_path: Path) -> None:
        params = read_params(written(tmp_path, "search: {space: {a.b: [1, 1.0, true, null, '1', [1, two]]}}"))
        found = params.search.space["a.b"].choices
        assert found == [1, 1.0, True, None, "1", [1, "two"]]
        assert [type(one) for one in found or []] == [int, float, bool, type(None), str, list]

    @pytest.mark.parametrize(
        ("text", "entry"),
        [
            ("{low: 1, high: 5}", SpaceEntry(low=1, high=5)),
            ("{low: 1e-4, high: 1, log: true}", SpaceEntry(low=0.0001, high=1, log=True)),
            ("{low: -1, high: 0.5, step: 0.5}", SpaceEntry(low=-1, high=0.5, step=0.5)),
            ("{choices: [1], when: {c.d: [x, 2]}}", SpaceEntry(choices=[1], when={"c.d": ["x", 2]})),
        ],
    )
    def test_ranges_and_conditions(self, tmp_path: Path, text: str, entry: SpaceEntry) -> None:
        params = read_params(written(tmp_path, f"search: {{space: {{a.b: {text}}}}}"))
        assert params.search.space == {"a.b": entry}

    @pytest.mark.parametrize("name", ["none", "median", "threshold"])
    def test_several_objectives_are_not_pruned(self, name: str) -> None:
        many = {"search.objectives": ["mean_iou", "parameters"], "search.pruner": {"name": name}}
        if name == "none":
            assert Params().override(many).search.objectives == ["mean_iou", "parameters"]
        else:
            with pytest.raises(ParamsError, match="several objectives cannot be pruned"):
                Params().override(many)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("space: {a.b: {choices: [1], low: 1}}", "search.space.a.b: choices go without low, high, log and step"),
            ("space: {a.b: {choices: [1], high: 1}}", "search.space.a.b: choices go without low, high, log and step"),
            ("space: {a.b: {choices: [1], log: true}}", "search.space.a.b: choices go without low, high, log and step"),
            ("space: {a.b: {choices: [1], step: 1}}", "search.space.a.b: choices go without low, high, log and step"),
            ("space: {a.b: {}}", "search.space.a.b: it needs choices, or low and high"),
            ("space: {a.b: {low: 1}}", "search.space.a.b: it needs choices, or low and high"),
            ("space: {a.b: {high: 1, log: true}}", "search.space.a.b: it needs choices, or low and high"),
            ("space: {a.b: {low: 2, high: 2}}", "search.space.a.b: low 2 is not below high 2"),
            ("space: {a.b: {low: 3.5, high: 2}}", "search.space.a.b: low 3.5 is not below high 2"),
            ("space: {a.b: {low: 0, high: 2, log: true}}", "search.space.a.b: low 0 has no logarithm"),
            ("space: {a.b: {low: -1, high: 2, log: true}}", "search.space.a.b: low -1 has no logarithm"),
            ("space: {a.b: {low: 1, high: 2, log: true, step: 1}}", "search.space.a.b: log and step exclude each"),
            ("space: {a.b: {low: 1, high: 2, step: 0}}", "search.space.a.b.step is 0: Input should be greater than 0"),
            ("space: {a.b: {low: one, high: 2}}", "search.space.a.b.low is 'one'"),
            ("space: {a.b: {low: 1, high: .inf}}", "search.space.a.b.high is inf"),
            ("space: {a.b: []}", "search.space.a.b is []: List should have at least 1 item"),
            ("space: {a.b: {choices: 3}}", "search.space.a.b.choices is 3"),
            ("space: {a.b: 3}", "search.space.a.b is 3"),
            ("space: {a.b: {low: 1, high: 2, log: yes}}", "search.space.a.b.log is 'yes'"),
            (
                "space: {a.b: {choices: [1], when: {c: 1}}}",
                "search.space.a.b.when.c is 1: Input should be a valid list",
            ),
            ("space: {a.b: {choices: [1], when: [c]}}", "search.space.a.b.when is ['c']"),
            ("space: {a.b: {lo: 1, high: 2}}", "unknown key search.space.a.b.lo. "),
            ("space: [a.b]", "search.space is ['a.b']"),
            ("study: ''", "search.study is ''"),
            ("study: a/b", "search.study is 'a/b'"),
            ("study: -x", "search.study is '-x'"),
            (f"study: {'x' * 101}", "search.study is 'xxx"),
            ("objectives: []", "search.objectives is []"),
            ("objectives: [parameters]", "search: objectives name mean_iou, and each at most once"),
            ("objectives: [mean_iou, mean_iou]", "search: objectives name mean_iou, and each at most once"),
            ("objectives: [mean_iou, loss]", "search.objectives.1 is 'loss'"),
            ("objectives: mean_iou", "search.objectives is 'mean_iou'"),
            ("objectives: [mean_iou, parameters]", "search: several objectives cannot be pruned"),
            (
                "{objectives: [mean_iou, parameters], pruner: {name: none}, sampler: {name: cmaes}}",
                "search: cmaes knows one objective: choose tpe, gp or nsgaii",
            ),
            ("folds: 1", "search.folds is 1"),
            ("folds: 2.0", "search.folds is 2.0"),
            ("fold_margin: -0.1", "search.fold_margin is -0.1"),
            ("fold_margin: 1.1", "search.fold_margin is 1.1"),
            ("sampler: {name: bayes}", "search.sampler.name is 'bayes'"),
            ("sampler: {nam: tpe}", "unknown key search.sampler.nam. The nearest valid key is search.sampler.name"),
            ("sampler: {arguments: [1]}", "search.sampler.arguments is [1]"),
            ("sampler: tpe", "search.sampler is 'tpe'"),
            ("pruner: {name: patient}", "search.pruner.name is 'patient'"),
            ("heartbeat: 0", "search.heartbeat is 0"),
            ("stduy: a", "unknown key search.stduy. The nearest valid key is search.study"),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, told: str) -> None:
        path = written(tmp_path, f"search: {text if text.startswith('{') else f'{{{text}}}'}")
        with pytest.raises(ParamsError) as caught:
            read_params(path)
        assert str(caught.value).startswith(f"{path}: {told}")
        assert "\n" not in str(caught.value)


class TestValue:
    def test_each_key_has_the_value_of_its_section(self) -> None:
        params = Params()
        assert params.value("seed") == params.seed
        assert params.value("train.lr") == params.train.lr
        assert params.value("train.loss") == params.train.loss
        assert params.value("train.loss.dice") == params.train.loss["dice"]
        assert params.value("train") == params.train.model_dump()
        assert params.value("search.sampler.name") == params.search.sampler.name

    @pytest.mark.parametrize(
        ("key", "told"),
        [
            ("train.lrr", "params.yaml: unknown key train.lrr. The nearest valid key is train.lr"),
            ("train.lr.x", "params.yaml: unknown key train.lr.x. The nearest valid key is train.lr"),
            ("lr", "params.yaml: unknown key lr. The nearest valid key is train.lr"),
            ("data.classes.0", "params.yaml: unknown key data.classes.0. The nearest valid key is data.classes"),
            ("train.", "params.yaml: unknown key train."),
            ("", "params.yaml: unknown key "),
        ],
    )
    def test_unknown_keys_name_the_nearest(self, key: str, told: str) -> None:
        with pytest.raises(ParamsError) as caught:
            Params().value(key)
        assert str(caught.value).startswith(told)

    def test_it_is_a_copy(self) -> None:
        params = Params()
        params.value("train.loss")["dice"] = 9.0
        assert params == Params()

    def test_overrides_say_where_they_come_from(self) -> None:
        with pytest.raises(ParamsError, match=r"^trial 3: train.lr is 0"):
            Params().override({"train.lr": 0}, "trial 3")


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "train.lr": st.floats(1e-8, 10),
    "train.epochs": st.integers(1, 300),
    "train.loss": st.dictionaries(
        st.sampled_from(["cross_entropy", "dice", "focal", "lovasz"]), st.floats(1e-3, 9), min_size=1
    ),
    "train.loss.dice": st.floats(1e-3, 9),
    "train.class_weights": st.sampled_from(["none", "balanced"]) | st.lists(st.floats(1e-3, 9), max_size=3),
    "train.clip_norm": st.none() | st.floats(1e-3, 9),
    "train.compile": st.booleans(),
    "model.encoder": st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=9),
    "model.encoder_weights": st.none() | st.sampled_from(["imagenet", "null", "1", "yes", "a: b", "#c"]),
    "augment.preset": st.sampled_from(["none", "em"]),
    "inference.tile": st.integers(4, 30).map(lambda one: one * 32),
}

COMMENTED = """\
# head
seed: 7   # of all

# about training
train:
  lr: 0.002  # peak
  loss:      # weights
    cross_entropy: 1.0  # first
    dice: 1.0  # second

  # about weights
  class_weights:   # by class
    - 1.0
    - 2.0

  # about the average
  ema: null  # none
# about inference
inference:
  tile: 64   # pixels
  overlap: 16
"""


class TestWriting:
    @given(st.data())
    @settings(deadline=None, max_examples=25)
    def test_it_is_as_an_override(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        path = tmp_path_factory.getbasetemp() / "written.yaml"
        path.write_text(data.draw(st.sampled_from([COMMENTED, COMPLETE])), encoding="utf-8")
        keys = data.draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=4))
        values = {key: data.draw(VALUES[key]) for key in keys if key != "train.loss.dice" or "train.loss" not in keys}
        before = read_params(path)
        write_values(path, values)
        assert read_params(path) == before.override(values)

    @pytest.mark.parametrize("text", ["seed: 7\n", "train: {lr: 0.1}\n"])
    @pytest.mark.parametrize(
        "values",
        [
            {"train.lr": 1e-5},
            {"model.encoder": "resnet34", "inference.tile": 256},
            {"train.loss": {"focal": 2.0}},
            {"train.loss.dice": 0.5},
        ],
        ids=lambda one: next(iter(one)),
    )
    def test_a_file_that_leaves_keys_out(self, tmp_path: Path, text: str, values: dict[str, Any]) -> None:
        path = written(tmp_path, text)
        before = read_params(path)
        write_values(path, values)
        assert read_params(path) == before.override(values)

    def test_nothing_to_write_changes_nothing(self, tmp_path: Path) -> None:
        path = written(tmp_path, COMPLETE)
        write_values(path, {})
        assert path.read_text(encoding="utf-8") == COMPLETE

    def test_comments_stay(self, tmp_path: Path) -> None:
        path = written(tmp_path, COMMENTED)
        write_values(path, {"train.lr": 0.003, "train.ema": 0.99, "inference.tile": 96, "train.loss.dice": 2.0})
        expected = COMMENTED.replace("0.002 ", "0.003 ").replace("ema: null ", "ema: 0.99 ")
        assert path.read_text(encoding="utf-8") == expected.replace("tile: 64", "tile: 96").replace("e: 1.0", "e: 2.0")

    def test_the_loss_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        path = written(tmp_path, COMMENTED)
        write_values(path, {"train.loss": {"dice": 3.0}})
        expected = COMMENTED.replace("    cross_entropy: 1.0  # first\n", "").replace("dice: 1.0", "dice: 3.0")
        assert path.read_text(encoding="utf-8") == expected

    def test_the_loss_in_one_line(self, tmp_path: Path) -> None:
        path = written(tmp_path, "train:\n  # weights\n  loss: {cross_entropy: 1.0, dice: 1.0}\n  lr: 0.1  # peak\n")
        write_values(path, {"train.loss": {"focal": 2.0, "dice": 1.0}})
        text = path.read_text(encoding="utf-8")
        assert text == "train:\n  # weights\n  loss: {dice: 1.0, focal: 2.0}\n  lr: 0.1  # peak\n"

    @pytest.mark.parametrize(
        "values",
        [{"train.loss": {"focal": 2.0}}, {"train.class_weights": "balanced"}, {"train.class_weights": [3.0, 4.0]}],
        ids=["loss", "word", "list"],
    )
    def test_a_comment_below_what_is_replaced_stays(self, tmp_path: Path, values: dict[str, Any]) -> None:
        path = written(tmp_path, COMMENTED)
        write_values(path, values)
        text = path.read_text(encoding="utf-8")
        for comment in ("# weights", "# about weights", "# by class", "# about the average", "# about inference"):
            assert comment in text

    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ({"train.lr": 0}, "train.lr is 0: Input should be greater than 0"),
            ({"train.epochs": 2.5}, "train.epochs is 2.5"),
            ({"train.loss": {"dyce": 1.0}}, "train.loss.dyce"),
            ({"train.loss": {}}, "train.loss"),
            ({"inference.overlap": 48}, "inference: overlap is 48, more than half the tile"),
            ({"train.lr": 0.5, "train.epochs": 0}, "train.epochs is 0"),
            ({"train.ephocs": 3}, "unknown key train.ephocs. The nearest valid key is train.epochs"),
            ({"trian.lr": 0.1}, "unknown key trian"),
            ({"train.lr.x": 0.1}, "unknown key train.lr.x. The nearest valid key is train.lr"),
            ({"train.class_weights.0": 1.0}, "unknown key train.class_weights.0"),
            ({"train": 3}, "train is 3"),
        ],
    )
    def test_an_invalid_result_leaves_the_file(self, tmp_path: Path, values: dict[str, Any], told: str) -> None:
        path = written(tmp_path, COMMENTED)
        with pytest.raises(ParamsError) as caught:
            write_values(path, values)
        assert str(caught.value).startswith(f"{path}: {told}")
        assert path.read_bytes() == COMMENTED.encode()
        assert [one.name for one in tmp_path.iterdir()] == ["params.yaml"]

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ParamsError, match="no such file"):
            write_values(tmp_path / "params.yaml", {"train.lr": 0.1})


def test_the_committed_space_is_searchable_in_form(tmp_path: Path) -> None:
    tree = read_tree(ROOT / "params.yaml")
    write_tree(tmp_path / "params.yaml", {"search": tree["search"]})
    search = read_params(tmp_path / "params.yaml").search
    assert search.space
    assert search.objectives == ["mean_iou"]


COMPLETE = (ROOT / "params.yaml").read_text(encoding="utf-8")
