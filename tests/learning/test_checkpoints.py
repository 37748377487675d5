"""Checkpoints: found by an equal training only, written whole, read without unpickling anything but values."""

from __future__ import annotations

import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from stackseg.errors import MachineError, ModelError
from stackseg.learning.checkpoints import BEST_FILE, LAST_FILE, Checkpoints, checkpoint_key
from stackseg.learning.code import NOT_TRAINING, ROOMS, code_digest, training_files

STATE = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)},
    "history": [{"epoch": 0, "loss": 0.25, "iou": None, "best": True}],
    "best_score": float("-inf"),
}


def test_a_state_comes_back(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "checkpoints", "key")
    assert kept.load(LAST_FILE) is None
    kept.save(LAST_FILE, STATE)
    kept.save(BEST_FILE, {"other": 1})
    kept.save(BEST_FILE, {"other": 2})
    found = Checkpoints(tmp_path / "checkpoints", "key").load(LAST_FILE)
    assert found is not None
    assert torch.equal(found["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index, call-overload]
    assert (found["history"], found["best_score"]) == (STATE["history"], STATE["best_score"])
    assert kept.load(BEST_FILE) == {"other": 2}
    assert Checkpoints(tmp_path / "checkpoints", "other").load(LAST_FILE) is None
    assert sorted(one.name for one in kept.folder.iterdir()) == [BEST_FILE, LAST_FILE]
    kept.remove()
    kept.remove()
    assert list((tmp_path / "checkpoints").iterdir()) == []


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, form: str) -> None:
    kept = Checkpoints(tmp_path, "key")
    kept.save(LAST_FILE, {})
    mark, path = tmp_path / "executed", kept.folder / LAST_FILE
    if form == "torch":
        torch.save({"weights": Harmful(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Harmful(mark), 2))
    with pytest.raises(ModelError, match="damaged checkpoint") as caught:
        kept.load(LAST_FILE)
    assert not mark.exists()
    assert "\n" not in caught.value.sentence()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"\x80\x02", None], ids=repr)
def test_a_damaged_checkpoint_says_what_to_remove(tmp_path: Path, content: bytes | None) -> None:
    kept = Checkpoints(tmp_path, "key")
    kept.save(LAST_FILE, STATE)
    path = kept.folder / LAST_FILE
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError, match=f"damaged checkpoint .*Remove {kept.folder} to train") as caught:
        kept.load(LAST_FILE)
    assert "\n" not in caught.value.sentence()


@contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    """Let no file grow larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint_in_place(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    kept.save(LAST_FILE, {"epoch": 1})
    with _largest_file(100_000), pytest.raises(MachineError, match=r"could not be written whole.*Free some space"):
        kept.save(LAST_FILE, {"epoch": 2, "weights": torch.zeros(100_000)})
    assert kept.load(LAST_FILE) == {"epoch": 1}
    assert [one.name for one in kept.folder.iterdir()] == [LAST_FILE]


def test_a_state_written_meanwhile_is_the_one_that_was_given(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    weights = torch.zeros(1_000_000)
    kept.save_meanwhile(LAST_FILE, {"weights": weights})
    weights += 1
    kept.finish()
    found = kept.load(LAST_FILE)
    assert found is not None
    assert not found["weights"].any()
    kept.save_meanwhile(LAST_FILE, {"weights": weights})
    kept.finish()
    found = kept.load(LAST_FILE)
    assert found is not None
    assert found["weights"].all()


def test_a_full_disk_met_meanwhile_is_said_at_the_end(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    kept.save(LAST_FILE, {"epoch": 1})
    with _largest_file(100_000):
        kept.save_meanwhile(LAST_FILE, {"epoch": 2, "weights": torch.zeros(100_000)})
        with pytest.raises(MachineError, match=r"could not be written whole.*Free some space"):
            kept.finish()
    assert kept.load(LAST_FILE) == {"epoch": 1}


def test_keys_are_of_values_not_of_their_order() -> None:
    assert checkpoint_key({"a": 1, "b": [1.5, None]}, "x") == checkpoint_key({"b": [1.5, None], "a": 1}, "x")
    parts: list[tuple[Any, ...]] = [({"a": 1}, "x"), ({"a": 2}, "x"), ({"a": 1}, "y"), ({"a": 1},), ({"a": "1"}, "x")]
    assert len({checkpoint_key(*one) for one in parts}) == len(parts)


def test_the_code_of_a_model_is_digested_file_by_file(monkeypatch: pytest.MonkeyPatch) -> None:
    files = training_files()
    names = {path.name for path in files}
    assert {"training.py", "learner.py", "losses.py", "catalog.py", "train.py", "errors.py"} <= names
    package = files[0].parent
    assert all((package / one).exists() for one in NOT_TRAINING), "a name in NOT_TRAINING is out of date"
    assert {path.relative_to(package).parts[0] for path in files} == {*ROOMS, "aside.py", "errors.py"}

    before = code_digest()
    assert before == code_digest()
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: real(self).replace(b"\n", b"\r\n"))
    assert code_digest() == before
    for changed in files[:3] + files[-3:]:
        monkeypatch.setattr(
            Path, "read_bytes", lambda self, changed=changed: real(self) + (b"# more" if self == changed else b"")
        )
        assert code_digest() != before
