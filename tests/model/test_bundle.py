"""A bundle: what was saved is what is loaded, or an error says so."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import stackseg.model.ensemble_network as ensemble_network
from stackseg.dataset.specimens import find_specimens
from stackseg.errors import MachineError, ModelError
from stackseg.model.bundle import (
    FORMAT,
    SPEC_FILE,
    WEIGHTS_FILE,
    Bundle,
    bundle_digest,
    load_bundle,
    read_spec,
    save_bundle,
    weights_digest,
)
from stackseg.model.segment import segment


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let files grow to this size only, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def model(trained: tuple[Any, Any], tmp_path: Path) -> Path:
    """A trained bundle of its own."""
    return Path(shutil.copytree(trained[0].folder / "model", tmp_path / "model"))


def saved_again(folder: Path, model: Path) -> Any:
    bundle = load_bundle(model)
    return save_bundle(
        folder,
        bundle.inference,
        load_file(model / WEIGHTS_FILE),
        validation=bundle.spec.validation,
        seen=bundle.spec.seen,
        profile=bundle.spec.profile,
        lineage=bundle.spec.lineage,
    )


def masks_of(bundle: Bundle, data: Path) -> Any:
    (specimen,) = find_specimens(data)
    return np.stack([plane.mask_yx for plane in segment(specimen, bundle)])


def edit(model: Path, change: Callable[[Any], None]) -> None:
    path = model / SPEC_FILE
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every plain value of a JSON tree."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, (*path, key))
    else:
        yield path


def test_what_is_saved_is_what_is_loaded(trained: tuple[Any, Any], tmp_path: Path) -> None:
    project, result = trained
    first = load_bundle(project.folder / "model")
    spec = saved_again(tmp_path / "copy", project.folder / "model")
    second = load_bundle(tmp_path / "copy")
    assert spec == second.spec == first.spec == result.spec
    assert first.digest == second.digest == spec.digest
    assert not second.network.training
    assert len(np.unique(masks_of(first, project.data))) > 1
    np.testing.assert_array_equal(masks_of(second, project.data), masks_of(first, project.data))
    for name in (WEIGHTS_FILE, SPEC_FILE):
        assert (tmp_path / "copy" / name).read_bytes() == (project.folder / "model" / name).read_bytes()
    assert sorted(one.name for one in (tmp_path / "copy").iterdir()) == [SPEC_FILE, WEIGHTS_FILE]


def test_nothing_is_unpickled(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any, **named: Any) -> None:
        raise AssertionError("something was unpickled")

    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, forbidden)
    assert load_bundle(model).digest


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_byte_changed_in_the_weights_is_noticed(
    trained: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("changed") / "model"
    shutil.copytree(trained[0].folder / "model", folder)
    path = folder / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    where = data.draw(st.one_of(st.integers(header_bytes, len(content) - 1), st.integers(0, header_bytes - 1)))
    if where < header_bytes and content[where : where + 1] == b" ":
        return  # padding behind the header's JSON
    content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_bundle(folder)
    assert "\n" not in caught.value.sentence()
    shutil.rmtree(folder)


def test_every_field_that_inference_reads_is_in_the_digest(trained: tuple[Any, Any], model: Path) -> None:
    tree = json.loads((model / SPEC_FILE).read_text())
    paths = list(leaves(tree["inference"]))
    assert {path[0] for path in paths} == set(tree["inference"])
    for path in paths:

        def change(tree: Any, path: tuple[Any, ...] = path) -> None:
            node = tree["inference"]
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = other_than(path, node[path[-1]])

        edit(model, change)
        with pytest.raises(ModelError, match=r"digest|not a bundle") as caught:
            load_bundle(model)
        assert "\n" not in caught.value.sentence(), path
        (model / SPEC_FILE).write_text(json.dumps(tree))
    assert load_bundle(model).digest == trained[1].spec.digest


def test_a_bundle_of_classes_says_nothing_of_objects_as_earlier_versions_did(trained: tuple[Any, Any]) -> None:
    inference = trained[1].spec.inference
    assert not inference.instances
    assert "instances" not in inference.model_dump(mode="json")
    assert "instances" not in inference.model_dump_json()


def test_whether_objects_are_told_apart_is_in_the_digest(trained_on_discs: tuple[Any, Any]) -> None:
    project, result = trained_on_discs
    inference = result.spec.inference
    assert (inference.instances, inference.network.num_classes, len(inference.classes)) == (True, 3, 2)
    assert load_bundle(project.folder / "model").digest == result.spec.digest
    other = inference.model_copy(update={"instances": False})
    assert bundle_digest(other, result.spec.weights_sha256) != result.spec.digest


CONTRADICTIONS: dict[str, Callable[[Any], object]] = {
    "more context than inputs": lambda inference: inference.update(context_slices=inference["context_slices"] + 1),
    "more channels than inputs": lambda inference: inference.update(num_channels=inference["num_channels"] + 1),
    "a class less": lambda inference: inference["classes"].pop(),
    "objects without an output for them": lambda inference: inference.update(instances=True),
    "objects of three classes": lambda inference: (
        inference["network"].update(num_classes=4) or inference.update(instances=True)
    ),
    "no statistics": lambda inference: inference["intensity"].update(statistics=None),
    "statistics of two channels": lambda inference: inference["intensity"]["statistics"].append(
        inference["intensity"]["statistics"][0]
    ),
    "an odd tile": lambda inference: inference.update(tile=inference["tile"] + 1),
    "a tile of nothing": lambda inference: inference.update(tile=0, overlap=0),
    "more overlap than half a tile": lambda inference: inference.update(overlap=inference["tile"]),
}


@pytest.mark.parametrize("contradict", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_bundle_that_contradicts_itself_is_refused_in_one_line(
    model: Path, contradict: Callable[[Any], object]
) -> None:
    def change(tree: Any) -> None:
        contradict(tree["inference"])
        text = json.dumps(tree["inference"], sort_keys=True, separators=(",", ":"))
        tree["digest"] = hashlib.sha256(f"{tree['weights_sha256']} {text}".encode()).hexdigest()

    edit(model, change)
    with pytest.raises(ModelError, match=r"not a bundle|inference\.tile") as caught:
        load_bundle(model)
    assert "\n" not in caught.value.sentence()


def other_than(path: tuple[Any, ...], value: Any) -> Any:
    """Return another valid value of the kind, where there is one."""
    choices = {"precision": "auto", "colour": "grey", "scope": "plane", "voxel_size_zyx_um": [1.0, 1.0, 1.0]}
    if path[-1] in choices:
        return choices[path[-1]]
    if isinstance(value, str):
        return value + "x"
    return value + 1 if isinstance(value, int) else value * 1.5 + 0.25


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("lineage", "git_commit", "0" * 40),
        ("lineage", "data_md5", "other"),
        ("lineage", "versions", {}),
        ("validation", "mean_iou", 0.5),
        ("seen", "training", []),
    ],
)
def test_lineage_and_scores_are_not_in_the_digest(
    trained: tuple[Any, Any], model: Path, section: str, field: str, value: Any
) -> None:
    edit(model, lambda tree: tree[section].update({field: value}))
    assert load_bundle(model).digest == trained[1].spec.digest


def test_the_digest_is_of_values_whatever_their_layout(model: Path) -> None:
    bundle = load_bundle(model)
    tensors = load_file(model / WEIGHTS_FILE)
    assert weights_digest(tensors) == bundle.spec.weights_sha256
    strided = {
        name: one.to(memory_format=torch.channels_last) if one.ndim == 4 else one for name, one in tensors.items()
    }
    assert weights_digest(dict(reversed(strided.items()))) == bundle.spec.weights_sha256
    name = next(iter(tensors))
    for changed in (
        {**tensors, name: tensors[name].double()},
        {**tensors, name: tensors[name].reshape(-1)},
        {**tensors, "more": torch.zeros(0)},
        {one if one != name else "renamed": tensor for one, tensor in tensors.items()},
    ):
        assert weights_digest(changed) != bundle.spec.weights_sha256
    assert bundle_digest(bundle.inference, "0" * 64) != bundle.digest


def test_weights_of_another_model_are_noticed(model: Path) -> None:
    tensors = load_file(model / WEIGHTS_FILE)
    name = next(name for name, one in tensors.items() if one.ndim == 4)
    tensors[name][0, 0, 0, 0] += 1e-6
    save_file(tensors, model / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"digest [0-9a-f]{12}; expected [0-9a-f]{12}"):
        load_bundle(model)


def test_a_newer_format_is_refused(model: Path) -> None:
    edit(model, lambda tree: tree.update(format=FORMAT + 1, invented="later"))
    with pytest.raises(ModelError, match=rf"format {FORMAT + 1}; expected {FORMAT}\. Update stackseg"):
        load_bundle(model)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b"{}", b'{"format": "one"}', b'{"format": null}', b'{"format": 1}', b"\xff\xfe\x00"],
)
def test_what_is_no_bundle_is_refused_in_one_line(model: Path, content: bytes) -> None:
    (model / SPEC_FILE).write_bytes(content)
    with pytest.raises(ModelError, match="not a bundle") as caught:
        read_spec(model)
    assert "\n" not in caught.value.sentence()
    assert str(model) in caught.value.sentence()


@pytest.mark.parametrize(("name", "words"), [(SPEC_FILE, "no bundle.json"), (WEIGHTS_FILE, "no weights")])
def test_missing_files_are_named(model: Path, name: str, words: str) -> None:
    (model / name).unlink()
    with pytest.raises(ModelError, match=words):
        load_bundle(model)


@pytest.mark.parametrize("num_bytes", [0, 5, 100, 100_000])
def test_truncated_weights_are_refused(model: Path, num_bytes: int) -> None:
    os.truncate(model / WEIGHTS_FILE, num_bytes)
    with pytest.raises(ModelError, match="damaged weights"):
        load_bundle(model)


def test_weights_that_other_versions_would_build_otherwise_are_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble_network, "build_network", lambda *_, **__: torch.nn.Conv2d(1, 3, 1))
    with pytest.raises(ModelError, match=r"segmentation-models-pytorch \d+\.\d+.* and timm \d"):
        load_bundle(model)


@pytest.mark.parametrize("limit", [300, 100_000])
def test_a_full_disk_leaves_the_former_model_in_place(trained: tuple[Any, Any], model: Path, limit: int) -> None:
    before = {one.name: one.read_bytes() for one in model.iterdir()}
    with largest_file(limit), pytest.raises(MachineError, match="could not be written") as caught:
        saved_again(model, model)
    assert "\n" not in caught.value.sentence()
    assert {one.name: one.read_bytes() for one in model.iterdir()} == before
    with largest_file(limit), pytest.raises(MachineError):
        saved_again(model.parent / "new", model)
    assert [one.name for one in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("step", ["json", "place"])
def test_a_bundle_is_put_in_place_whole_or_not_at_all(model: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    bundle = load_bundle(model)
    fresh = model.parent / "fresh"

    def fails(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    if step == "json":
        monkeypatch.setattr(Path, "write_text", fails)
    else:
        monkeypatch.setattr(os, "replace", fails)
    for folder in (model, fresh):
        with pytest.raises(OSError, match="No space left"):
            saved_again(folder, model)
    monkeypatch.undo()
    assert load_bundle(model).digest == bundle.digest
    assert not fresh.exists()
    # and the next attempt is not disturbed by what the last one left
    for folder in (model, fresh):
        saved_again(folder, model)
        assert load_bundle(folder).digest == bundle.digest
    assert sorted(one.name for one in model.parent.iterdir()) == ["fresh", "model"]
