"""The search space: what it refuses, what a trial may choose, and what that stands for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study

from stackseg.errors import MachineError, ModelError, ParamsError
from stackseg.params import Params
from stackseg.search.samplers import build_sampler, max_trials
from stackseg.search.space.parse import read_space
from stackseg.search.space.preflight import check_buildable
from stackseg.search.space.space import Space

CPU = torch.device("cpu")
LOSSES = [{"cross_entropy": 1.0, "dice": 1.0}, {"dice": 1.0}, {"focal": 2.0, "lovasz": 0.5}]
# entries that hold the present value of their key
POOL: dict[str, list[dict[str, Any]]] = {
    "train.lr": [{"low": 1e-4, "high": 1e-2, "log": True}, {"low": 0.0005, "high": 1}, {"choices": [0.001, 0.01]}],
    "train.epochs": [{"low": 10, "high": 40, "step": 10}, {"low": 1, "high": 64, "log": True}, {"choices": [20, 3]}],
    "train.rare_share": [{"low": 0, "high": 1}, {"low": 0.13, "high": 0.73, "step": 0.2}, {"choices": [0.33, 0.0]}],
    "train.optimizer": [{"choices": ["adam", "adamw", "sgd"]}],
    "train.loss": [{"choices": LOSSES}],
    "train.class_weights": [{"choices": ["none", "balanced", [1.0, 2.0]]}],
    "train.ema": [{"choices": [0.9, None]}],
    "train.channels_last": [{"choices": [True, False]}],
    "train.early_stopping": [{"choices": [3, None, 5]}],
    "model.encoder": [{"choices": ["resnet18", "tu-test_resnet"]}],
    "model.context_slices": [{"low": 0, "high": 2}, {"choices": [1, 0]}],
    "augment.preset": [{"choices": ["none", "light", "em"]}],
    "inference.tile": [{"low": 256, "high": 1024, "step": 256}],
}
TINY = {"model__architecture": "Linknet", "model__encoder": "tu-test_resnet"}
OUTSIDE = {"train.schedule": ["one_cycle"], "seed": [8]}
"""Conditions on keys that are not varied: one that holds, one that does not."""


@pytest.fixture(autouse=True)
def _optuna_is_quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def space_of(entries: dict[str, Any], **settings: Any) -> Space:
    more = {key.replace("__", "."): value for key, value in settings.items()}
    return read_space(Params().override({"search.space": {k: _long(v) for k, v in entries.items()}, **more}))


def _long(entry: Any) -> Any:
    return {"choices": entry} if isinstance(entry, list) else entry


def message(entries: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        space_of(entries, **settings)
    told = str(caught.value)
    assert "\n" not in told
    return told


def conditions(entry: dict[str, Any], key: str) -> st.SearchStrategy[list[Any]]:
    values = entry.get("choices") or [Params().value(key)]
    return st.lists(st.sampled_from(values), min_size=1, unique_by=str)


@st.composite
def spaces(draw: st.DrawFn, *, finite: bool = False, max_size: int = 6) -> Space:
    """Draw entries for some keys, some of which count only under conditions on keys drawn before, in any order."""
    entries: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(sorted(POOL)), unique=True, min_size=1, max_size=max_size)):
        kinds = [one for one in POOL[key] if not finite or "log" not in one]
        kinds = [one for one in kinds if not finite or "choices" in one or "step" in one or key.startswith("model.")]
        entry = draw(st.sampled_from(kinds))
        before = [one for one in entries if "choices" in entries[one] or one in ("train.epochs", "inference.tile")]
        others = draw(st.lists(st.sampled_from([*before, *OUTSIDE]), unique=True, max_size=2))
        when = {one: OUTSIDE.get(one) or draw(conditions(entries[one], one)) for one in others}
        entries[key] = {**entry, "when": when} if when else entry
    shuffled = draw(st.permutations(list(entries)))
    return space_of({key: entries[key] for key in shuffled})


def asked(space: Space, seed: int) -> Study:
    return optuna.create_study(direction="maximize", sampler=RandomSampler(seed))


class TestRefusals:
    def test_an_empty_one(self) -> None:
        assert message({}).startswith("search.space: nothing to search; expected ")

    @pytest.mark.parametrize("where", ["params", "space"])
    def test_the_weights_of_another_model(self, where: str) -> None:
        entries: dict[str, Any] = {"train.lr": [0.001, 0.01]}
        if where == "params":
            found = message(entries, model__init="models:/rock@champion", model__encoder_weights=None)
        else:
            found = message(entries | {"model.init": [None, "models:/rock@champion"]})
        assert found.startswith("model.init: a search begins each of its trials without the weights of another model")

    @pytest.mark.parametrize(
        ("entries", "key", "nearest"),
        [
            ({"train.lrr": [1]}, "train.lrr", "train.lr"),
            ({"lr": [1]}, "lr", "train.lr"),
            ({"model.encodr": ["a"]}, "model.encodr", "model.encoder"),
            ({"train.loss.dyce": [1.0]}, "train.loss.dyce", "train.loss"),
            ({"train.lr": {"low": 0.001, "high": 1, "when": {"train.optimzer": ["x"]}}}, "train.optimzer", "train.opt"),
        ],
    )
    def test_unknown_keys_name_the_nearest(self, entries: dict[str, Any], key: str, nearest: str) -> None:
        assert f"unknown key {key}. The nearest valid key is {nearest}" in message(entries)

    @pytest.mark.parametrize(
        ("entries", "told"),
        [
            ({"train": [{}]}, "search.space: train is a section; expected one of its keys"),
            ({"augment": [{}]}, "search.space: augment is a section"),
            ({"split.gap": [2, 1]}, "search.space: split.gap decides on the data or on the measure"),
            ({"data.classes": [[]]}, "search.space: data.classes decides on the data or on the measure"),
            ({"intensity.scope": ["dataset"]}, "search.space: intensity.scope decides on the data or on the measure"),
            ({"evaluate.overlays": [4]}, "search.space: evaluate.overlays decides on the data or on the measure"),
            ({"promotion.min_gain": [0.0]}, "search.space: promotion.min_gain decides on the data or on the measure"),
            ({"search.heartbeat": [15]}, "search.space: search.heartbeat decides on the data or on the measure"),
            ({"seed": [7, 8]}, "search.space: seed decides on the data or on the measure"),
        ],
    )
    def test_what_may_not_vary(self, entries: dict[str, Any], told: str) -> None:
        assert message(entries).startswith(told)

    @pytest.mark.parametrize(
        ("key", "entry", "told"),
        [
            ("train.lr", {"low": 0.001, "high": 100}, "train.lr is 100.0: Input should be less than or equal to 10"),
            ("train.lr", {"low": 0, "high": 1}, "train.lr is 0: Input should be greater than 0"),
            ("train.optimizer", ["adamw", "adm"], "train.optimizer is 'adm': Input should be 'adamw', "),
            ("train.epochs", [20, 30.0], "train.epochs is 30.0"),
            ("train.epochs", {"low": 0, "high": 20}, "train.epochs is 0"),
            ("train.loss", [*LOSSES, {"dyce": 1.0}], "train.loss.dyce"),
            ("train.loss", {"low": 1, "high": 2}, "train.loss is 1: Input should be a valid dictionary"),
            ("train.channels_last", {"low": 0, "high": 1}, "train.channels_last is 0"),
            ("train.patch_size", {"low": 224, "high": 256}, "train: patch_size is 225, not a multiple of 32"),
            ("train.patch_size", {"low": 192, "high": 256, "step": 16}, "train: patch_size is 208, not a multiple"),
            ("inference.overlap", [64, 768], "inference: overlap is 768, more than half the tile"),
            ("augment.preset", ["light", "file"], 'augment: preset "file" and a file name go together'),
        ],
    )
    def test_values_that_do_not_fit(self, key: str, entry: Any, told: str) -> None:
        assert message({key: entry}).startswith(f"search.space.{key}: {told}")

    @pytest.mark.parametrize(
        ("key", "entry", "told"),
        [
            ("train.epochs", {"low": 5, "high": 21, "step": 5}, "steps of 5 from 5 do not end at 21. Set high to 20"),
            ("train.rare_share", {"low": 0, "high": 1, "step": 0.3}, "steps of 0.3 from 0 do not end at 1. Set high "),
            ("train.epochs", {"low": 1.5, "high": 20}, "train.epochs is 1.5: Input should be a valid integer"),
            ("train.epochs", {"low": 1, "high": 20, "step": 0.5}, "low 1, high 20, step 0.5; expected whole numbers"),
        ],
    )
    def test_steps_that_do_not_fit(self, key: str, entry: Any, told: str) -> None:
        assert message({key: entry}).startswith(f"search.space.{key}: {told}")

    @pytest.mark.parametrize(
        ("key", "entry", "present"),
        [
            ("train.lr", {"low": 0.01, "high": 1}, "0.001"),
            ("train.lr", [0.01, 0.1], "0.001"),
            ("train.epochs", {"low": 1, "high": 31, "step": 3}, "20"),
            ("train.optimizer", ["adam", "sgd"], "adamw"),
            ("train.early_stopping", {"low": 1, "high": 5}, "None"),
            ("train.ema", {"low": 0.5, "high": 0.9}, "None"),
            ("train.class_weights", ["balanced", [1.0, 2.0]], "none"),
        ],
    )
    def test_the_present_params_must_lie_inside(self, key: str, entry: Any, present: str) -> None:
        told = message({key: entry})
        assert told.startswith(f"search.space.{key}: the present value of {key} is {present}, which is not in the")
        assert told.endswith(f"Add {present} to the space, or change {key}")

    @pytest.mark.parametrize(
        ("key", "choices"),
        [
            ("train.optimizer", ["adamw", "sgd", "adamw"]),
            ("train.loss", [LOSSES[0], dict(reversed(LOSSES[0].items()))]),
            ("train.early_stopping", [None, 3, None]),
        ],
    )
    def test_choices_named_twice(self, key: str, choices: list[Any]) -> None:
        assert message({key: choices}) == f"search.space.{key}: a choice is named twice. Take one out"

    def test_a_condition_on_a_part_of_what_varies(self) -> None:
        losses = {"train.loss": {"choices": [{"cross_entropy": 1.0, "dice": 1.0}, {"focal": 1.0}]}}
        told = message({**losses, "train.class_weights": {"choices": ["none"], "when": {"train.loss.dice": [1.0]}}})
        assert told.startswith(
            "search.space.train.class_weights.when: the condition asks for train.loss.dice, and train"
        )
        assert told.endswith("Ask for values of train.loss, or take it out of the space")

    def test_a_condition_without_values(self) -> None:
        told = message({"train.compile": {"choices": [False, True], "when": {"train.optimizer": []}}})
        assert "when.train.optimizer" in told

    def test_a_pipeline_that_is_not_there(self) -> None:
        entries = {"augment.file": {"choices": ["none.json", "neither.json"]}}
        space = read_space(
            Params().override({"augment": {"preset": "file", "file": "none.json"}, "search.space": entries})
        )
        assert space.augment_files() == ["none.json", "neither.json"]
        space = read_space(space.params.override({key.replace("__", "."): value for key, value in TINY.items()}))
        with pytest.raises(ParamsError, match=r"none\.json"):
            check_buildable(space, 1, [10, 10], torch.device("cpu"))

    def test_conditions_in_a_circle(self) -> None:
        circle = {
            "train.optimizer": {"choices": ["adamw", "sgd"], "when": {"train.schedule": ["cosine"]}},
            "train.schedule": {"choices": ["one_cycle", "cosine"], "when": {"train.optimizer": ["sgd"]}},
            "train.compile": [False, True],
        }
        told = message(circle)
        assert told.startswith("search.space: the conditions of train.optimizer, train.schedule go round in a circle")
        alone = {"choices": ["adamw", "sgd"], "when": {"train.optimizer": ["sgd"]}}
        assert "go round in a circle" in message({"train.optimizer": alone})

    @pytest.mark.parametrize(
        ("other", "entry", "value", "told"),
        [
            ("train.optimizer", ["adamw", "sgd"], "adam", "'adam' is no value of train.optimizer; expected adamw, sgd"),
            (
                "train.epochs",
                {"low": 10, "high": 30, "step": 10},
                25,
                "25 is no value of train.epochs; expected 10 to 30 ",
            ),
            (
                "train.rare_share",
                {"low": 0.2, "high": 0.5},
                0.6,
                "0.6 is no value of train.rare_share; expected 0.2 to",
            ),
            (
                "train.lr",
                {"low": 1e-4, "high": 1e-2, "log": True},
                "high",
                "train.lr is 'high': Input should be a valid",
            ),
        ],
    )
    def test_conditions_that_nothing_meets(self, other: str, entry: Any, value: Any, told: str) -> None:
        conditional = {"choices": [False, True], "when": {other: [value]}}
        found = message({other: entry, "train.compile": conditional})
        assert found.startswith(f"search.space.train.compile.when: {told}")

    def test_a_condition_on_a_fixed_key_must_be_a_value_of_it(self) -> None:
        conditional = {"choices": [False, True], "when": {"train.optimizer": ["adm"]}}
        assert "train.optimizer is 'adm'" in message({"train.compile": conditional})

    @pytest.mark.parametrize(
        ("entries", "settings"),
        [
            (
                {
                    "inference.tile": [512, 1024],
                    "inference.overlap": {"choices": [64, 400], "when": {"inference.tile": [1024]}},
                },
                {},
            ),
            (
                {
                    "train.patches_per_epoch": [48, 192],
                    "train.batch_size": {"low": 8, "high": 96, "when": {"train.patches_per_epoch": [192]}},
                },
                {"train.patches_per_epoch": 48},
            ),
            (
                {
                    "augment.preset": ["light", "file"],
                    "augment.file": {"choices": ["a.json", "b.json"], "when": {"augment.preset": ["file"]}},
                },
                {},
            ),
        ],
        ids=["overlap", "batch", "pipeline"],
    )
    def test_what_fits_where_it_counts_is_allowed(self, entries: dict[str, Any], settings: dict[str, Any]) -> None:
        space = space_of(entries, **settings)
        tried = set()
        for seed in range(15):
            study = asked(space, seed)
            chosen = space.suggest(study.ask())
            space.params.override(chosen)
            tried.add(str(sorted(chosen.items())))
        assert len(tried) > 2

    def test_values_that_exclude_one_another_fail_their_trial_alone(self) -> None:
        space = space_of({"train.patches_per_epoch": [8, 48], "train.batch_size": [8, 48]}, train__patches_per_epoch=48)
        with pytest.raises(ParamsError, match="batch_size"):
            space.params.override({"train.patches_per_epoch": 8, "train.batch_size": 48}, "trial 3")

    def test_a_key_and_a_part_of_it(self) -> None:
        both = {"train.loss": LOSSES, "train.loss.dice": {"low": 0.5, "high": 2}}
        assert message(both).startswith("search.space: train.loss.dice is a part of train.loss")

    def test_whole_numbers_between_the_ends_of_a_log_range(self) -> None:
        told = message({"train.patch_size": {"low": 32, "high": 256, "log": True}})
        assert told.startswith("search.space.train.patch_size: train: patch_size is 33, not a multiple of 32")


class TestDistributions:
    @pytest.mark.parametrize(
        ("key", "entry"),
        [
            ("train.epochs", {"low": 1, "high": 30}),
            ("train.epochs", {"low": 1.0, "high": 30.0}),
            ("train.batch_size", {"low": 1, "high": 64, "log": True}),
            ("train.early_stopping", {"low": 1, "high": 9, "step": 2}),
            ("train.patch_size", {"low": 32, "high": 512, "step": 32}),
            ("model.context_slices", {"low": 0, "high": 16}),
            ("inference.overlap", {"low": 0, "high": 64, "step": 16.0}),
        ],
    )
    def test_whole_numbers(self, key: str, entry: Any) -> None:
        space = space_of({key: entry}, train__early_stopping=3)
        (one,) = space.dimensions
        assert isinstance(one.distribution, IntDistribution)
        assert (one.distribution.low, one.distribution.high) == (entry["low"], entry["high"])
        assert type(space.suggest(asked(space, 1).ask())[key]) is int

    @pytest.mark.parametrize(
        ("key", "entry"),
        [
            ("train.lr", {"low": 0.001, "high": 1}),
            ("train.weight_decay", {"low": 0, "high": 1}),
            ("train.clip_norm", {"low": 1, "high": 5}),
            ("train.clip_norm", {"low": 1, "high": 5, "step": 2}),
            ("train.rare_share", {"low": 0, "high": 1}),
            ("train.loss.dice", {"low": 1, "high": 3}),
            ("model.decoder_dropout", {"low": 0, "high": 0.5}),
        ],
    )
    def test_other_numbers(self, key: str, entry: Any) -> None:
        space = space_of({key: entry})
        (one,) = space.dimensions
        assert isinstance(one.distribution, FloatDistribution)
        assert (one.distribution.low, one.distribution.high) == (entry["low"], entry["high"])
        assert one.distribution.step == entry.get("step")
        assert type(space.suggest(asked(space, 1).ask())[key]) is float

    def test_choices_that_are_no_words_are_stored_as_json(self) -> None:
        space = space_of({"train.loss": LOSSES, "train.class_weights": ["none", [1.0, 2.0]]})
        found = {one.key: one.distribution for one in space.dimensions}
        assert found["train.class_weights"] == CategoricalDistribution(("none", "[1.0, 2.0]"))
        assert found["train.loss"].choices[1] == '{"dice": 1.0}'  # type: ignore[attr-defined]
        assert space.first_trial() == {
            "train.loss": '{"cross_entropy": 1.0, "dice": 1.0}',
            "train.class_weights": "none",
        }

    @pytest.mark.parametrize(
        ("key", "choices"),
        [("train.loss", [{"cross_entropy": 1, "dice": 1}, {"dice": 1}]), ("train.class_weights", ["balanced", [1, 2]])],
    )
    def test_whole_numbers_among_choices_are_the_same_numbers(self, key: str, choices: list[Any]) -> None:
        space = space_of({key: choices}, train__class_weights=[1.0, 2.0])
        study = asked(space, 1)
        study.enqueue_trial(space.first_trial())
        assert space.params.override(space.suggest(study.ask())) == space.params

    def test_stepped_numbers_are_the_ones_that_people_write(self) -> None:
        for high in range(2, 10):
            space = space_of({"train.rare_share": {"low": 0.1, "high": high / 10, "step": 0.1}}, train__rare_share=0.1)
            assert space.grid() == {"train.rare_share": [one / 10 for one in range(1, high + 1)]}

    def test_a_range_without_step_has_no_grid(self) -> None:
        space = space_of({"train.optimizer": ["adamw", "sgd"], "train.lr": {"low": 0.001, "high": 1}})
        for ask in (space.grid, space.num_points):
            with pytest.raises(ParamsError, match=r"^search.space: train.lr is a range without step; expected choices"):
                ask()
        stepped = space_of({"train.epochs": {"low": 5, "high": 20, "step": 5}})
        assert stepped.grid() == {"train.epochs": [5, 10, 15, 20]}

    def test_it_describes_itself_in_json(self) -> None:
        lr = {"low": 0.001, "high": 1, "when": {"train.optimizer": ["sgd"]}}
        space = space_of({"train.optimizer": ["adamw", "sgd"], "train.lr": lr})
        assert space.describe() == {"train.lr": lr, "train.optimizer": {"choices": ["adamw", "sgd"]}}
        assert list(space.describe()) == ["train.lr", "train.optimizer"]


class TestTrials:
    @given(space=spaces(), seed=st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=15)
    def test_what_is_stored_of_a_trial_says_its_params(self, space: Space, seed: int) -> None:
        study = asked(space, seed)
        for _ in range(4):
            trial = study.ask()
            chosen = space.suggest(trial)
            assert space.overrides(trial.params) == chosen
            params = space.params.override(chosen, "trial")
            assert {key: params.value(key) for key in chosen} == chosen
            # the conditions hold for the keys that were chosen, and for no others
            for key, entry in space.params.search.space.items():
                holds = all(params.value(other) in values for other, values in entry.when.items())
                assert holds == (key in chosen)
            study.tell(trial, 0.5)

    @given(space=spaces())
    @settings(deadline=None, max_examples=15)
    def test_the_first_trial_is_the_present_params(self, space: Space) -> None:
        study = asked(space, 0)
        study.enqueue_trial(space.first_trial())
        trial = study.ask()
        assert space.params.override(space.suggest(trial), "trial") == space.params
        assert trial.params == space.first_trial()

    @given(space=spaces(finite=True, max_size=3))
    @settings(deadline=None, max_examples=8)
    def test_a_finite_space_has_as_many_points_as_are_found_by_trying(self, space: Space) -> None:
        space = read_space(space.params.override({"search.sampler.name": "brute_force"}))
        study = optuna.create_study(direction="maximize", sampler=build_sampler(space, 7))
        study.enqueue_trial(space.first_trial())
        found: list[str] = []
        study.optimize(lambda trial: found.append(str(sorted(space.suggest(trial).items()))) or 0.0)
        assert len(set(found)) == len(found) == space.num_points() == max_trials(space)
        assert space.num_points() <= len(list(itertools.product(*space.grid().values())))

    def test_points_under_conditions_on_steps_are_counted(self) -> None:
        space = space_of(
            {
                "train.rare_share": {"low": 0.1, "high": 0.3, "step": 0.1},
                "train.optimizer": {"choices": ["adamw", "sgd"], "when": {"train.rare_share": [0.3]}},
            },
            train__rare_share=0.3,
        )
        assert space.num_points() == 4

    @pytest.mark.parametrize("name", ["random", "qmc", "grid", "brute_force"])
    def test_conditions_on_steps_hold_whoever_draws_them(self, name: str) -> None:
        space = space_of(
            {
                "train.rare_share": {"low": 0.1, "high": 0.7, "step": 0.1},
                "train.optimizer": {"choices": ["adamw", "sgd"], "when": {"train.rare_share": [0.3, 0.6, 0.7]}},
            },
            train__rare_share=0.1,
            search__sampler={"name": name},
        )

        def drawn(trial: optuna.Trial) -> float:
            chosen = space.suggest(trial)
            assert space.overrides(trial.params) == chosen
            assert chosen["train.rare_share"] in [one / 10 for one in range(1, 8)]
            assert ("train.optimizer" in chosen) == (round(chosen["train.rare_share"], 3) in (0.3, 0.6, 0.7))
            return 0.5

        study = optuna.create_study(direction="maximize", sampler=build_sampler(space, 7))
        study.optimize(drawn, n_trials=10)

    def test_an_inactive_key_keeps_its_present_value_and_so_do_conditions_on_it(self) -> None:
        entries = {
            "train.compile": {"choices": [False, True], "when": {"train.schedule": ["one_cycle"]}},
            "train.schedule": {"choices": ["one_cycle", "cosine"], "when": {"train.optimizer": ["sgd"]}},
            "train.optimizer": ["adamw", "sgd"],
        }
        space = space_of(entries)
        assert [one.key for one in space.dimensions] == ["train.optimizer", "train.schedule", "train.compile"]
        assert space.first_trial() == {"train.optimizer": "adamw", "train.compile": False}
        # adamw: two of compile; sgd and one_cycle: two; sgd and cosine: one
        assert space.num_points() == 5

    def test_a_stored_trial_says_the_same(self, tmp_path: Path) -> None:
        space = space_of({key: kinds[0] for key, kinds in POOL.items()})
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
        study = optuna.create_study(storage=storage, direction="maximize", sampler=RandomSampler(3))
        chosen = []
        for _ in range(3):
            trial = study.ask()
            chosen.append(space.suggest(trial))
            study.tell(trial, 0.5)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
        stored = optuna.load_study(study_name=study.study_name, storage=storage)
        assert [space.overrides(one.params) for one in stored.trials] == chosen


class TestNetworks:
    def networks(self, space: Space) -> Iterator[tuple[str, str]]:
        for chosen in space.networks():
            params = space.params.override(chosen)
            yield params.model.architecture, params.model.encoder

    def test_every_combination_is_built_once(self) -> None:
        space = space_of(
            {
                "model.encoder": {
                    "choices": ["resnet18", "tu-test_resnet"],
                    "when": {"model.architecture": ["Linknet"]},
                },
                "model.architecture": ["Linknet", "Unet"],
                "train.lr": [0.001, 0.01],
            },
            model__architecture="Linknet",
        )
        found = list(self.networks(space))
        assert sorted(found) == [("Linknet", "resnet18"), ("Linknet", "tu-test_resnet"), ("Unet", "resnet18")]
        check_buildable(space_of({"train.lr": [0.001, 0.01]}, **TINY), 1, [90, 10], CPU)

    @pytest.mark.parametrize(
        ("entries", "told"),
        [
            ({"train.class_weights": ["none", [1.0, 2.0, 3.0]]}, "train.class_weights: 3 class weights; expected 2"),
            ({"train.class_weights": ["none", "balanced"]}, "no training pixel of class index 1"),
            ({"train.precision": ["auto", "fp16"]}, "train.precision: fp16 on a CPU"),
        ],
    )
    def test_losses_and_precisions_that_cannot_be_had_are_refused(self, entries: dict[str, Any], told: str) -> None:
        with pytest.raises((ParamsError, MachineError), match=told):
            check_buildable(space_of(entries, **TINY), 1, [90, 0], CPU)

    def test_weights_that_the_hub_does_not_give_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        space = space_of({"model.encoder_weights": [None, "nowhere"]}, model__encoder="resnet18")
        with pytest.raises((ModelError, ParamsError), match="nowhere"):
            check_buildable(space, 1, [90, 10], CPU)

    def test_conditions_on_other_keys_hide_no_network(self) -> None:
        encoder = {"choices": ["resnet18", "tu-test_resnet"], "when": {"train.optimizer": ["sgd"]}}
        space = space_of({"train.optimizer": ["adamw", "sgd"], "model.encoder": encoder})
        assert {one for _, one in self.networks(space)} == {"resnet18", "tu-test_resnet"}

    def test_without_either_key_it_is_the_present_one(self) -> None:
        space = space_of({"train.optimizer": ["adamw", "sgd"]})
        assert list(self.networks(space)) == [("Unet", "resnet18")]

    @pytest.mark.parametrize(
        ("encoders", "error", "told"),
        [
            (["tu-test_resnet", "resnet81"], ParamsError, "resnet18"),
            (["tu-test_resnet", "tu-vit_tiny_patch16_224"], ModelError, "cannot be built on encoder"),
        ],
    )
    def test_one_that_cannot_be_built_is_refused(self, encoders: list[str], error: type[Exception], told: str) -> None:
        space = space_of({"model.encoder": encoders}, model__encoder="tu-test_resnet", model__architecture="Linknet")
        with pytest.raises(error, match=told) as caught:
            check_buildable(space, 1, [90, 10], CPU)
        assert "\n" not in str(caught.value)
