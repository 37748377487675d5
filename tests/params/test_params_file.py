from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stackseg.errors import ParamsError
from stackseg.intake.params_update import SAMPLE_TRAINING
from stackseg.params import Params, read_params
from stackseg.params.data import read_classes
from stackseg.params.file import dotted_keys, json_schema, read_tree, write_tree, write_values

ROOT = Path(__file__).parents[2]
CLASSES = [{"name": "pore", "raw": 0, "display": "#000000"}, {"name": "rock", "raw": 1, "display": "#ffffff"}]


def written(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str) -> str:
    path = written(folder, text)
    with pytest.raises(ParamsError) as caught:
        read_params(path)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(f"{path}: ")
    return told.removeprefix(f"{path}: ")


class TestBadInput:
    @pytest.mark.parametrize(
        ("text", "key", "nearest"),
        [
            ("train: {ephocs: 3}", "train.ephocs", "train.epochs"),
            ("trian: {epochs: 3}", "trian", "train"),
            ("sed: 3", "sed", "seed"),
            ("split: {explicit: {tests: [a/1]}}", "split.explicit.tests", "split.explicit.test"),
            ("patch_size: 64", "patch_size", "train.patch_size"),
            ("train: {overlap: 64}", "train.overlap", "inference.overlap"),
            ("data: {classes: [{name: a, raw: 0, display: '#000000', nam: b}]}", "data.classes.0.nam", "name"),
        ],
    )
    def test_unknown_keys_name_the_nearest(self, tmp_path: Path, text: str, key: str, nearest: str) -> None:
        told = message(tmp_path, text)
        assert told.startswith(f"unknown key {key}. ")
        assert told.split(". ")[-1].split(" is ")[-1].endswith(nearest)

    def test_an_unknown_key_is_named_before_other_mistakes(self, tmp_path: Path) -> None:
        assert message(tmp_path, "train: {lr: -1, ephocs: 3}").startswith("unknown key train.ephocs")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("seed: seven", "seed is 'seven': Input should be a valid integer"),
            ("seed: 7.0", "seed is 7.0"),
            ("seed: true", "seed is True"),
            ("seed: -1", "seed is -1"),
            ("seed: 4294967296", "seed is 4294967296"),
            ("train: {lr: 0}", "train.lr is 0"),
            ("train: {lr: fast}", "train.lr is 'fast'"),
            ("train: {lr: .nan}", "train.lr is nan"),
            ("train: {weight_decay: .inf}", "train.weight_decay is inf"),
            ("train: {loss: {dice: .inf}}", "train.loss.dice is inf"),
            ("train: {loss: {dyce: 1}}", "train.loss.dyce"),
            ("train: {loss: {}}", "train.loss"),
            ("train: {loss: {dice: 0}}", "train.loss.dice is 0"),
            ("train: {class_weights: [1, -1]}", "train.class_weights.1 is -1"),
            ("train: {class_weights: yes}", "train.class_weights is 'yes'"),
            ("train: {patch_size: 100}", "train: patch_size is 100, not a multiple of 32"),
            ("train: {batch_size: 500}", "train: batch_size is larger than patches_per_epoch"),
            ("train: 3", "train is 3"),
            ("inference: {tile: 500}", "inference: tile is 500, not a multiple of 32"),
            ("inference: {tile: 64, overlap: 33}", "inference: overlap is 33, more than half the tile"),
            ("intensity: {scope: image}", "intensity.scope is 'image'"),
            ("intensity: {low_percentile: 60}", "intensity.low_percentile is 60"),
            ("split: {method: block}", "split.method is 'block'"),
            ("split: {fold: 5}", "split: fold is 5, but folds 0..4 exist"),
            ("split: {validation: 0.5, test: 0.5}", "split: validation + test leave nothing to train on"),
            ("split: {method: explicit}", "split: split.method is explicit, but split.explicit names no plane"),
            ("split: {explicit: {test: [a/1]}}", "split: split.explicit names planes, but split.method is not"),
            ("split: {method: explicit, explicit: {test: [a7]}}", "split.explicit.test.0 is 'a7'"),
            ("model: {init: a, encoder_weights: imagenet}", "model: init brings the encoder's weights too"),
            ("augment: {preset: file}", 'augment: preset "file" and a file name go together'),
            ("data: {classes: [{name: a, raw: 0}]}", "data.classes.0.display: Field required"),
            ("data: {classes: [{name: a, raw: red, display: '#000000'}]}", "data.classes.0.raw is 'red'"),
            ("data: {classes: [{name: a, raw: 0.5, display: '#000000'}]}", "data.classes.0.raw is 0.5"),
            ("data: {classes: [{name: a, raw: 0, display: black}]}", "data.classes.0.display is 'black'"),
            ("data: {classes: [{name: '', raw: 0, display: '#000000'}]}", "data.classes.0.name is ''"),
            ("data: {ignore: none}", "data.ignore is 'none'"),
            ("project: {model_name: a/b}", "project.model_name is 'a/b'"),
            ("format: 0", "format is 0"),
            ("format: 1.5", "format is 1.5"),
        ],
    )
    def test_types_and_ranges(self, tmp_path: Path, text: str, told: str) -> None:
        assert message(tmp_path, text).startswith(told)

    def test_what_a_colour_must_look_like_is_said(self, tmp_path: Path) -> None:
        told = message(tmp_path, "data: {classes: [{name: a, raw: red, display: '#000000'}]}")
        assert "#rrggbb" in told
        assert "more" not in told

    @pytest.mark.parametrize("twice", ["name: pore, raw: 1", "name: rock, raw: 0", "name: rock, raw: [1, 0]"])
    def test_two_classes_alike(self, tmp_path: Path, twice: str) -> None:
        text = f"data: {{classes: [{{name: pore, raw: 0, display: '#000000'}}, {{{twice}, display: '#ffffff'}}]}}"
        assert message(tmp_path, text).startswith("data: ")

    def test_ignored_and_named(self, tmp_path: Path) -> None:
        text = "data: {classes: [{name: a, raw: 0, display: '#000000'}], ignore: 0}"
        assert "named twice" in message(tmp_path, text)

    @pytest.mark.parametrize("raw", [[0, 1, 2], [1, 0], [255, 1], [0]])
    def test_objects_have_a_background_and_one_class(self, tmp_path: Path, raw: list[int]) -> None:
        rows = ", ".join(f"{{name: c{code}, raw: {code}, display: '#000000'}}" for code in raw)
        told = message(tmp_path, f"data: {{instances: true, classes: [{rows}]}}")
        assert told.startswith("data: with data.instances there are two classes, of which the first is background")

    def test_before_add_there_may_be_no_class_of_objects(self, tmp_path: Path) -> None:
        assert read_params(written(tmp_path, "data: {instances: true}")).data.instances

    @pytest.mark.parametrize("text", ["train: [", "a: 1\na: 2", "\tseed: 1", "seed: 1\n seed: 2"])
    def test_no_yaml(self, tmp_path: Path, text: str) -> None:
        assert message(tmp_path, text).startswith("not valid YAML")

    @pytest.mark.parametrize("text", ["", "# nothing\n", "- 1", "7"])
    def test_no_sections(self, tmp_path: Path, text: str) -> None:
        assert message(tmp_path, text).startswith("holds no sections")

    def test_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "params.yaml").write_bytes(b"seed: \xff\xfe")
        with pytest.raises(ParamsError, match=r"params\.yaml: line 1 is not UTF-8 \(byte 0xff"):
            read_params(tmp_path / "params.yaml")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ParamsError, match=r"no such file\. Run from the project's root"):
            read_params(tmp_path / "params.yaml")

    def test_a_newer_format_is_refused_before_its_unknown_keys(self, tmp_path: Path) -> None:
        told = message(tmp_path, "format: 2\nnovelty: 1")
        assert told == "format is 2; expected 1 or older. Update stackseg to read it"


class TestValues:
    def test_numbers_are_read_as_people_write_them(self, tmp_path: Path) -> None:
        params = read_params(written(tmp_path, "train: {lr: 1e-3, clip_norm: null, weight_decay: 0}"))
        assert (params.train.lr, params.train.clip_norm, params.train.weight_decay) == (0.001, None, 0.0)

    def test_colours_in_either_case_and_with_alpha(self, tmp_path: Path) -> None:
        text = (
            "data: {classes: [{name: a, raw: '#FF00aa', display: '#ABCDEF'},"
            "{name: b, raw: ['#00000000', 3], display: '#000000'}], ignore: '#FFFFFF'}"
        )
        data = read_params(written(tmp_path, text)).data
        assert data.classes[0].codes == ("#ff00aa",)
        assert data.classes[0].display == "#abcdef"
        assert data.classes[1].codes == ("#00000000", 3)
        assert data.ignore == "#ffffff"

    def test_colours_that_differ_only_in_case_are_one(self, tmp_path: Path) -> None:
        text = "data: {classes: [{name: a, raw: ['#ff0000', '#FF0000'], display: '#000000'}]}"
        assert "named twice" in message(tmp_path, text)

    def test_nothing_changes_after_reading(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            Params().seed = 8  # type: ignore[misc]

    def test_flat(self) -> None:
        flat = Params().override({"data.classes": CLASSES}).flat()
        assert flat["train.lr"] == Params().train.lr
        assert flat["train.loss.dice"] == 1.0
        assert json.loads(flat["data.classes"]) == CLASSES
        assert flat["split.fold"] is None
        assert not any(isinstance(value, dict | list) for value in flat.values())


OVERRIDES: list[dict[str, Any]] = [
    {"seed": 3},
    {"train.lr": 3e-4, "train.epochs": 5},
    {"split.explicit.test": ["rock/3-7"], "split.method": "explicit"},
    {"split.folds": 8, "split.fold": 7},
    {"data.classes": CLASSES},
    {"train.loss": {"focal": 2.0}},
    {"train.loss.focal": 2.0},
    {"train.class_weights": [1.0, 2.0]},
    {"model.encoder_weights": "imagenet"},
]


class TestOverride:
    @pytest.mark.parametrize("values", OVERRIDES, ids=lambda one: next(iter(one)))
    def test_it_is_as_if_the_file_said_so(self, tmp_path: Path, values: dict[str, Any]) -> None:
        path = written(tmp_path, (ROOT / "params.yaml").read_text(encoding="utf-8"))
        overridden = read_params(path).override(values)
        tree = read_tree(path)
        for key, value in values.items():
            *sections, last = key.split(".")
            node = tree
            for name in sections:
                node = node[name]
            node[last] = value
        write_tree(path, tree)
        assert overridden == read_params(path)

    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ({"train.ephocs": 3}, "unknown key train.ephocs. The nearest valid key is train.epochs"),
            ({"train.lr.x": 3}, "unknown key train.lr.x. The nearest valid key is train.lr"),
            ({"": 3}, "unknown key "),
            ({"train.": 3}, "unknown key train."),
            ({"train.loss.dyce": 1.0}, "train.loss.dyce"),
            ({"train.epochs": "3"}, "train.epochs is '3'"),
            ({"train.epochs": 0}, "train.epochs is 0"),
            ({"split.fold": 9}, "split: fold is 9"),
            ({"format": 9}, "format is 9"),
        ],
    )
    def test_what_a_file_may_not_say(self, values: dict[str, Any], told: str) -> None:
        with pytest.raises(ParamsError) as caught:
            Params().override(values)
        assert str(caught.value).startswith(f"override: {told}")

    def test_the_original_stays(self) -> None:
        params = Params()
        params.override({"train.loss": {"dice": 3.0}, "split.gap": 0})
        assert params == Params()


class TestWriting:
    def test_the_committed_file_comes_back_byte_for_byte(self, tmp_path: Path) -> None:
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        path = written(tmp_path, text)
        write_tree(path, read_tree(path))
        assert path.read_text(encoding="utf-8") == text

    def test_a_link_stays_one_and_keeps_its_mode(self, tmp_path: Path) -> None:
        real, link = written(tmp_path, "seed: 7\n").rename(tmp_path / "real.yaml"), tmp_path / "params.yaml"
        real.chmod(0o660)
        link.symlink_to(real)
        write_values(link, {"seed": 8})
        assert link.is_symlink()
        assert real.read_text() == "seed: 8\n"
        assert real.stat().st_mode & 0o777 == 0o660

    def test_comments_stay_where_a_value_changes(self, tmp_path: Path) -> None:
        text = "# head\nseed: 7   # of all\n\n# about training\ntrain:\n  lr: 0.002  # peak\n  ema: null  # none\n"
        path = written(tmp_path, text)
        tree = read_tree(path)
        tree["train"]["lr"] = None
        tree["seed"] = 8
        write_tree(path, tree)
        assert path.read_text(encoding="utf-8") == text.replace("7 ", "8 ").replace("0.002", "null ")

    @given(
        st.fixed_dictionaries(
            {
                "text": st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=12),
                "list": st.lists(st.integers() | st.none() | st.booleans() | st.floats(allow_nan=False), max_size=4),
                "table": st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(), max_size=2),
            }
        )
    )
    @settings(deadline=None, max_examples=40)
    def test_values_come_back(self, tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
        path = tmp_path_factory.getbasetemp() / "tree.yaml"
        write_tree(path, values)
        assert YAML(typ="safe").load(path.read_text(encoding="utf-8")) == values

    def test_null_is_written(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        write_tree(path, {"one": None, "two": [None]})
        assert path.read_text(encoding="utf-8") == "one: null\ntwo:\n  - null\n"

    def test_a_failed_write_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = written(tmp_path, "seed: 3\n")

        def fail(*_: object) -> None:
            raise OSError("no")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no"):
            write_tree(path, {"seed": 4})
        assert path.read_text(encoding="utf-8") == "seed: 3\n"


class TestCommittedFiles:
    def test_params_yaml_is_valid_and_complete(self) -> None:
        path = ROOT / "params.yaml"
        read_params(path)
        tree = read_tree(path)
        missing = [key for key in dotted_keys() if not _holds(tree, key)]
        assert missing == []

    def test_params_yaml_holds_the_defaults_but_where_the_sample_needs_others(self) -> None:
        default, found = Params().flat(), read_params(ROOT / "params.yaml").flat()
        other = {key for key in default | found if default.get(key) != found.get(key)}
        kept = {key for key in other if not key.startswith("search.space.")}
        assert kept == {"data.classes", *(f"train.{key}" for key in SAMPLE_TRAINING)}
        assert {key: found[f"train.{key}"] for key in SAMPLE_TRAINING} == SAMPLE_TRAINING

    def test_the_schema_is_the_models(self) -> None:
        assert (ROOT / "params.schema.json").read_text(encoding="utf-8") == json_schema()

    def test_the_schema_describes_every_key(self) -> None:
        schema = json.loads(json_schema())
        sections = {name: one for name, one in schema["$defs"].items() if "properties" in one} | {"Params": schema}
        plain = {
            f"{section}.{name}"
            for section, one in sections.items()
            for name, field in one["properties"].items()
            if "description" not in field and "$ref" not in field
        }
        assert plain == set()
        assert all(one["additionalProperties"] is False for one in sections.values())
        assert (ROOT / "params.yaml").read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=params.")

    def test_dotted_keys(self) -> None:
        keys = list(dotted_keys())
        assert {"seed", "train", "train.lr", "split.explicit.test", "data.classes", "evaluate.overlays"} <= set(keys)
        assert len(keys) == len(set(keys))


def _holds(tree: Any, key: str) -> bool:
    node = tree
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


class TestReadClasses:
    TABLE = "- {name: pore, raw: 0, display: '#000000'}\n- {name: rock, raw: [1, 2], display: '#ffffff'}\n"

    def test_a_list_or_a_mapping(self, tmp_path: Path) -> None:
        (tmp_path / "list.yaml").write_text(self.TABLE, encoding="utf-8")
        indented = "".join(f"  {line}\n" for line in self.TABLE.splitlines())
        (tmp_path / "map.yaml").write_text(f"classes:\n{indented}ignore: 255\n", encoding="utf-8")
        plain, mapped = read_classes(tmp_path / "list.yaml"), read_classes(tmp_path / "map.yaml")
        assert plain.classes == mapped.classes
        assert [one.codes for one in plain.classes] == [(0,), (1, 2)]
        assert (plain.ignore, mapped.ignore) == (None, 255)

    @pytest.mark.parametrize("text", ["", "7", "classes: 3", "- {name: a}", "[", "- pore\n- rock", "klasses: []"])
    def test_no_table(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ParamsError, match="not a class table") as caught:
            read_classes(tmp_path / "c.yaml")
        assert "\n" not in str(caught.value)

    def test_unreadable(self, tmp_path: Path) -> None:
        (tmp_path / "bytes.yaml").write_bytes(self.TABLE.replace("rock", "gr\xe9s").encode("latin-1"))
        told_of = {"none.yaml": "no such file", "bytes.yaml": r"bytes\.yaml: line 2 is not UTF-8", ".": "a folder"}
        for name, told in told_of.items():
            with pytest.raises(ParamsError, match=told):
                read_classes(tmp_path / name)


@pytest.mark.parametrize("key", ["project.experiment", "project.model_name", "search.study"])
@pytest.mark.parametrize("name", ["a/b", "a:b", "", "..", "a\n", "ä", "x" * 101, "models:/x"])
def test_names_that_mlflow_refuses_are_refused_in_words(key: str, name: str) -> None:
    with pytest.raises(ParamsError, match="a name begins with a letter A-Z or a digit") as caught:
        Params().override({key: name})
    assert "A-Za-z" not in caught.value.sentence()
    assert Params().override({key: "Rock-2.b_c"}).value(key) == "Rock-2.b_c"
