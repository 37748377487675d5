"""Samplers and pruners: each by its name, and wrong arguments told of before the first trial."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from stackseg.errors import ParamsError
from stackseg.params import Params
from stackseg.search.samplers import (
    PRUNERS,
    SAMPLERS,
    build_pruner,
    build_sampler,
    dry_run,
    first_seed,
    max_trials,
)
from stackseg.search.space.parse import read_space
from stackseg.search.space.space import Space

OPTIMIZERS = {"choices": ["adamw", "sgd"]}
STEPPED = {"train.epochs": {"low": 10, "high": 30, "step": 10}, "train.optimizer": OPTIMIZERS}
NUMBERS = {"train.lr": {"low": 1e-4, "high": 1.0, "log": True}, "train.rare_share": {"low": 0, "high": 1}}
DROPOUT = {"low": 0.0, "high": 0.3, "step": 0.1}
MANY = {"search.objectives": ["ms_per_megapixel", "mean_iou"], "search.pruner.name": "none"}


def space_of(entries: Mapping[str, Any], **settings: Any) -> Space:
    more = {key.replace("__", "."): value for key, value in settings.items()}
    return read_space(Params().override({"search.space": dict(entries), **more}))


class TestSamplers:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_each_makes_trials(self, name: str) -> None:
        entries = STEPPED if name in ("grid", "brute_force") else {**STEPPED, **NUMBERS}
        space = space_of(entries, search__sampler={"name": name})
        if name == "cmaes" and importlib.util.find_spec("cmaes") is None:
            with pytest.raises(ParamsError, match=r"^search.sampler: .*cmaes.*Install it, or choose another"):
                build_sampler(space, 7)
            return
        study = optuna.create_study(direction="maximize", sampler=build_sampler(space, 7))
        study.enqueue_trial(space.first_trial())
        study.optimize(lambda trial: 1 / space.suggest(trial)["train.epochs"], n_trials=5)
        assert study.trials[0].params == space.first_trial()
        assert all(one.state == TrialState.COMPLETE for one in study.trials)

    @pytest.mark.parametrize("name", ["tpe", "nsgaii", "nsgaiii", "random"])
    def test_several_objectives(self, name: str) -> None:
        space = space_of(STEPPED, search__sampler={"name": name}, **MANY)
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=build_sampler(space, 7))
        study.optimize(lambda trial: (float(space.suggest(trial)["train.epochs"]), 0.5), n_trials=3)
        assert len(study.trials) == 3

    @pytest.mark.parametrize("name", ["tpe", "random", "qmc"])
    def test_the_seed_decides(self, name: str) -> None:
        space = space_of(NUMBERS, search__sampler={"name": name})

        def drawn(seed: int) -> list[dict[str, Any]]:
            study = optuna.create_study(sampler=build_sampler(space, seed))
            return [space.suggest(study.ask()) for _ in range(3)]

        assert drawn(1) == drawn(1)
        assert drawn(1) != drawn(2)

    @pytest.mark.parametrize("name", ["grid", "brute_force"])
    def test_those_that_try_all_want_steps(self, name: str) -> None:
        space = space_of({**STEPPED, **NUMBERS}, search__sampler={"name": name})
        for ask in (lambda: build_sampler(space, 7), lambda: max_trials(space)):
            with pytest.raises(ParamsError, match=r"^search.space: train.lr is a range without step") as caught:
                ask()
            assert "grid and brute_force try all values" in str(caught.value)

    @pytest.mark.parametrize("name", ["grid", "brute_force"])
    @pytest.mark.parametrize("present", [10, 20])
    def test_those_that_try_all_have_an_end(self, name: str, present: int) -> None:
        entries = {**STEPPED, "model.decoder_dropout": DROPOUT}
        space = space_of(entries, search__sampler={"name": name}, train__epochs=present)
        study = optuna.create_study(direction="maximize", sampler=build_sampler(space, 7))
        study.enqueue_trial(space.first_trial())
        study.optimize(lambda trial: space.suggest(trial)["train.epochs"], n_trials=max_trials(space))
        assert len(study.trials) == max_trials(space) == (24 if name == "brute_force" else 25)
        assert len({str(sorted(one.params.items())) for one in study.trials}) == 24

    @pytest.mark.parametrize("name", ["grid", "brute_force"])
    def test_workers_of_other_seeds_go_through_the_same_points(self, name: str) -> None:
        space = space_of({**STEPPED, "model.decoder_dropout": DROPOUT}, search__sampler={"name": name})
        study = optuna.create_study(direction="maximize")
        study.enqueue_trial(space.first_trial())
        # two workers in turns, and later ones that go on
        samplers = itertools.cycle(build_sampler(space, seed) for seed in (7, 8, 12345))
        for _ in range(max_trials(space) or 0):
            study.sampler = next(samplers)
            study.optimize(lambda trial: space.suggest(trial)["train.epochs"], n_trials=1)
        assert len({str(sorted(one.params.items())) for one in study.trials}) == 24

    def test_a_grid_of_which_a_queued_trial_ends_last(self) -> None:
        space = space_of({"train.optimizer": OPTIMIZERS}, search__sampler={"name": "grid"})
        study = optuna.create_study(sampler=build_sampler(space, 7))
        study.enqueue_trial(space.first_trial())
        trials = [study.ask() for _ in range(max_trials(space) or 0)]
        for one in reversed(trials):  # of other workers
            space.suggest(one)
            study.tell(one, 0.5)
        assert len({str(one.params) for one in study.trials}) == 2

    @pytest.mark.parametrize("name", ["grid", "brute_force"])
    def test_a_space_too_vast_to_be_tried_whole(self, name: str) -> None:
        entries = {f"train.{key}": {"low": 10, "high": 10**4} for key in ("epochs", "patches_per_epoch")}
        space = space_of(entries, search__sampler={"name": name})
        with pytest.raises(ParamsError, match=r"^search.space: more than 100000 points; .* Take keys or values out"):
            max_trials(space)

    def test_workers_of_other_seeds_share_one_sequence(self) -> None:
        space = space_of(NUMBERS, search__sampler={"name": "qmc", "arguments": {"scramble": True}})
        drawn = []
        for seed in (7, 8):
            study = optuna.create_study(sampler=build_sampler(space, seed))
            study.enqueue_trial(space.first_trial())
            study.optimize(lambda trial: space.suggest(trial)["train.lr"], n_trials=3)
            drawn.append([one.params for one in study.trials])
        assert drawn[0] == drawn[1]

    def test_others_have_none(self) -> None:
        for name in set(SAMPLERS) - {"grid", "brute_force"}:
            assert max_trials(space_of(STEPPED, search__sampler={"name": name})) is None

    @pytest.mark.parametrize(
        ("name", "arguments", "told"),
        [
            *((name, {"startup": 3}, "unexpected keyword argument 'startup'") for name in SAMPLERS),
            ("nsgaii", {"population_size": 1}, "must be greater than or equal to 2"),
            ("qmc", {"qmc_type": "lattice"}, "lattice"),
            ("tpe", {"seed": -1}, "seed is -1; expected a whole number from 0"),
        ],
    )
    def test_bad_arguments_are_one_line(self, name: str, arguments: dict[str, Any], told: str) -> None:
        space = space_of(STEPPED, search__sampler={"name": name, "arguments": arguments})
        with pytest.raises(ParamsError) as caught:
            build_sampler(space, first_seed(space.params))
        assert str(caught.value).startswith("search.sampler.arguments: ")
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("arguments", [{"n_startup_trials": 3}, {"multivariate": True}, {"constant_liar": True}])
    def test_good_arguments(self, arguments: dict[str, Any]) -> None:
        space = space_of(STEPPED, search__sampler={"name": "tpe", "arguments": arguments})
        assert build_sampler(space, 7)

    def test_the_first_seed_is_the_samplers_own_or_that_of_all(self) -> None:
        assert first_seed(Params()) == 7
        assert first_seed(Params().override({"seed": 11})) == 11
        assert first_seed(Params().override({"seed": 11, "search.sampler.arguments": {"seed": 3}})) == 3

    @pytest.mark.parametrize("seed", [None, "7", 7.0, True])
    def test_a_seed_is_a_whole_number(self, seed: Any) -> None:
        with pytest.raises(ParamsError, match=r"^search.sampler.arguments: seed is .*; expected a whole number"):
            first_seed(Params().override({"search.sampler.arguments": {"seed": seed}}))

    @pytest.mark.parametrize("seed", [2**32 - 1, 2**32 - 2])
    def test_every_worker_has_a_seed_behind_the_largest_one(self, seed: int) -> None:
        space = space_of(STEPPED, seed=seed)
        for place in range(3):
            assert build_sampler(space, first_seed(space.params) + place)


DRY_RUN = {
    "train.weight_decay": {"low": 0.0, "high": 0.02, "step": 0.01},
    "train.optimizer": {"choices": ["adamw", "sgd"]},
    "train.ema": {"choices": [None, 0.9], "when": {"train.optimizer": ["sgd"]}},
}


class TestDryRun:
    @pytest.mark.parametrize(
        ("name", "pruner"),
        [
            *((name, "successive_halving") for name in ("gp", "nsgaii", "nsgaiii", "random", "qmc", "brute_force")),
            *(("tpe", pruner) for pruner in ("successive_halving", "hyperband", "median", "none")),
            ("grid", "none"),
        ],
    )
    def test_what_works_passes(self, name: str, pruner: str) -> None:
        dry_run(space_of(DRY_RUN, search__sampler={"name": name}, search__pruner={"name": pruner}))

    @pytest.mark.parametrize(
        ("sampler", "pruner", "where"),
        [
            ({"name": "gp", "arguments": {"n_startup_trials": "x"}}, {"name": "none"}, "search.sampler.arguments"),
            ({"name": "tpe", "arguments": {"n_startup_trials": "x"}}, {"name": "none"}, "search.sampler.arguments"),
            ({"name": "grid", "arguments": {"search_space": {}}}, {"name": "none"}, "search.sampler.arguments"),
            ({"name": "tpe"}, {"name": "hyperband", "arguments": {"min_resource": "x"}}, "search.pruner.arguments"),
            ({"name": "tpe"}, {"name": "median", "arguments": {"n_warmup_steps": "x"}}, "search.pruner.arguments"),
            ({"name": "tpe"}, {"name": "percentile"}, "search.pruner.arguments"),
        ],
    )
    def test_what_optuna_fails_with_is_one_line(
        self, sampler: dict[str, Any], pruner: dict[str, Any], where: str
    ) -> None:
        with pytest.raises(ParamsError) as caught:
            dry_run(space_of(DRY_RUN, search__sampler=sampler, search__pruner=pruner))
        assert str(caught.value).startswith(f"{where}: ")
        assert "\n" not in str(caught.value)


class TestPruners:
    NEEDED: Mapping[str, dict[str, Any]] = {"percentile": {"percentile": 25.0}, "threshold": {"lower": 0.1}}

    def pruner(self, name: str, arguments: dict[str, Any], **settings: Any) -> Any:
        chosen = {"name": name, "arguments": arguments}
        return build_pruner(Space((), Params().override({"search.pruner": chosen, **settings})))

    @pytest.mark.parametrize("name", PRUNERS)
    def test_each_judges_epochs(self, name: str) -> None:
        study = optuna.create_study(direction="maximize", pruner=self.pruner(name, self.NEEDED.get(name, {})))
        ends = []
        for score in (0.9, 0.8, 0.7, 0.6, 0.5, 0.05):
            trial, epoch = study.ask(), 0
            while epoch < 20 and not trial.should_prune():
                epoch += 4
                trial.report(score, epoch)
            study.tell(trial, score)
            ends.append(epoch)
        assert ends[0] == 20
        assert (name == "none") == (ends == [20] * 6)
        assert name != "threshold" or ends == [20] * 5 + [4]

    def test_epochs_are_those_of_the_training(self) -> None:
        halving = self.pruner("successive_halving", {}, **{"train.validate_every": 3, "train.epochs": 20})
        assert (halving._min_resource, halving._reduction_factor) == (5, 4)
        halving = self.pruner("successive_halving", {}, **{"train.validate_every": 3, "train.epochs": 5})
        assert halving._min_resource == 3
        hyperband = self.pruner("hyperband", {}, **{"train.validate_every": 3, "train.epochs": 50})
        assert (hyperband._min_resource, hyperband._max_resource) == (3, 50)
        varied = space_of({"train.epochs": {"low": 10, "high": 40}}, train__epochs=20)
        assert build_pruner(varied)._min_resource == 10  # type: ignore[attr-defined]
        given = self.pruner("hyperband", {"min_resource": 5, "max_resource": 20, "reduction_factor": 2})
        assert (given._min_resource, given._max_resource) == (5, 20)

    @pytest.mark.parametrize(
        ("name", "arguments", "told"),
        [
            *((name, {"patience": 3}, "argument") for name in PRUNERS),
            ("percentile", {}, "missing 1 required positional argument: 'percentile'"),
            ("percentile", {"percentile": 200}, "Percentile must be between 0 and 100"),
            ("threshold", {}, "Either lower or upper must be specified"),
            ("successive_halving", {"min_resource": 0}, "min_resource"),
            ("hyperband", {"max_resource": "all"}, "max_resource"),
        ],
    )
    def test_bad_arguments_are_one_line(self, name: str, arguments: dict[str, Any], told: str) -> None:
        with pytest.raises(ParamsError) as caught:
            self.pruner(name, arguments)
        assert str(caught.value).startswith("search.pruner.arguments: ")
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
