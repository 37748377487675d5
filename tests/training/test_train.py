"""train(): reproducible, resumable, honest about what it cannot do, and scored by the one inference path."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import stackseg.training.train as training
from stackseg.catalog.build import build_catalog
from stackseg.dataset.specimens import find_specimens
from stackseg.errors import MachineError, ModelError, ParamsError, StacksegError
from stackseg.evaluation.evaluate import evaluate
from stackseg.model.bundle import WEIGHTS_FILE, Segmenter, load_bundle, prepare_network
from stackseg.model.code_digest import code_digest
from stackseg.model.devices import has_bf16
from stackseg.model.network import build_network
from stackseg.model.segment import SegmentedPlane, segment
from stackseg.training.checkpoints import remove_checkpoints
from stackseg.training.launch import launch
from stackseg.training.train import Callback, EpochReport, Machine, TrainingResult, inference_spec, train
from tiny_projects import make_tiny_project

RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one cycle, rare validation": (
        {"train.schedule": "one_cycle", "train.validate_every": 2, "train.optimizer": "adam"},
        {"stop_after_epoch": 1},
    ),
    "plateau, early stopping": (
        {"train.schedule": "plateau", "train.early_stopping": 2, "train.epochs": 8, "train.lr": 0.03},
        {"stop_after_epoch": 1},
    ),
    "cosine, moving average, in mid-epoch": (
        {"train.schedule": "cosine", "train.ema": 0.8},
        {"stop_at_step": (2, 1)},
    ),
    "constant, dropout, momentum": (
        {
            "train.schedule": "constant",
            "model.architecture": "PSPNet",
            "model.decoder_dropout": 0.5,
            "train.optimizer": "sgd",
        },
        {"stop_after_epoch": 1},
    ),
}


def without_times(history: tuple[EpochReport, ...]) -> list[dict[str, Any]]:
    """Return a history without the times."""
    return [
        {key: value for key, value in asdict(one).items() if key not in ("seconds", "patches_per_second")}
        for one in history
    ]


def names_in(folder: Path) -> list[str]:
    """Return the names of all that a folder holds."""
    return sorted(one.name for one in folder.iterdir())


def test_equal_seeds_give_equal_bundles_and_another_seed_another(
    tiny: Any, trained: tuple[Any, TrainingResult]
) -> None:
    project, first = trained
    again = tiny.train("again")
    other = tiny.having({"seed": 8, "train.epochs": 1}).train("other")
    assert first.spec.digest == again.spec.digest
    assert without_times(first.history) == without_times(again.history)
    assert other.spec.weights_sha256 != first.spec.weights_sha256
    first_file, again_file = (folder / WEIGHTS_FILE for folder in (project.folder / "model", tiny.folder / "again"))
    assert first_file.read_bytes() == again_file.read_bytes()


@pytest.mark.parametrize(
    ("settings", "stop"),
    [
        pytest.param(*one, id=name, marks=() if "mid-epoch" in name else pytest.mark.slow)
        for name, one in RESUMED.items()
    ],
)
def test_a_stopped_training_goes_on_to_the_weights_of_an_unbroken_one(
    tiny: Any, follower: Any, stopped: type[Exception], settings: dict[str, Any], stop: dict[str, Any]
) -> None:
    made = tiny.having({"train.epochs": 4, **settings})
    unbroken = made.train("unbroken")
    broken = follower(**stop)
    with pytest.raises(stopped):
        made.train("resumed", callbacks=(broken,))
    assert not (made.folder / "resumed").exists()
    follows = follower()
    resumed = made.train("resumed", callbacks=(follows,))

    assert broken.starts[0].checkpoint_folder == follows.starts[0].checkpoint_folder
    assert follows.starts[0].first_epoch == 2
    assert without_times(follows.starts[0].history) == without_times(unbroken.history[:2])
    assert [one.epoch for one in follows.reports] == [one.epoch for one in unbroken.history[2:]]
    assert without_times(resumed.history) == without_times(unbroken.history)
    assert resumed.spec.weights_sha256 == unbroken.spec.weights_sha256
    assert resumed.spec.digest == unbroken.spec.digest
    assert names_in(made.folder) == ["checkpoints", "data", "resumed", "unbroken"]


@pytest.mark.slow
def test_workers_and_resuming_with_them_change_no_weights(tiny: Any, follower: Any, stopped: type[Exception]) -> None:
    # dropout draws from the same stream as torch's loaders would, if they were let
    made = tiny.having({"model.architecture": "PSPNet", "model.decoder_dropout": 0.5, "train.schedule": "cosine"})
    alone = made.train("alone")
    machine = Machine(device="cpu", num_workers=2)
    with pytest.raises(stopped):
        made.train("helped", machine=machine, callbacks=(follower(stop_after_epoch=1),))
    helped = made.train("helped", machine=machine)
    assert without_times(helped.history) == without_times(alone.history)
    assert helped.spec.digest == alone.spec.digest


def test_a_training_killed_before_its_bundle_was_written_leaves_the_former_one_and_then_only_writes_it(
    tiny: Any, trained: tuple[Any, TrainingResult], follower: Any, stopped: type[Exception]
) -> None:
    model = tiny.folder / "late"
    model.mkdir()
    (model / "bundle.json").write_text("the good old model")
    with pytest.raises(stopped):
        tiny.train("late", callbacks=(follower(stop_after_epoch=2),))
    assert names_in(model) == ["bundle.json"]
    assert (model / "bundle.json").read_text() == "the good old model"
    follows = follower()
    late = tiny.train("late", callbacks=(follows,))
    assert follows.reports == []
    assert late.spec.digest == trained[1].spec.digest


DIFFERENT: dict[str, dict[str, Any]] = {
    "seed": {"seed": 8},
    "model": {"model.architecture": "Unet"},
    "augmentation": {"augment.preset": "none"},
    "rate": {"train.lr": 0.002},
    "loss": {"train.loss": {"cross_entropy": 1.0}},
    "length": {"train.epochs": 4},
    "tile": {"inference.tile": 96},
    "split": {"split.gap": 1},
    "intensity": {"intensity.scope": "plane"},
}


def key_of(project: Any) -> str:
    """Return the name of the folder where a training looks for its checkpoints."""
    return training._key(project.params, project.catalog, launch(Machine("cpu"), project.params.train), None)


@pytest.mark.parametrize("settings", DIFFERENT.values(), ids=DIFFERENT)
def test_another_training_starts_anew(shared_project: Any, settings: dict[str, Any]) -> None:
    assert key_of(shared_project.having(settings)) != key_of(shared_project)


def test_what_training_does_not_read_does_not_start_it_anew(shared_project: Any) -> None:
    settings = {"evaluate.overlays": 9, "evaluate.confidence": 0.8, "project.model_name": "other"}
    assert key_of(shared_project.having(settings)) == key_of(shared_project)


def test_other_code_starts_anew(shared_project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(shared_project)
    monkeypatch.setattr(training, "code_digest", lambda: "of other code")
    assert key_of(shared_project) != before


def test_an_edited_augmentation_file_starts_anew(shared_project: Any, tmp_path: Path) -> None:
    path = tmp_path / "augment.json"
    A.save(A.Compose([A.HorizontalFlip(p=0.5)]), path)
    made = shared_project.having({"augment.preset": "file", "augment.file": str(path)})
    before = key_of(made)
    A.save(A.Compose([A.VerticalFlip(p=0.5)]), path)
    assert key_of(made) != before


def test_callbacks_hear_every_step_and_every_epoch_once_and_the_last_one_validates(tiny: Any, follower: Any) -> None:
    follows = follower()
    result = tiny.having({"train.validate_every": 50}).train(callbacks=(follows,))
    assert [one.validation_mean_iou is not None for one in result.history] == [False, False, True]
    (start,) = follows.starts
    assert (start.num_epochs, start.steps_per_epoch, start.first_epoch, start.history) == (3, 2, 0, ())
    assert (start.device, start.precision) == ("cpu", "fp32")
    network = build_network(load_bundle(tiny.folder / "model").inference.network, encoder_weights=None)
    assert start.num_parameters == sum(one.numel() for one in network.parameters())
    assert follows.steps == [(epoch, step) for epoch in range(3) for step in range(2)]
    assert tuple(follows.reports) == result.history


def test_early_stopping_counts_validations_without_gain(tiny: Any) -> None:
    settings = {"train.early_stopping": 2, "train.epochs": 30, "train.lr": 0.05, "train.schedule": "constant"}
    history = tiny.having({**settings, "train.patches_per_epoch": 4}).train().history
    scores = [one.validation_mean_iou for one in history]
    gains = [score > max([-1.0, *scores[:place]]) for place, score in enumerate(scores)]
    assert [one.best for one in history] == gains
    assert len(history) < 30
    assert gains[-3:] == [True, False, False]
    assert not any(not first and not second for first, second in itertools.pairwise(gains[:-1]))


def test_the_first_best_epoch_is_kept(tiny: Any) -> None:
    settings = {"train.epochs": 8, "train.validate_every": 2, "train.lr": 1.0, "train.schedule": "constant"}
    result = tiny.having(settings).train()
    validated = [one for one in result.history if one.validation_mean_iou is not None]
    assert [one.epoch for one in validated] == [1, 3, 5, 7]
    best = max(validated, key=lambda one: one.validation_mean_iou)
    kept = result.spec.validation
    assert (kept.epoch, kept.mean_iou, kept.iou, kept.pixel_accuracy) == (
        best.epoch,
        best.validation_mean_iou,
        best.validation_iou,
        best.validation_pixel_accuracy,
    )
    assert best.epoch < 7  # else this shows nothing


ONE_STEP: dict[str, dict[str, Any]] = {
    "every loss, balanced, adam": {
        "train.loss": {"cross_entropy": 1.0, "bce": 1.0, "dice": 0.5, "focal": 0.5, "lovasz": 2.0, "tversky": 1.0},
        "train.class_weights": "balanced",
        "train.optimizer": "adam",
    },
    "sgd, em, one step in all": {
        "train.optimizer": "sgd",
        "train.schedule": "one_cycle",
        "train.patches_per_epoch": 4,
        "augment.preset": "em",
    },
    "weights, micrograph, no clipping, default layout": {
        "train.class_weights": [1.0, 2.0, 0.5],
        "augment.preset": "micrograph",
        "train.clip_norm": None,
        "train.channels_last": False,
    },
}


@pytest.mark.parametrize("settings", ONE_STEP.values(), ids=ONE_STEP)
def test_every_loss_optimiser_and_weighting_trains(tiny: Any, settings: dict[str, Any]) -> None:
    made = tiny.having({"train.epochs": 1, **settings})
    untrained = build_network(inference_spec(made.params, made.catalog).network, encoder_weights=None).state_dict()
    result = made.train()
    kept = load_file(made.folder / "model" / WEIGHTS_FILE)
    assert math.isfinite(result.history[0].loss)
    assert 0 <= result.history[0].training_pixel_accuracy <= 1
    assert any(not torch.equal(untrained[name], kept[name]) for name in kept)


def test_pixels_to_be_ignored_neither_train_nor_score(make_project: Any, tmp_path: Path, stack_files: Any) -> None:
    tiny_stack, write_specimen = stack_files
    images, masks_zyx = tiny_stack()
    unknown_zyx = masks_zyx.copy()
    unknown_zyx[:, :, 20:] = 99
    # what lies under ignored pixels must not matter: here a class that is wrong
    write_specimen(tmp_path / "data" / "rock", images, unknown_zyx)
    made = make_project(tmp_path / "spare", {"data.ignore": 99})
    catalog = build_catalog(tmp_path / "data", made.params)
    result = train(
        made.params,
        catalog,
        data=tmp_path / "data",
        model=tmp_path / "model",
        checkpoints=tmp_path / "checkpoints",
        machine=Machine(device="cpu"),
    )
    assert result is not None
    assert all(math.isfinite(one.loss) for one in result.history)
    scored = evaluate(
        load_bundle(tmp_path / "model"), catalog, tmp_path / "data", made.params.evaluate, part="validation"
    )
    num_planes = len(catalog.planes("validation"))
    assert scored.scores.num_pixels == num_planes * 40 * 20
    assert result.spec.validation.mean_iou == scored.mean_iou


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grey": ({}, {}),
    "rgb with context": ({"model.context_slices": 1, "split.gap": 1}, {"channels": 3}),
    "rgb as grey": ({"data.colour": "grey"}, {"channels": 3}),
    "specimen scope, small planes": ({"intensity.scope": "specimen"}, {"shape_yx": (20, 27)}),
    "plane scope, context": (
        {"intensity.scope": "plane", "model.context_slices": 2, "split.gap": 2},
        {"num_planes": 14},
    ),
    "planes of many tiles, moving average": (
        {"inference.tile": 64, "inference.overlap": 16, "train.ema": 0.5},
        {"shape_yx": (75, 101)},
    ),
    "depthwise, default layout": (
        {"model.architecture": "FPN", "model.encoder": "tu-test_efficientnet", "train.channels_last": False},
        {},
    ),
    "automatic precision": ({"train.precision": "auto", "inference.precision": "auto"}, {}),
}


@pytest.mark.parametrize(("settings", "stack"), KINDS.values(), ids=KINDS)
def test_validation_evaluation_and_serving_give_the_same_masks(
    make_project: Any,
    tmp_path: Path,
    settings: dict[str, Any],
    stack: dict[str, Any],
    segment_in_training: Callable[[Any], None],
    segment_bytes: Callable[..., Any],
) -> None:
    project = make_project(tmp_path, {"train.epochs": 2, **settings}, **stack)
    seen: dict[int, Any] = {}

    def recording(*arguments: Any, **named: Any) -> Any:
        for plane in segment(*arguments, **named):
            assert isinstance(plane, SegmentedPlane)
            seen[plane.z] = plane.mask_yx
            yield plane

    segment_in_training(recording)
    # the weights of the second epoch are kept only if it is the better one: then its masks are the ones to compare
    validated: list[dict[int, Any]] = []

    class Keeper(Callback):
        def on_start(self, start: Any) -> None: ...
        def on_step(self, epoch: int, step: int, loss: Any) -> None: ...
        def on_epoch(self, report: EpochReport) -> None:
            validated.append(dict(seen))

    result = project.train(callbacks=(Keeper(),))
    kept = validated[result.spec.validation.epoch]
    assert sorted(kept) == [ref.z for ref, _ in project.catalog.planes("validation")]

    bundle = load_bundle(tmp_path / "model")
    served_zyx = segment_bytes((project.data / "rock" / "images.tif").read_bytes(), bundle)
    for z, mask_yx in kept.items():
        np.testing.assert_array_equal(served_zyx[z], mask_yx)
    scored = evaluate(bundle, project.catalog, project.data, project.params.evaluate, part="validation")
    kept_score = result.spec.validation
    assert scored.mean_iou == kept_score.mean_iou
    assert scored.scores.pixel_accuracy == kept_score.pixel_accuracy
    assert {one.name: one.iou for one in scored.scores.classes} == kept_score.iou
    assert scored.precision == kept_score.precision
    assert bundle.inference.network.in_channels == (
        (3 if stack.get("channels") == 3 and "data.colour" not in settings else 1)
        * (2 * settings.get("model.context_slices", 0) + 1)
    )


def test_the_bundle_says_what_it_was_trained_on(trained: tuple[Any, TrainingResult]) -> None:
    project, result = trained
    spec = result.spec
    assert spec.lineage.catalog_digest == project.catalog.digest()
    assert spec.lineage.data_md5 == project.catalog.data_md5
    assert spec.lineage.code_digest == code_digest()
    assert spec.lineage.params == project.params.model_dump(
        mode="json", include={"seed", "model", "augment", "train", "inference"}
    )
    parts = {
        part: tuple(plane.image_sha256 for _, plane in project.catalog.planes(part))
        for part in ("training", "validation", "gap", "test")
    }
    assert (spec.seen.training, spec.seen.validation, spec.seen.gap) == (
        parts["training"],
        parts["validation"],
        parts["gap"],
    )
    assert not set(parts["test"]) & {*spec.seen.training, *spec.seen.validation, *spec.seen.gap}
    assert spec.inference.voxel_size_zyx_um is None
    assert load_bundle(project.folder / "model").spec == spec


def test_the_test_part_is_not_read(trained: tuple[Any, TrainingResult], tmp_path: Path, stack_files: Any) -> None:
    project, first = trained
    tiny_stack, write_specimen = stack_files
    images, masks_zyx = tiny_stack()
    for ref, _ in project.catalog.planes("test"):
        images[ref.z] = 0
        masks_zyx[ref.z] = 0
    write_specimen(tmp_path / "data" / "rock", images, masks_zyx)
    again = replace(project, folder=tmp_path).train("again")
    assert again.spec.weights_sha256 == first.spec.weights_sha256
    assert without_times(again.history) == without_times(first.history)


def test_bf16_trains_where_the_hardware_has_it(tiny: Any, follower: Any) -> None:
    if not has_bf16(torch.device("cpu")):
        pytest.skip("this processor does not multiply bfloat16")
    follows = follower()
    settings = {"train.precision": "bf16", "inference.precision": "bf16"}
    result = tiny.having(settings).train(callbacks=(follows,))
    assert follows.starts[0].precision == "bf16"
    assert result.spec.validation.precision == "bf16"
    assert result.spec.weights_sha256 != tiny.train("fp32").spec.weights_sha256
    weights = load_file(tiny.folder / "model" / WEIGHTS_FILE)
    assert {one.dtype for one in weights.values()} == {torch.float32, torch.int64}
    # cast once on loading: to the same bits as autocast would in each pass
    loaded = load_bundle(tiny.folder / "model")
    assert torch.bfloat16 in {one.dtype for one in loaded.network.state_dict().values()}
    network = build_network(loaded.inference.network, encoder_weights=None)
    network.load_state_dict(weights)
    uncast = Segmenter(loaded.inference, prepare_network(network, loaded.inference, torch.device("cpu")))
    assert torch.bfloat16 not in {one.dtype for one in uncast.network.state_dict().values()}
    (specimen,) = find_specimens(tiny.data)
    for one, other in zip(
        segment(specimen, loaded, probabilities=True), segment(specimen, uncast, probabilities=True), strict=True
    ):
        np.testing.assert_array_equal(one.probabilities_cyx, other.probabilities_cyx)


def test_a_loss_that_is_no_number_ends_the_training_in_one_line(tiny: Any) -> None:
    settings = {
        "train.lr": 10.0,
        "train.optimizer": "sgd",
        "train.clip_norm": None,
        "train.schedule": "constant",
        "train.loss": {"bce": 1e30},
        "train.patches_per_epoch": 32,
    }
    with pytest.raises(ModelError, match=r"the loss is (nan|inf) in epoch \d+\. Lower train\.lr") as caught:
        tiny.having(settings).train()
    assert "\n" not in caught.value.sentence()
    assert not (tiny.folder / "model").exists()


IMPOSSIBLE: dict[str, tuple[dict[str, Any], Machine, type[StacksegError], str]] = {
    "batch": (
        {"train.batch_size": 3},
        Machine("cpu", num_processes=2),
        ParamsError,
        r"batch_size is 3; expected a multiple of the 2 pro",
    ),
    "fp16": ({"train.precision": "fp16"}, Machine("cpu"), MachineError, r"fp16 on a CPU"),
    "device": ({}, Machine("tpu"), MachineError, r"device 'tpu'"),
    "one GPU named, two processes": ({}, Machine("cuda:0", num_processes=2), MachineError, r"--device"),
    "dropout": ({"model.decoder_dropout": 0.2}, Machine("cpu"), ParamsError, r"decoder_dropout 0\.2 with Linknet"),
    "class weights": (
        {"train.class_weights": [1.0, 2.0]},
        Machine("cpu"),
        ParamsError,
        r"train\.class_weights: 2 class weights; expected 3, one per class",
    ),
    "batch of one": (
        {"model.architecture": "DeepLabV3", "train.batch_size": 1},
        Machine("cpu"),
        ModelError,
        r"cannot train on 1 image",
    ),
    "patches that the network cannot take": (
        {"model.architecture": "PAN"},
        Machine("cpu"),
        ModelError,
        r"PAN .*32 × 32",
    ),
    "planes that the network cannot take": (
        {"model.architecture": "PAN", "train.patch_size": 128},
        Machine("cpu"),
        ModelError,
        r"PAN .*64 × 64",
    ),
}


@pytest.mark.parametrize(("settings", "machine", "kind", "words"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_done_is_said_before_anything_starts(
    tiny: Any, follower: Any, settings: dict[str, Any], machine: Machine, kind: type[StacksegError], words: str
) -> None:
    follows = follower()
    with pytest.raises(kind, match=words) as caught:
        tiny.having(settings).train(machine=machine, callbacks=(follows,))
    assert "\n" not in caught.value.sentence()
    assert follows.steps == []


@pytest.mark.slow
def test_compiled_training_learns_and_scores_like_any(tiny: Any, compiler: None) -> None:
    made = tiny.having({"train.compile": True, "train.epochs": 1})
    compiled = made.train("compiled")
    plain = tiny.having({"train.epochs": 1}).train("plain")
    assert compiled.history[0].loss == pytest.approx(plain.history[0].loss, abs=1e-4)
    scored = evaluate(
        load_bundle(made.folder / "compiled"), made.catalog, made.data, made.params.evaluate, part="validation"
    )
    assert scored.mean_iou == compiled.spec.validation.mean_iou


TRAINING = """
import sys, time
from pathlib import Path
from tiny_projects import make_tiny_project
class Waits:
    def on_start(self, start): pass
    def on_step(self, *step): pass
    def on_validation(self, *validation): pass
    def on_epoch(self, report):
        print("trains", flush=True)
        time.sleep(600)
make_tiny_project(Path(sys.argv[1])).train(callbacks=(Waits(),))
"""


@pytest.mark.slow
def test_an_equal_training_is_refused_while_one_runs(tmp_path: Path, follower: Any) -> None:
    project = make_tiny_project(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", TRAINING, str(tmp_path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "trains\n"
        second = follower()
        with pytest.raises(MachineError, match=rf"a training of this project is running \(process {first.pid}\)"):
            project.train(callbacks=(second,))
        assert second.starts == []  # no run was opened or ended
        (folder,) = (one for one in project.checkpoints.iterdir() if one.is_dir())
        remove_checkpoints(folder)
        assert folder.is_dir()
        first.kill()
    project.train(callbacks=(second,))
    assert len(second.starts) == 1


def test_a_class_that_nobody_annotated_is_learnt_as_part_of_the_first(
    make_project: Any, tmp_path: Path, stack_files: Any
) -> None:
    tiny_stack, write_specimen = stack_files
    made = make_project(tmp_path / "spare", {"data.ignore": 99, "train.epochs": 1})
    weights = []
    for partial in ({}, {"b": ["ore"]}):
        data = tmp_path / f"data{len(partial)}"
        for seed, name in enumerate(("a", "b")):
            images, masks_zyx = tiny_stack(seed=seed)
            masks_zyx[masks_zyx == 7] = 7 if name == "a" or partial else 99
            write_specimen(data / name, images, masks_zyx)
        params = made.params.override({"data.partial": partial})
        catalog = build_catalog(data, params)
        model, checkpoints = tmp_path / f"model{len(partial)}", tmp_path / f"checkpoints{len(partial)}"
        result = train(params, catalog, data=data, model=model, checkpoints=checkpoints, machine=Machine(device="cpu"))
        assert result is not None
        assert math.isfinite(result.history[0].loss)
        bundle = load_bundle(model)
        weights.append(torch.cat([one.flatten() for one in bundle.network.state_dict().values()]))
        # what validation says is what evaluation says
        scored = evaluate(bundle, catalog, data, params.evaluate, part="validation")
        assert result.spec.validation.mean_iou == scored.mean_iou
    # the labels are the same, and the first class takes in what nobody annotated
    assert not torch.equal(*weights)
