"""A study: made once however many begin it, known again, and counted right."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations as A
import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from stackseg.catalog import build as describing
from stackseg.errors import StoreError
from stackseg.params import Params
from stackseg.search import study as study_module
from stackseg.search.space.parse import read_space
from stackseg.search.space.space import Space
from stackseg.search.storage import open_storage, storage_url
from stackseg.search.study import best_trials, identity_of, iou_index, load_study, num_kept, open_study

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
    return open_storage(storage_url(folder, None), heartbeat=1, on_stale=lambda *_: None)


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
def storage(monkeypatch: pytest.MonkeyPatch) -> BaseStorage:
    """Return a storage that is quick to make."""
    monkeypatch.setattr(study_module, "_PAUSE_S", 0.1)
    return optuna.storages.InMemoryStorage()


class TestOpening:
    def test_it_is_made_once_with_the_present_params_as_trial_0(self, tmp_path: Path) -> None:
        space, storage = space_of({**STEPPED, **NUMBERS}), stored(tmp_path)
        study, created = opened(storage, space)
        assert created
        assert study.study_name == "deep"
        (first,) = study.trials
        assert (first.number, first.state) == (0, TrialState.WAITING)
        made: list[Params] = []
        study.optimize(lambda trial: made.append(space.params.override(space.suggest(trial))) or 0.5, n_trials=1)
        assert made == [space.params]
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
        monkeypatch.setattr(study_module, "_PAUSE_S", 5)
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
        assert told.startswith("--resume: there is no study 'deep' to resume. Leave --resume out")
        assert optuna.get_all_study_names(storage) == []

    def test_one_of_somebody_else_is_refused(self, storage: BaseStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(study_module, "_CREATION_TIMEOUT_S", 0.1)
        optuna.create_study(storage=storage, study_name="deep")
        told = refused(storage, space_of(STEPPED), resume=True)
        assert told.startswith(
            "--study: the study 'deep' was not created by stackseg, or only half created. Choose another"
        )

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"search.space": {**STEPPED, "train.lr": {"choices": [0.001, 0.1]}}}, "search.space.train.lr is {"),
            ({"search.space": {"train.optimizer": OPTIMIZERS}}, "search.space.train.epochs is not there"),
            (
                {"search.space": {**STEPPED, "train.optimizer": {"choices": ["sgd", "adamw"]}}},
                "search.space.train.optimizer is {'choices': ['sgd', 'adamw']}",
            ),
            ({"search.folds": 3}, "search.folds is 3 since study 'deep' began; expected None"),
            (MANY, "search.objectives is ['ms_per_megapixel', 'mean_iou'] since study 'deep' began; expected ['mean_"),
            ({"seed": 8}, "seed is 8 since study 'deep' began; expected 7"),
            ({"train.batch_size": 4}, "train.batch_size is 4 since study 'deep' began; expected 8"),
            (
                {"train.loss": {"dice": 1.0}},
                "train.loss.cross_entropy is not there since study 'deep' began; expected 1.0",
            ),
            ({"augment.preset": "em"}, "augment.preset is em since study 'deep' began; expected light"),
            ({"inference.tile": 256}, "inference.tile is 256 since study 'deep' began; expected 1024"),
        ],
        ids=lambda one: "-".join(one) if isinstance(one, dict) else "",
    )
    def test_one_about_something_else_is_refused(
        self, storage: BaseStorage, settings: dict[str, Any], told: str
    ) -> None:
        space = space_of(STEPPED)
        opened(storage, space)
        other = read_space(space.params.override(settings))
        for resume in (False, True):
            found = refused(storage, other, resume=resume)
            assert found.startswith(f"params.yaml: {told}")
            assert "Set it back, or begin another study with --study NAME" in found

    def test_other_signs_of_life_are_refused(self, storage: BaseStorage) -> None:
        opened(storage, space_of(STEPPED))
        other = space_of(STEPPED, search__heartbeat=1)
        for resume in (False, True):
            told = refused(storage, other, resume=resume)
            assert told.startswith("params.yaml: search.heartbeat is 1 since study 'deep' began; expected 15: with")

    def test_as_many_bundles_are_kept_as_before(self, storage: BaseStorage) -> None:
        study, _ = opened(storage, space_of(STEPPED))
        assert [num_kept(study, asked) for asked in (None, 3, None, 2, None)] == [1, 3, 3, 2, 2]

    def test_other_planes_or_code_are_refused(self, storage: BaseStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        space = space_of(STEPPED)
        opened(storage, space)
        told = refused(storage, space, data="others")
        assert told.startswith("--study: the catalogue (data, split or intensity) has changed since study 'deep' began")
        monkeypatch.setattr(study_module, "code_digest", lambda: "newer")
        assert "the code of stackseg has changed since study 'deep' began" in refused(storage, space, resume=True)

    def test_a_key_that_a_later_version_has_added_is_named(self, storage: BaseStorage) -> None:
        space = space_of(STEPPED)
        study, _ = opened(storage, space)
        identity = study.user_attrs[study_module.IDENTITY]
        del identity["fixed"]["train.ema"]  # its value is null
        study.set_user_attr(study_module.IDENTITY, identity)
        told = refused(storage, space, resume=True)
        assert "train.ema is None since study 'deep' began; expected not there" in told

    def test_another_pipeline_of_that_name_is_refused(
        self, storage: BaseStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        space = space_of(STEPPED, augment={"preset": "file", "file": "varied.json"})
        A.save(A.Compose([A.HorizontalFlip(p=0.5)]), "varied.json")
        opened(storage, space)
        A.save(A.Compose([A.HorizontalFlip(p=0.6)]), "varied.json")
        assert "the pipeline of augment.file has changed since study 'deep' began" in refused(
            storage, space, resume=True
        )

    def test_what_does_not_change_the_scores_may_differ(self, storage: BaseStorage) -> None:
        space = space_of(STEPPED)
        opened(storage, space)
        free = {
            "train.epochs": 30,  # varied: which of its values is the present one does not matter
            "search.study": "x",
            "search.fold_margin": 0.1,
            "search.sampler": {"name": "random"},
            "search.pruner": {"name": "median"},
            "project.experiment": "other",
            "evaluate.overlays": 1,
        }
        assert not opened(storage, read_space(space.params.override(free)))[1]

    def test_the_present_value_of_a_key_that_counts_only_at_times_is_part_of_it(self, storage: BaseStorage) -> None:
        epochs = {"choices": [20, 30], "when": {"train.optimizer": ["sgd"]}}
        space = space_of({"train.optimizer": OPTIMIZERS, "train.epochs": epochs})
        opened(storage, space)
        told = refused(storage, read_space(space.params.override({"train.epochs": 30})))
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


def require_one(folder: Path, found: list[tuple[int, bool]]) -> None:
    assert len({study_id for study_id, _ in found}) == 1
    assert sorted(created for _, created in found) == [False, False, False, True]
    storage = stored(folder)
    assert optuna.get_all_study_names(storage) == ["deep"]
    (first,) = load_study(storage, "deep", Space((), Params()), optuna.samplers.RandomSampler()).trials
    assert first.state == TrialState.WAITING
    assert first.system_attrs["fixed_params"] == space_of(STEPPED).first_trial()


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
        assert iou_index(study) == 0

    def test_of_several_objectives_it_is_the_pareto_front_by_mean_iou(self, storage: BaseStorage) -> None:
        study, _ = opened(storage, space_of(STEPPED, **MANY))
        assert study.metric_names == ["ms_per_megapixel", "mean_iou"]
        assert iou_index(study) == 1
        finish(study, [50.0, 0.6])
        for speed, score in ((80.0, 0.9), (10.0, 0.3), (60.0, 0.5), (70.0, 0.7)):
            study.add_trial(create_trial(values=[speed, score]))
        assert [one.values for one in best_trials(study)] == [[80.0, 0.9], [70.0, 0.7], [50.0, 0.6], [10.0, 0.3]]

    def test_none_yet(self, storage: BaseStorage) -> None:
        assert best_trials(opened(storage, space_of(STEPPED))[0]) == []


@pytest.mark.parametrize("folds", [None, 3])
def test_code_that_describes_folds_is_of_a_study_with_folds(monkeypatch: pytest.MonkeyPatch, folds: int | None) -> None:
    space = space_of(STEPPED, search__folds=folds)
    before = identity_of(space, Data())["code"]  # type: ignore[arg-type]
    real, changed = Path.read_bytes, Path(describing.__file__)
    monkeypatch.setattr(Path, "read_bytes", lambda self: real(self) + (b"# more" if self == changed else b""))
    after = identity_of(space, Data())["code"]  # type: ignore[arg-type]
    assert (after != before) == (folds is not None)
