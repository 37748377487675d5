"""A training that begins with the weights of another model: what is loaded, recorded, and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import stackseg.training.train as training
from stackseg.errors import ModelError, ParamsError
from stackseg.model.bundle import WEIGHTS_FILE, SeenPlanes, load_bundle
from stackseg.model.network import build_network
from stackseg.registry.gate import Contender, unseen_planes
from stackseg.training.launch import launch
from stackseg.training.parent import Parent, check_parent, read_parent
from stackseg.training.train import Machine, TrainingResult
from tiny_projects import CLASSES, Project, make_tiny_project, tiny_stack, write_specimen
from touching_discs import make_disc_project

INIT = {"model.init": "models:/rock@champion"}
HOLES = {"validation": ["holes/4"], "test": ["holes/9"], "unused": []}


@pytest.fixture
def parent(trained: tuple[Project, TrainingResult]) -> Parent:
    """The model of the shared stack, as one that a registry knows."""
    return read_parent(trained[0].folder / "model", INIT["model.init"], "3")


@pytest.fixture(scope="module")
def _other_stack(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_tiny_project(tmp_path_factory.mktemp("clay"), INIT, seed=5)


@pytest.fixture
def child(_other_stack: Project, tmp_path: Path) -> Project:
    """A project of another stack, which begins with that model; its folder is the test's own."""
    return _other_stack.at(tmp_path / "child")


def told(parent: Parent, project: Project, **options: Any) -> str:
    with pytest.raises((ModelError, ParamsError)) as caught:
        check_parent(parent, project.params, project.catalog, **options)
    assert "\n" not in caught.value.sentence()
    return caught.value.sentence()


def test_the_first_step_starts_from_the_parent_s_weights(child: Project, parent: Parent) -> None:
    # steps too small to move a weight, so that the bundle holds those it began with; normalisation keeps on counting
    still = {"train.epochs": 1, "train.optimizer": "sgd", "train.lr": 1e-12, "train.weight_decay": 0.0}
    result = child.having(still).train(parent=parent)
    kept = load_file(child.folder / "model" / WEIGHTS_FILE)
    learnt = dict(build_network(result.spec.inference.network, encoder_weights=None).named_parameters())
    assert len(learnt) > 20
    for name in learnt:
        torch.testing.assert_close(kept[name], parent.weights[name], rtol=0, atol=1e-9)


def test_a_child_says_whose_it_is_and_has_seen_what_its_parents_have(child: Project, parent: Parent) -> None:
    made = child.having({"train.epochs": 1})
    born = made.train("born", parent=parent).spec
    assert born.lineage.parent is not None
    assert born.lineage.parent.model_dump() == {
        "reference": "models:/rock@champion",
        "version": "3",
        "digest": parent.spec.digest,
    }
    assert born.lineage.params["model"]["init"] == "models:/rock@champion"
    own = {one: [plane.image_sha256 for _, plane in made.catalog.planes(one)] for one in ("training", "validation")}
    assert born.seen.training == (*own["training"], *parent.spec.seen.training)
    assert born.seen.validation == (*own["validation"], *parent.spec.seen.validation)
    again = replace(made, params=made.params.override({"model.init": "born"}))
    grandchild = again.train("grandchild", parent=read_parent(made.folder / "born", "born")).spec
    assert grandchild.seen == born.seen  # each plane once
    assert str(grandchild.lineage.parent) == "born"
    assert load_bundle(made.folder / "grandchild").spec == grandchild


def test_the_gate_leaves_out_what_the_parent_saw_of_another_specimen(
    child: Project, parent: Parent, shared_project: Project
) -> None:
    child.having({"train.epochs": 1}).train(parent=parent)
    contender = Contender("2", load_bundle(child.folder / "model"), 0)
    resplit = shared_project.having({"split.method": "random", "split.test": 0.8, "split.validation": 0.1})
    test = resplit.catalog.planes("test")
    chosen, num_seen = unseen_planes(resplit.catalog, [contender])
    new_to_parent = [ref for ref, _ in shared_project.catalog.planes("test")]
    assert chosen == [ref for ref, _ in test if ref in new_to_parent] != []
    assert num_seen == len(test) - len(chosen) > 0


def test_another_parent_is_another_training(child: Project, parent: Parent) -> None:
    fabric = launch(Machine("cpu"), child.params.train)
    other = replace(parent, record=parent.record.model_copy(update={"digest": "0" * 64}))
    keys = [training._key(child.params, child.catalog, fabric, one) for one in (parent, other, parent)]
    assert keys[0] == keys[2] != keys[1]


def test_an_interrupted_training_with_a_parent_goes_on(
    child: Project, parent: Parent, follower: Any, stopped: type[Exception]
) -> None:
    whole = child.train("whole", parent=parent)
    with pytest.raises(stopped):
        child.train("broken", parent=parent, callbacks=(follower(stop_after_epoch=1),))
    follows = follower()
    again = child.train("broken", parent=parent, callbacks=(follows,))
    assert follows.starts[0].first_epoch == 2
    assert follows.starts[0].parent == parent.record
    assert again.spec.digest == whole.spec.digest


OTHER_MAKE: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"model.architecture": "unet"}, "model.architecture is Unet; expected Linknet, as models:/rock"),
    "encoder": ({"model.encoder": "resnet18"}, "model.encoder is resnet18; expected tu-test_resnet, as "),
    "context": ({"model.context_slices": 1}, "model.context_slices is 1; expected 0, as "),
    "order of classes": (
        {"data.classes": [CLASSES[1], CLASSES[0], CLASSES[2]]},
        "data.classes is grain, void, ore; expected void, grain, ore, as ",
    ),
    "names of classes": (
        {"data.classes": [*CLASSES[:2], CLASSES[2] | {"name": "rare"}]},
        "data.classes is void, grain, rare; expected void, grain, ore, as ",
    ),
}


@pytest.mark.parametrize(("settings", "words"), OTHER_MAKE.values(), ids=OTHER_MAKE)
def test_a_parent_of_another_make_is_refused(
    child: Project, parent: Parent, settings: dict[str, Any], words: str
) -> None:
    found = told(parent, child.having(settings))
    assert found.startswith(f"model.init: {words}")
    assert "models:/rock@champion (version 3)" in found


def test_a_parent_of_other_channels_or_of_objects_is_refused(parent: Parent, tmp_path: Path) -> None:
    coloured = make_tiny_project(tmp_path / "coloured", INIT, channels=3)
    assert "the number of image channels is 3; expected 1, as " in told(parent, coloured)
    assert "data.instances is True; expected False, as " in told(parent, make_disc_project(tmp_path / "discs", INIT))


def test_other_intensities_raw_values_and_dropout_are_no_other_make(child: Project, parent: Parent) -> None:
    coded = [one | {"raw": [one["raw"], 90 + place]} for place, one in enumerate(CLASSES)]
    settings = {"intensity.scope": "plane", "inference.tile": 96, "data.classes": coded, "split.method": "random"}
    made = child.having(settings)
    check_parent(parent, made.params, made.catalog)


def planes_of(project: Project, part: Any) -> list[str]:
    return [str(ref) for ref, _ in project.catalog.planes(part)]


def test_planes_that_the_parent_saw_are_no_measure_of_its_child(parent: Parent, shared_project: Project) -> None:
    again = shared_project.having(INIT)
    check_parent(parent, again.params, again.catalog)  # by the same split

    training, validation, test = (planes_of(again, one) for one in ("training", "validation", "test"))
    cases = (
        ({"validation": validation, "test": [training[0], *test]}, f"1 of {len(test) + 1} test planes"),
        ({"validation": test, "test": validation}, f"{len(validation)} of {len(validation)} test planes"),
        (
            {"validation": training[:2], "test": [training[3], *test]},
            f"1 of {len(test) + 1} test planes and 2 of 2 validation planes",
        ),
    )
    for explicit, words in cases:
        resplit = again.having({"split.method": "explicit", "split.explicit": {"unused": []} | explicit})
        found = told(parent, resplit)
        assert f"models:/rock@champion (version 3) has seen {words}; expected " in found
        with pytest.raises(ParamsError, match=r"version 3\) has seen"):
            resplit.train(parent=parent)
    # what the parent was chosen by may choose the child, and what it was trained on may train it
    kept = {"split.method": "explicit", "split.explicit": {"unused": [], "validation": validation, "test": test}}
    check_parent(parent, again.having(kept).params, again.having(kept).catalog)


def test_constant_planes_are_known_to_nobody(parent: Parent, tmp_path: Path) -> None:
    images, masks_zyx = tiny_stack()
    images[[0, -1]] = 0
    write_specimen(tmp_path / "data" / "holes", images, masks_zyx)
    made = make_tiny_project(tmp_path, {**INIT, "split.method": "explicit", "split.explicit": HOLES}, seed=5)
    seen = SeenPlanes(
        training=tuple(one.image_sha256 for _, one in made.catalog.planes("training")), validation=(), gap=()
    )
    same = replace(parent, spec=parent.spec.model_copy(update={"seen": seen}))
    assert made.catalog.planes("test")[0][1].image_sha256 in seen.training
    check_parent(same, made.params, made.catalog)
    earlier = made.having({"split.explicit": HOLES | {"test": ["holes/8"]}})
    assert "has seen 1 of 1 test planes; expected " in told(same, earlier)


def test_folds_over_planes_that_the_parent_was_trained_on_are_refused(
    child: Project, parent: Parent, shared_project: Project
) -> None:
    check_parent(parent, child.params, child.catalog, folds=2)
    again = shared_project.having(INIT)
    assert " validation planes of fold 0; expected " in told(parent, again, folds=2)


def test_params_and_parent_have_to_agree(child: Project, parent: Parent, shared_project: Project) -> None:
    with pytest.raises(ParamsError, match=r"it is models:/rock@champion, and the weights .* are those of None"):
        child.train()
    with pytest.raises(ParamsError, match=r"it is None, and the weights .* are those of models:/rock@champion"):
        check_parent(parent, shared_project.params, shared_project.catalog)
