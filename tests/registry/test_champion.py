"""Changes of champion: interrupted anywhere, made twice at once, or of vanished versions, they leave order behind."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from stackseg.errors import StoreError
from stackseg.registry.champion import INTENT_TAG, MAX_TAG, Move, carry_out, complete_interrupted, history, plan
from stackseg.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, find, registered
from stackseg.tracking.store import prepare_store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

NAME = "rock model"
WRITES = (
    "set_registered_model_tag",
    "delete_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("registry")
    prepare_store(root, experiment="rocks")
    client = MlflowClient()
    client.create_registered_model(NAME)
    for number in range(1, 5):
        client.create_model_version(NAME, f"s3://bucket/{number}", tags={"mean_iou": f"0.{number}"})
    client.set_registered_model_alias(NAME, CHALLENGER, "4")
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Iterator[Path]:
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(variable, None)
    copy = Path(shutil.copytree(template, tmp_path / "project"))
    prepare_store(copy, experiment="rocks")
    yield copy
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def move_to(root: Path, version: str, **changes: Any) -> Move:
    return carry_out(plan(registered(NAME), version, "promote", "a test", {}).model_copy(update=changes), lock(root))


def lock(root: Path) -> Path:
    return root / "mlflow.db.lock"


def aliases() -> dict[str, str]:
    return registered(NAME).aliases


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the n-th write to the registry be the last, before or after it is done."""

    def arm(number: int, *, after: bool) -> None:
        counted = itertools.count(1)

        def wrapped(real: Any) -> Any:
            def write(*arguments: Any, **named: Any) -> Any:
                fatal = next(counted) == number
                if fatal and not after:
                    raise Killed
                done = real(*arguments, **named)
                if fatal:
                    raise Killed
                return done

            return write

        for name in WRITES:
            monkeypatch.setattr(MlflowClient, name, wrapped(getattr(MlflowClient, name)))

    return arm


class TestMoves:
    def test_the_first_champion_has_no_previous(self, root: Path) -> None:
        move_to(root, "2")
        assert aliases() == {CHAMPION: "2", CHALLENGER: "4"}

    def test_forward_and_back_and_forward(self, root: Path) -> None:
        for version in ("2", "4"):
            move_to(root, version)
        assert aliases() == {CHAMPION: "4", PREVIOUS: "2"}  # no challenger is left
        move_to(root, aliases()[PREVIOUS])
        assert aliases() == {CHAMPION: "2", PREVIOUS: "4"}
        move_to(root, aliases()[PREVIOUS])
        assert aliases() == {CHAMPION: "4", PREVIOUS: "2"}
        assert [(one.from_version, one.to_version, one.outcome) for one in history(NAME)] == [
            (None, "2", "done"),
            ("2", "4", "done"),
            ("4", "2", "done"),
            ("2", "4", "done"),
        ]

    def test_the_history_keeps_who_when_why_and_the_figures(self, root: Path) -> None:
        figures = {"gain": [0.01, 0.05], "iou": {"clay": [0.7, 0.6]}}
        carry_out(plan(registered(NAME), "3", "force", "because [it] — is “so”", figures), lock(root))
        (kept,) = history(NAME)
        assert (kept.action, kept.why, kept.figures) == ("force", "because [it] — is “so”", figures)
        assert kept.who
        assert kept.host

    def test_what_a_tag_cannot_hold_is_left_out_and_the_move_is_made(self, root: Path) -> None:
        figures = {"iou": {f"class {number}": [0.123456789, 0.123456789] for number in range(400)}}
        carry_out(plan(registered(NAME), "3", "promote", "x" * 9000, figures), lock(root))
        assert aliases()[CHAMPION] == "3"
        tags = MlflowClient().get_registered_model(NAME).tags
        assert max(len(text) for text in tags.values()) <= MAX_TAG
        assert history(NAME)[0].to_version == "3"

    def test_a_version_is_found_by_alias_and_number_and_nothing_else(self, root: Path) -> None:
        known = registered(NAME)
        assert (find(known, "challenger"), find(known, "2")) == ("4", "2")
        for wanted in ("champion", "9", "latest", ""):
            with pytest.raises(StoreError, match=r"expected one of challenger, 4, 3, 2, 1"):
                find(known, wanted)
        with pytest.raises(StoreError, match=r"dvc repro.*stackseg register"):
            find(registered("unheard of"), "champion")

    def test_an_alias_that_nothing_has_yet_is_said_in_plain_words(self, root: Path) -> None:
        with pytest.raises(StoreError, match=r": no earlier champion; expected one of challenger"):
            find(registered(NAME), PREVIOUS)
        move_to(root, "4")
        with pytest.raises(StoreError, match="no version was registered since the last promotion"):
            find(registered(NAME), CHALLENGER)


class TestInterruptions:
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("number", range(1, 7))
    def test_a_kill_at_any_write_leaves_a_champion_and_is_mended(
        self, root: Path, kill_at: Any, number: int, after: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        move_to(root, "1")
        move_to(root, "2")
        with monkeypatch.context() as patched:
            kill_at(number, after=after)
            killed = False
            try:
                move_to(root, "4")
            except Killed:
                killed = True
            patched.undo()
        monkeypatch.undo()
        prepare_store(root, experiment="rocks")
        assert killed, "a move has six writes"
        assert aliases()[CHAMPION] in ("2", "4")
        mended = complete_interrupted(NAME, lock(root))
        begun = number > 1 or after
        if begun and not (number == 6 and after):
            assert mended is not None
            assert "interruption" in mended.outcome
        assert aliases() == (
            {CHAMPION: "4", PREVIOUS: "2"} if begun else {CHAMPION: "2", PREVIOUS: "1", CHALLENGER: "4"}
        )
        assert [one.to_version for one in history(NAME)] == (["1", "2", "4"] if begun else ["1", "2"])
        assert INTENT_TAG not in MlflowClient().get_registered_model(NAME).tags
        assert complete_interrupted(NAME, lock(root)) is None

    def test_the_next_move_mends_first_and_then_finds_another_champion(
        self, root: Path, kill_at: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        move_to(root, "1")
        stale = plan(registered(NAME), "3", "promote", "a test", {})
        kill_at(2, after=True)
        with pytest.raises(Killed):
            move_to(root, "2")
        monkeypatch.undo()
        prepare_store(root, experiment="rocks")
        with pytest.raises(StoreError, match=r"the champion is version 2 by now; expected version 1"):
            carry_out(stale, lock(root))
        assert aliases()[CHAMPION] == "2"

    def test_a_move_under_way_elsewhere_is_left_alone(self, root: Path) -> None:
        move_to(root, "1")
        foreign = plan(registered(NAME), "2", "promote", "elsewhere", {}).model_copy(update={"host": "another machine"})
        MlflowClient().set_registered_model_tag(NAME, INTENT_TAG, foreign.model_dump_json())
        with pytest.raises(StoreError, match=r"under way .*another machine"):
            complete_interrupted(NAME, lock(root))
        with pytest.raises(StoreError, match=r"under way .*another machine"):
            move_to(root, "3")
        assert aliases()[CHAMPION] == "1"
        old = foreign.model_copy(update={"when": foreign.when.replace(year=2020)})
        MlflowClient().set_registered_model_tag(NAME, INTENT_TAG, old.model_dump_json())
        assert complete_interrupted(NAME, lock(root)) is not None
        assert aliases()[CHAMPION] == "2"


class TestDeletedVersions:
    def test_a_version_deleted_before_the_move_leaves_the_champion(self, root: Path) -> None:
        move_to(root, "1")
        move_to(root, "2")
        planned = plan(registered(NAME), "3", "promote", "a test", {})
        MlflowClient().delete_model_version(NAME, "3")
        with pytest.raises(StoreError, match="version 3 was deleted meanwhile, the champion stays 2"):
            carry_out(planned, lock(root))
        assert aliases() == {CHAMPION: "2", PREVIOUS: "1", CHALLENGER: "4"}
        assert history(NAME)[-1].outcome == "abandoned: version 3 was deleted"

    def test_a_version_deleted_between_the_steps_leaves_the_champion(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        move_to(root, "1")
        move_to(root, "2")
        real = MlflowClient.set_registered_model_alias

        def deleting(self: MlflowClient, name: str, alias: str, version: str) -> None:
            if alias == CHAMPION:
                self.delete_model_version(name, version)
            real(self, name, alias, version)

        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", deleting)
        with pytest.raises(StoreError, match="deleted meanwhile"):
            move_to(root, "3")
        assert aliases() == {CHAMPION: "2", PREVIOUS: "1", CHALLENGER: "4"}

    def test_a_deleted_champion_can_be_followed_by_the_previous_one(self, root: Path) -> None:
        move_to(root, "1")
        move_to(root, "2")
        MlflowClient().delete_model_version(NAME, "2")
        assert aliases() == {PREVIOUS: "1", CHALLENGER: "4"}
        move_to(root, find(registered(NAME), PREVIOUS))
        assert aliases()[CHAMPION] == "1"


def test_of_two_moves_at_the_same_time_one_is_made(root: Path) -> None:
    move_to(root, "1")
    known = registered(NAME)
    start = threading.Barrier(2)
    told: dict[str, str] = {}

    def go(version: str) -> None:
        planned = plan(known, version, "promote", "at once", {})
        start.wait()
        try:
            carry_out(planned, lock(root))
            told[version] = "done"
        except StoreError as error:
            told[version] = error.found

    threads = [threading.Thread(target=go, args=(version,)) for version in ("2", "3")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    (winner,) = [version for version, outcome in told.items() if outcome == "done"]
    (loser,) = set(told) - {winner}
    assert told[loser] == f"the champion is version {winner} by now"
    assert aliases() == {CHAMPION: winner, PREVIOUS: "1", CHALLENGER: "4"}
    assert [one.to_version for one in history(NAME)] == ["1", winner]
