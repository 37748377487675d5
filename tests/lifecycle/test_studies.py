"""A study: made once however many begin it, known again, and counted right."""

from __future__ import annotations

import importlib.util
import multiprocessing
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import Trial, TrialState, create_trial

from stackseg.errors import ParamsError, StoreError
from stackseg.lifecycle import studies
from stackseg.lifecycle.space import Space, read_space
from stackseg.lifecycle.studies import (
    FAILURE,
    PRUNERS,
    SAMPLERS,
    SURPLUS,
    Standing,
    best_trials,
    build_pruner,
    build_sampler,
    first_seed,
    hand_back_lost,
    load_study,
    most_trials,
    objective_place,
    open_study,
    rehearse,
    standing_of,
)
from stackseg.lifecycle.study_storage import open_storage, storage_url
from stackseg.params import Params

OPTIMIZERS = {"choices": ["adamw", "sgd"]}
STEPPED = {"train.epochs": {"low": 10, "high": 30, "step": 10}, "train.optimizer": OPTIMIZERS}
NUMBERS = {"train.lr": {"low": 1e-4, "high": 1.0, "log": True}, "train.rare_share": {"low": 0, "high": 1}}
MANY = {"search.objectives": ["ms_per_megapixel", "mean_iou"], "search.pruner.name": "none"}


@dataclass(frozen=True)
class Data:
    """What a study reads of a catalogue."""

    name: str = "planes"

    def digest(self) -> str:
        return self.name


def space_of(entries: Mapping[str, Any], **settings: Any) -> Space:
    more = {key.replace("__", "."): value for key, value in settings.items()}
    return read_space(Params().override({"search.space": dict(entries), **more}))


def stored(folder: Path) -> BaseStorage:
    return open_storage(storage_url(folder, None), root=folder, heartbeat=1, on_stale=lambda *_: None)


def opened(storage: BaseStorage, space: Space, *, resume: bool = False, data: str = "planes") -> tuple[Study, bool]:
    return open_study(storage, "deep", space, Data(data), resume=resume)  # type: ignore[arg-type]


def refused(storage: BaseStorage, space: Space, **more: Any) -> str:
    with pytest.raises(StoreError) as caught:
        opened(storage, space, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def finish(study: Study, value: float | list[float] = 0.5) -> None:
    """End every trial that waits or is at work."""
    while study.get_trials(states=(TrialState.WAITING,)):
        study.ask()
    for one in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(one.number, value)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseStorage:
    """Return a storage that goes through a file, as the default does, and is quicker to make."""
    monkeypatch.setattr(studies, "_PAUSE_S", 0.1)
    url = storage_url(tmp_path, "journal:optuna.log")
    return open_storage(url, root=tmp_path, heartbeat=1, on_stale=lambda *_: None)


class TestOpening:
    def test_it_is_made_once_with_the_present_params_as_trial_0(self, tmp_path: Path) -> None:
        space, storage = space_of({**STEPPED, **NUMBERS}), stored(tmp_path)
        study, created = opened(storage, space)
        assert created
        assert study.study_name == "deep"
        (first,) = study.trials
        assert (first.number, first.state) == (0, TrialState.WAITING)
        made: list[Params] = []
        study.optimize(lambda trial: made.append(space.present.override(space.suggest(trial))) or 0.5, n_trials=1)
        assert made == [space.present]
        assert study.trials[0].params == space.first_trial()

    def test_it_is_joined_while_it_is_at_work(self, storage: BaseStorage) -> None:
        space = space_of(STEPPED)
        study, _ = opened(storage, space)
        waiting, created = opened(storage, space)
        assert (waiting._study_id, created) == (study._study_id, False)
        study.ask()
        running, created = opened(storage, space)
        assert (running._study_id, created) == (study._study_id, False)
        assert len(running.trials) == 1

    def test_it_is_joined_between_two_trials(self, storage: BaseStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(studies, "_PAUSE_S", 5)
        space = space_of(STEPPED)
        study, _ = opened(storage, space)
        finish(study)
        later = threading.Timer(0.3, study.ask)
        later.start()
        assert not opened(storage, space)[1]
        later.join()

    def test_an_idle_one_is_gone_on_with_only_if_told(self, storage: BaseStorage) -> None:
        space = space_of(STEPPED)
        study, _ = opened(storage, space)
        finish(study)
        assert refused(storage, space) == (
            "--study: the study 'deep' is there already, with 1 finished trials. "
            "--resume goes on with it, --study NAME begins another"
        )
        resumed, created = opened(storage, space, resume=True)
        assert not created
        assert len(resumed.trials) == 1

    def test_one_that_is_not_there_is_not_resumed(self, storage: BaseStorage) -> None:
        told = refused(storage, space_of(STEPPED), resume=True)
        assert told.startswith("--resume: there is no study 'deep' to go on with. Leave --resume out")
        assert optuna.get_all_study_names(storage) == []

    def test_one_of_somebody_else_is_refused(self, storage: BaseStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(studies, "_CREATION_TIMEOUT_S", 0.1)
        optuna.create_study(storage=storage, study_name="deep")
        told = refused(storage, space_of(STEPPED), resume=True)
        assert told.startswith("--study: the study 'deep' was not made by stackseg, or left half-made. Choose another")

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"search.space": {**STEPPED, "train.lr": {"choices": [0.001, 0.1]}}}, "search.space.train.lr is {"),
            ({"search.space": {"train.optimizer": OPTIMIZERS}}, "search.space.train.epochs is None"),
            (
                {"search.space": {**STEPPED, "train.optimizer": {"choices": ["sgd", "adamw"]}}},
                "search.space.train.optimizer is {'choices': ['sgd', 'adamw']}",
            ),
            ({"search.folds": 3}, "search.folds is 3 since study 'deep' began; expected None"),
            (MANY, "search.objectives is ['ms_per_megapixel', 'mean_iou'] since study 'deep' began; expected ['mean_"),
            ({"seed": 8}, "seed is 8 since study 'deep' began; expected 7"),
            ({"train.batch_size": 4}, "train.batch_size is 4 since study 'deep' began; expected 8"),
            ({"train.loss": {"dice": 1.0}}, "train.loss.cross_entropy is None since study 'deep' began; expected 1.0"),
            ({"augment.preset": "em"}, "augment.preset is em since study 'deep' began; expected light"),
            ({"inference.tile": 256}, "inference.tile is 256 since study 'deep' began; expected 512"),
        ],
        ids=lambda one: "-".join(one) if isinstance(one, dict) else "",
    )
    def test_one_about_something_else_is_refused(
        self, storage: BaseStorage, settings: dict[str, Any], told: str
    ) -> None:
        space = space_of(STEPPED)
        opened(storage, space)
        other = read_space(space.present.override(settings))
        for resume in (False, True):
            found = refused(storage, other, resume=resume)
            assert found.startswith(f"params.yaml: {told}")
            assert "Set it back, or begin another study with --study NAME" in found

    def test_other_planes_or_code_are_refused(self, storage: BaseStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        space = space_of(STEPPED)
        opened(storage, space)
        told = refused(storage, space, data="others")
        assert told.startswith("--study: the catalogue (data, split or intensity) has changed since study 'deep' began")
        monkeypatch.setattr(studies, "code_digest", lambda: "newer")
        assert "the code of stackseg has changed since study 'deep' began" in refused(storage, space, resume=True)

    def test_what_does_not_change_the_scores_may_differ(self, storage: BaseStorage) -> None:
        space = space_of(STEPPED)
        opened(storage, space)
        free = {
            "train.epochs": 30,  # varied: which of its values is the present one does not matter
            "search.study": "x",
            "search.fold_margin": 0.1,
            "search.heartbeat": 3,
            "search.sampler": {"name": "random"},
            "search.pruner": {"name": "median"},
            "project.experiment": "other",
            "evaluate.overlays": 1,
        }
        assert not opened(storage, read_space(space.present.override(free)))[1]

    def test_the_present_value_of_a_key_that_counts_only_at_times_is_part_of_it(self, storage: BaseStorage) -> None:
        epochs = {"choices": [20, 30], "when": {"train.optimizer": ["sgd"]}}
        space = space_of({"train.optimizer": OPTIMIZERS, "train.epochs": epochs})
        opened(storage, space)
        told = refused(storage, read_space(space.present.override({"train.epochs": 30})))
        assert told.startswith("params.yaml: train.epochs is 30 since study 'deep' began; expected 20")

    # what silences a warning is shared by all threads; workers are processes
    @pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    def test_several_threads_at_once_make_one(self, tmp_path: Path) -> None:
        together = threading.Barrier(4)

        def begin(_: int) -> tuple[int, bool]:
            together.wait()
            study, created = opened(stored(tmp_path), space)
            return study._study_id, created

        space = space_of(STEPPED)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(begin, range(4)))
        require_one(tmp_path, found)

    @pytest.mark.slow
    def test_several_processes_at_once_make_one(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager, context.Pool(4) as pool:
            together = manager.Barrier(4)
            found = pool.starmap(begin_at_once, [(tmp_path, together)] * 4, chunksize=1)
        require_one(tmp_path, found)


def begin_at_once(folder: Path, together: threading.Barrier) -> tuple[int, bool]:
    """Open a study in a process of its own, in the same moment as others."""
    together.wait(120)
    study, created = opened(stored(folder), space_of(STEPPED))
    return study._study_id, created


def require_one(folder: Path, found: list[tuple[int, bool]]) -> None:
    assert len({study_id for study_id, _ in found}) == 1
    assert sorted(created for _, created in found) == [False, False, False, True]
    storage = stored(folder)
    assert optuna.get_all_study_names(storage) == ["deep"]
    (first,) = load_study(storage, "deep", Params(), optuna.samplers.RandomSampler()).trials
    assert first.state == TrialState.WAITING
    assert first.system_attrs["fixed_params"] == space_of(STEPPED).first_trial()


class TestStanding:
    def test_each_end_counts_as_what_it_is(self) -> None:
        study = optuna.create_study()
        ends: list[tuple[TrialState, dict[str, Any]]] = [
            (TrialState.COMPLETE, {}),
            (TrialState.COMPLETE, {}),
            (TrialState.PRUNED, {}),
            (TrialState.FAIL, {FAILURE: "out of memory"}),
            (TrialState.FAIL, {}),
            (TrialState.FAIL, {SURPLUS: True}),
            (TrialState.FAIL, {SURPLUS: True}),
        ]
        for state, attributes in ends:
            value = 0.5 if state == TrialState.COMPLETE else None
            study.add_trial(create_trial(state=state, value=value, user_attrs=attributes))
        study.ask()
        study.enqueue_trial({})
        standing = standing_of(study.trials)
        assert standing == Standing(num_complete=2, num_pruned=1, num_failed=1, num_running=1)
        assert standing.num_finished == 4

    @pytest.mark.filterwarnings("ignore:RetryHeartbeatStaleTrialCallback is experimental")
    def test_a_trial_that_was_taken_up_counts_once(self) -> None:
        retry, study = RetryHeartbeatStaleTrialCallback(max_retry=1), optuna.create_study()

        def dies(one: Trial) -> None:
            study.tell(one, state=TrialState.FAIL)
            retry(study, study.trials[one.number])

        dies(study.ask())
        assert standing_of(study.trials) == Standing(0, 0, 0, 0)
        again = study.ask()
        assert standing_of(study.trials) == Standing(0, 0, 0, 1)
        dies(again)
        # nobody takes it up a second time
        assert len(study.trials) == 2
        assert standing_of(study.trials) == Standing(0, 0, 1, 0)

    @pytest.mark.filterwarnings("ignore:RetryHeartbeatStaleTrialCallback is experimental")
    def test_one_that_was_taken_up_and_completed_has_not_failed(self) -> None:
        study = optuna.create_study()
        study.tell(study.ask(), state=TrialState.FAIL)
        RetryHeartbeatStaleTrialCallback(max_retry=1)(study, study.trials[0])
        study.tell(study.ask(), 0.5)
        assert standing_of(study.trials) == Standing(1, 0, 0, 0)

    def test_what_was_lost_is_handed_back_once(self) -> None:
        study = optuna.create_study()
        for attributes in ({}, {FAILURE: "out of memory"}, {SURPLUS: True}):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            study.tell(trial, state=TrialState.FAIL)
        for _ in range(2):
            hand_back_lost(study)
            assert [one.number for one in study.trials if one.state == TrialState.WAITING] == [3]
        assert study.ask().suggest_float("x", 0, 1) == study.trials[0].params["x"]

    def test_nothing_yet(self) -> None:
        assert standing_of([]).num_finished == 0


class TestBest:
    def test_completed_trials_come_best_first_and_earlier_ones_before_equals(self, storage: BaseStorage) -> None:
        study, _ = opened(storage, space_of(STEPPED))
        finish(study, 0.4)
        for value in (0.7, 0.0, 0.7, 0.9):
            study.add_trial(create_trial(value=value))
        study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.99}))
        study.add_trial(create_trial(state=TrialState.FAIL))
        study.ask()
        assert [one.number for one in best_trials(study)] == [4, 1, 3, 0, 2]
        assert objective_place(study) == 0

    def test_of_several_objectives_it_is_the_pareto_front_by_mean_iou(self, storage: BaseStorage) -> None:
        study, _ = opened(storage, space_of(STEPPED, **MANY))
        assert study.metric_names == ["ms_per_megapixel", "mean_iou"]
        assert objective_place(study) == 1
        finish(study, [50.0, 0.6])
        for speed, score in ((80.0, 0.9), (10.0, 0.3), (60.0, 0.5), (70.0, 0.7)):
            study.add_trial(create_trial(values=[speed, score]))
        assert [one.values for one in best_trials(study)] == [[80.0, 0.9], [70.0, 0.7], [50.0, 0.6], [10.0, 0.3]]

    def test_none_yet(self, storage: BaseStorage) -> None:
        assert best_trials(opened(storage, space_of(STEPPED))[0]) == []


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
        for ask in (lambda: build_sampler(space, 7), lambda: most_trials(space)):
            with pytest.raises(ParamsError, match=r"^search.space: train.lr is a range without step") as caught:
                ask()
            assert "grid and brute_force try all values" in str(caught.value)

    @pytest.mark.parametrize("name", ["grid", "brute_force"])
    @pytest.mark.parametrize("present", [10, 20])
    def test_those_that_try_all_have_an_end(self, name: str, present: int) -> None:
        dropout = {"low": 0.0, "high": 0.3, "step": 0.1}
        entries = {**STEPPED, "model.decoder_dropout": dropout}
        space = space_of(entries, search__sampler={"name": name}, train__epochs=present)
        study = optuna.create_study(direction="maximize", sampler=build_sampler(space, 7))
        study.enqueue_trial(space.first_trial())
        study.optimize(lambda trial: space.suggest(trial)["train.epochs"])
        assert len(study.trials) == most_trials(space) == (24 if name == "brute_force" else 25)
        assert len({str(sorted(one.params.items())) for one in study.trials}) == 24

    def test_others_have_none(self) -> None:
        for name in set(SAMPLERS) - {"grid", "brute_force"}:
            assert most_trials(space_of(STEPPED, search__sampler={"name": name})) is None

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
            build_sampler(space, first_seed(space.present))
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
            assert build_sampler(space, first_seed(space.present) + place)


REHEARSED = {
    "train.weight_decay": {"low": 0.0, "high": 0.02, "step": 0.01},
    "train.optimizer": {"choices": ["adamw", "sgd"]},
    "train.ema": {"choices": [None, 0.9], "when": {"train.optimizer": ["sgd"]}},
}


class TestRehearsal:
    @pytest.mark.parametrize("name", ["tpe", "gp", "nsgaii", "nsgaiii", "random", "qmc", "grid", "brute_force"])
    @pytest.mark.parametrize("pruner", ["successive_halving", "hyperband", "median", "none"])
    def test_what_works_passes(self, name: str, pruner: str) -> None:
        rehearse(space_of(REHEARSED, search__sampler={"name": name}, search__pruner={"name": pruner}))

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
            rehearse(space_of(REHEARSED, search__sampler=sampler, search__pruner=pruner))
        assert str(caught.value).startswith(f"{where}: ")
        assert "\n" not in str(caught.value)


class TestPruners:
    NEEDED: Mapping[str, dict[str, Any]] = {"percentile": {"percentile": 25.0}, "threshold": {"lower": 0.1}}

    def pruner(self, name: str, arguments: dict[str, Any], **settings: Any) -> Any:
        chosen = {"name": name, "arguments": arguments}
        return build_pruner(Params().override({"search.pruner": chosen, **settings}))

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
        assert (halving._min_resource, halving._reduction_factor) == (7, 2)
        halving = self.pruner("successive_halving", {}, **{"train.validate_every": 3, "train.epochs": 5})
        assert halving._min_resource == 3
        hyperband = self.pruner("hyperband", {}, **{"train.validate_every": 3, "train.epochs": 50})
        assert (hyperband._min_resource, hyperband._max_resource) == (17, 50)
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
