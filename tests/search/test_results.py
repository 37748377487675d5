"""What a study leaves: best params that params.yaml takes, and experiments that DVC queues."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from optuna.samplers import RandomSampler
from optuna.study import Study
from ruamel.yaml import YAML

from stackseg.params import Params, read_params
from stackseg.params.file import write_values
from stackseg.search.results import claim_folder, dvc_changes, write_best_params, write_queue
from stackseg.search.space.parse import read_space
from stackseg.search.space.space import Space
from stackseg.search.study import STUDY_ID, best_trials

ROOT = Path(__file__).parents[2]
COMPLETE = (ROOT / "params.yaml").read_text(encoding="utf-8")
SPACE: dict[str, Any] = {
    "train.lr": {"low": 1e-7, "high": 1e-2, "log": True},
    "train.epochs": {"low": 2, "high": 40, "step": 2},
    "train.loss": [{"cross_entropy": 1.0, "dice": 1.0}, {"dice": 1.0}, {"focal": 2.0, "dice": 0.25}],
    "train.class_weights": ["none", "balanced", [1.0, 2.0, 0.5, 1e-5]],
    "train.ema": {"choices": [None, 0.99], "when": {"train.optimizer": ["sgd"]}},
    "train.optimizer": ["adamw", "sgd"],
    "train.channels_last": [True, False],
    "model.encoder": ["resnet18", "tu-mobilenetv3_small_100", "timm-efficientnet-b0"],
    "model.encoder_weights": [None, "imagenet"],
}


def searched(space: Space, num_trials: int = 3) -> Study:
    """Return a study of random trials, of which the last one is the best."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="deep", direction="maximize", sampler=RandomSampler(1))
    for place in range(num_trials):
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, place / 10)
    return study


def queued(file: Path, changes: list[str]) -> Params:
    """Return the params with which DVC would train: `dvc exp run -S` takes these two steps."""
    (one,) = get_hydra_sweeps({file.name: changes})
    apply_overrides(file, list(one[file.name]))
    return read_params(file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(COMPLETE, encoding="utf-8")
    return path


@pytest.fixture
def space(file: Path) -> Space:
    entries = {key: {"choices": one} if isinstance(one, list) else one for key, one in SPACE.items()}
    return read_space(read_params(file).override({"search.space": entries}))


def test_the_best_params_can_be_merged(file: Path, space: Space, tmp_path: Path) -> None:
    study, before = searched(space), read_params(file)
    for best in best_trials(study):
        path = tmp_path / "outputs" / "best_params.yaml"
        write_best_params(path, study, best, space)
        values = space.overrides(best.params)
        piece = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        leaves = {f"{section}.{key}": value for section, keys in piece.items() for key, value in keys.items()}
        assert leaves == values
        file.write_text(COMPLETE, encoding="utf-8")
        write_values(file, values)
        assert read_params(file) == before.override(leaves) == before.override(values)
        assert [one.name for one in path.parent.iterdir()] == ["best_params.yaml"]


def test_a_folder_is_emptied_for_another_study_of_that_name(tmp_path: Path) -> None:
    folder, checkpoints = tmp_path / "outputs", tmp_path / "checkpoints"

    def left_of(study: Study) -> list[str]:
        claim_folder(folder, checkpoints, study)
        left = sorted(one.name for one in (*folder.glob("trial*"), *checkpoints.glob("*")))
        for one in (folder / f"trial of {study.user_attrs[STUDY_ID]}", checkpoints / "trial"):
            one.mkdir(parents=True, exist_ok=True)
        return left

    first, second = (optuna.create_study() for _ in range(2))
    first.set_user_attr(STUDY_ID, "1")
    second.set_user_attr(STUDY_ID, "2")
    assert left_of(first) == []
    assert left_of(first) == ["trial", "trial of 1"]
    assert left_of(second) == []
    assert left_of(first) == []


def test_the_best_params_say_where_they_come_from(space: Space, tmp_path: Path) -> None:
    study = searched(space, 3)
    write_best_params(tmp_path / "best.yaml", study, best_trials(study)[0], space)
    first, second, *rest = (tmp_path / "best.yaml").read_text(encoding="utf-8").splitlines()
    assert first == "# Study deep, trial 2 of 3: validation mean IoU 0.2000."
    assert second.startswith("# `stackseg search --trials N --resume --apply`")
    assert not any(one.startswith("#") for one in rest)


def test_of_several_objectives_the_mean_iou_is_told(tmp_path: Path) -> None:
    entries = {"train.optimizer": {"choices": ["adamw", "sgd"]}}
    many = {"search.objectives": ["parameters", "mean_iou"], "search.pruner.name": "none"}
    space = read_space(Params().override({"search.space": entries, **many}))
    study = optuna.create_study(study_name="wide", directions=["minimize", "maximize"])
    trial = study.ask()
    space.suggest(trial)
    study.tell(trial, [1e6, 0.75])
    write_best_params(tmp_path / "best.yaml", study, best_trials(study)[0], space)
    assert "trial 0 of 1: validation mean IoU 0.7500." in (tmp_path / "best.yaml").read_text(encoding="utf-8")


def test_a_key_within_a_mapping(file: Path, tmp_path: Path) -> None:
    space = read_space(read_params(file).override({"search.space": {"train.loss.dice": {"low": 0.5, "high": 2.0}}}))
    study = searched(space, 1)
    write_best_params(tmp_path / "best.yaml", study, study.trials[0], space)
    values = space.overrides(study.trials[0].params)
    piece = YAML(typ="safe").load((tmp_path / "best.yaml").read_text(encoding="utf-8"))
    assert piece == {"train": {"loss": {"dice": values["train.loss.dice"]}}}


class TestDvc:
    def test_experiments_train_with_what_the_trial_had(self, file: Path, space: Space) -> None:
        before = read_params(file)
        for one in searched(space).trials:
            values = space.overrides(one.params)
            file.write_text(COMPLETE, encoding="utf-8")
            assert queued(file, dvc_changes(values)) == before.override(values)

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"train.loss": {"dice": 2.0, "focal": 0.5}},
            {"train.loss": {"lovasz": 1.0}},
            {"train.loss.dice": 1e-05},
            {"train.ema": None, "train.clip_norm": 3, "train.compile": True},
            {"train.class_weights": [1.0, 2, 1e-05, 3.5], "train.lr": 1e-07},
            {"model.encoder": "tu-eva02_base_patch14_448.mim_in22k_ft_in1k", "model.encoder_weights": "imagenet"},
        ],
        ids=lambda one: "-".join(one),
    )
    def test_values_of_every_kind(self, file: Path, values: dict[str, Any]) -> None:
        before = read_params(file)
        assert queued(file, dvc_changes(values)) == before.override(values)

    @pytest.mark.parametrize("name", ["a,b c.json", "it's.json", "[a=b].json", "null"])
    def test_odd_words(self, file: Path, name: str) -> None:
        before = read_params(file)
        values = {"augment.preset": "file", "augment.file": name}
        assert queued(file, dvc_changes(values)) == before.override(values)

    @pytest.mark.parametrize(
        "values",
        [{"train.lr": 0.01}, {"model.encoder": "resnet34"}, {"train.loss": {"focal": 1.0}}],
        ids=lambda one: next(iter(one)),
    )
    def test_a_file_that_leaves_keys_out(self, file: Path, values: dict[str, Any]) -> None:
        file.write_text("train: {epochs: 3}\n", encoding="utf-8")
        before = read_params(file)
        assert queued(file, dvc_changes(values)) == before.override(values)

    def test_a_file_that_has_changed_since(self, file: Path, space: Space, tmp_path: Path) -> None:
        """What --apply wrote, a condition that does not hold and a loss with fewer parts make no difference."""
        study, before = searched(space), read_params(file)
        trials = study.trials
        for one in trials:
            write_values(file, space.overrides(trials[-1].params))
            write_queue(tmp_path / "queue.sh", study, [one], space)
            (line,) = [text for text in (tmp_path / "queue.sh").read_text().splitlines() if text.startswith("dvc ")]
            changes = [word for word in shlex.split(line)[6:] if word != "-S"]
            assert queued(file, changes) == before.override(space.overrides(one.params))
            file.write_text(COMPLETE, encoding="utf-8")


class TestQueue:
    def test_each_line_is_one_experiment(self, file: Path, space: Space, tmp_path: Path) -> None:
        study = searched(space)
        best = best_trials(study)[:3]
        path = tmp_path / "search" / "deep" / "queue.sh"
        write_queue(path, study, best, space)
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        assert head == "#!/bin/sh"
        commands = [shlex.split(line, comments=True) for line in lines]
        experiments = [one for one in commands if one and one[0] == "dvc"]
        assert len(experiments) == 3
        before = read_params(file)
        for words, trial in zip(experiments, best, strict=True):
            assert words[:6] == ["dvc", "exp", "run", "--queue", "--name", f"{study.study_name}-trial-{trial.number}"]
            assert set(words[6::2]) == {"-S"}
            file.write_text(COMPLETE, encoding="utf-8")
            assert queued(file, words[7::2]) == before.override(space.overrides(trial.params))

    def test_a_shell_reads_the_same_words_and_stops_at_the_first_failure(self, space: Space, tmp_path: Path) -> None:
        study = searched(space)
        write_queue(tmp_path / "queue.sh", study, best_trials(study)[:3], space)
        dvc = tmp_path / "bin" / "dvc"
        dvc.parent.mkdir()
        environment = {**os.environ, "PATH": f"{dvc.parent}:{os.environ['PATH']}"}

        def said(status: int) -> list[str]:
            dvc.write_text(f"#!/bin/sh\nprintf '%s\\n' dvc \"$@\"\nexit {status}\n", encoding="utf-8")
            dvc.chmod(0o755)
            run = ["sh", str(tmp_path / "queue.sh")]
            done = subprocess.run(run, env=environment, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (status, "")
            return done.stdout.splitlines()

        lines = (tmp_path / "queue.sh").read_text(encoding="utf-8").splitlines()
        words = [shlex.split(one) for one in lines if one.startswith("dvc ")]
        assert said(0) == [word for line in words for word in line]
        assert said(3) == words[0]

    def test_a_trial_that_changes_nothing(self, tmp_path: Path) -> None:
        entry = {"choices": [0.9, None], "when": {"train.optimizer": ["sgd"]}}
        space = read_space(Params().override({"search.space": {"train.ema": entry}}))
        study = searched(space, 1)
        write_queue(tmp_path / "queue.sh", study, study.trials, space)
        last = (tmp_path / "queue.sh").read_text(encoding="utf-8").splitlines()[-1]
        assert last == f"dvc exp run --queue --name {study.study_name}-trial-0 -S ++train.ema=null"
        write_best_params(tmp_path / "best.yaml", study, study.trials[0], space)
        assert YAML(typ="safe").load((tmp_path / "best.yaml").read_text(encoding="utf-8")) == {}
