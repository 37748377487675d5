"""Checkpoints: found by an equal training only, written whole, read without unpickling anything but values."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from stackseg.errors import MachineError, ModelError
from stackseg.training.checkpoints import Checkpoints, checkpoint_key

STATE = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)},
    "history": [{"epoch": 0, "loss": 0.25, "iou": None, "best": True}],
    "best_score": float("-inf"),
}


def _save_last(kept: Checkpoints, state: dict[str, Any]) -> None:
    kept.save_last_meanwhile(state)
    kept.finish()


def _last_file(kept: Checkpoints) -> Path:
    return max(kept.folder.glob("last-*.pt"))


def test_a_state_comes_back(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "checkpoints", "key")
    assert kept.load_last() is None
    assert kept.load_best() is None
    _save_last(kept, STATE)
    kept.save_best({"other": 1})
    kept.save_best({"other": 2})
    found = Checkpoints(tmp_path / "checkpoints", "key").load_last()
    assert found is not None
    assert torch.equal(found["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index, call-overload]
    assert (found["history"], found["best_score"]) == (STATE["history"], STATE["best_score"])
    assert kept.load_best() == {"other": 2}
    assert Checkpoints(tmp_path / "checkpoints", "other").load_last() is None


def test_the_newest_state_is_the_last_and_one_more_stays_to_be_written_over(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    for epoch in range(12):
        # states of other sizes: nothing of a longer one may be left behind a shorter one
        state = {"epoch": epoch, "weights": torch.full((1000 * (1 + (epoch * 5) % 7),), float(epoch))}
        _save_last(kept, state)
        # a process that starts now finds this one
        found = Checkpoints(tmp_path, "key").load_last()
        assert found is not None
        assert found["epoch"] == epoch
        assert torch.equal(found["weights"], state["weights"])
        assert len(list(kept.folder.iterdir())) <= 2


def test_a_write_that_was_killed_leaves_the_state_before_it(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    for epoch in range(3):
        _save_last(kept, {"epoch": epoch})
    # what a kill leaves: the older file renamed and half written over
    oldest = min(kept.folder.glob("last-*.pt"))
    spare = oldest.rename(kept.folder / ".last.spare")
    spare.write_bytes(spare.read_bytes()[:50] + b"torn")
    again = Checkpoints(tmp_path, "key")
    assert again.load_last() == {"epoch": 2}
    _save_last(again, {"epoch": 3})
    assert Checkpoints(tmp_path, "key").load_last() == {"epoch": 3}


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, form: str) -> None:
    kept = Checkpoints(tmp_path, "key")
    _save_last(kept, {})
    mark, path = tmp_path / "executed", _last_file(kept)
    if form == "torch":
        torch.save({"weights": Harmful(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Harmful(mark), 2))
    with pytest.raises(ModelError, match="damaged checkpoint") as caught:
        kept.load_last()
    assert not mark.exists()
    assert "\n" not in caught.value.sentence()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"garbage"),
    "a zip's head": lambda path: path.write_bytes(b"PK\x03\x04"),
    "a pickle's head": lambda path: path.write_bytes(b"\x80\x02"),
    "a pickle cut short": lambda path: path.write_bytes(pickle.dumps({"a": [1, 2, 3]}, 2)[:7]),
    "an odd pickle": lambda path: path.write_bytes(b"\x80\x02h\x07."),
    "cut": _cut,
    "a list": lambda path: torch.save([1, 2], path),
    "a folder": _folder,
    "a dangling link": _dangling_link,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("which", ["last", "best"])
def test_damaged_checkpoints_are_named_and_set_aside(
    tmp_path: Path, damage: Callable[[Path], object], which: str
) -> None:
    kept = Checkpoints(tmp_path, "key")
    _save_last(kept, STATE)
    kept.save_best(STATE)
    path = _last_file(kept) if which == "last" else kept.folder / "best.pt"
    damage(path)
    with pytest.raises(ModelError, match=f"damaged checkpoint .*Remove {kept.folder} to train") as caught:
        kept.load_last() if which == "last" else kept.load_best()
    assert "\n" not in caught.value.sentence()
    (tmp_path / "key.damaged").mkdir()  # of another time
    assert kept.set_aside_damaged() == tmp_path / "key.damaged"
    assert os.path.lexists(tmp_path / "key.damaged" / path.name)
    assert kept.load_last() is None
    assert kept.load_best() is None


def test_what_can_be_read_stays(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    assert kept.set_aside_damaged() is None
    _save_last(kept, STATE)
    kept.save_best(STATE)
    (kept.folder / "last-x.pt").write_bytes(b"none of ours")
    assert kept.set_aside_damaged() is None
    _save_last(kept, STATE)
    assert kept.load_last() is not None


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
    _save_last(kept, {"epoch": 1})
    with _largest_file(100_000), pytest.raises(MachineError, match=r"could not be written whole.*Free some space"):
        _save_last(kept, {"epoch": 2, "weights": torch.zeros(100_000)})
    assert kept.load_last() == {"epoch": 1}
    assert [one.name for one in kept.folder.iterdir()] == ["last-000001.pt"]


def test_a_state_written_meanwhile_is_the_one_that_was_given(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    weights = torch.zeros(1_000_000)
    kept.save_last_meanwhile({"weights": weights})
    weights += 1
    kept.finish()
    found = kept.load_last()
    assert found is not None
    assert not found["weights"].any()
    kept.save_last_meanwhile({"weights": weights})
    kept.finish()
    found = kept.load_last()
    assert found is not None
    assert found["weights"].all()


def test_a_full_disk_met_meanwhile_is_said_at_the_end(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    _save_last(kept, {"epoch": 1})
    with _largest_file(100_000):
        kept.save_last_meanwhile({"epoch": 2, "weights": torch.zeros(100_000)})
        with pytest.raises(MachineError, match=r"could not be written whole.*Free some space"):
            kept.finish()
    assert kept.load_last() == {"epoch": 1}


def test_keys_are_of_values_not_of_their_order() -> None:
    assert checkpoint_key({"a": 1, "b": [1.5, None]}, "x") == checkpoint_key({"b": [1.5, None], "a": 1}, "x")
    parts: list[tuple[Any, ...]] = [({"a": 1}, "x"), ({"a": 2}, "x"), ({"a": 1}, "y"), ({"a": 1},), ({"a": "1"}, "x")]
    assert len({checkpoint_key(*one) for one in parts}) == len(parts)


def test_a_state_for_which_there_is_no_memory_is_not_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path, "key")
    kept.save_last_meanwhile(STATE)
    kept.finish()

    def no_memory(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    for name, call in (("load", kept.set_aside_damaged), ("save", lambda: kept.save_best({}))):
        with monkeypatch.context() as patched:
            patched.setattr(torch, name, no_memory)
            with pytest.raises(RuntimeError, match="allocate"):
                call()
    assert kept.load_last() is not None
