"""Changes of champion: interrupted anywhere, made twice at once, or of vanished versions, they leave order behind."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from registry_fixtures import Registry
from stackseg.errors import StoreError
from stackseg.registry.champion import MAX_TAG, note_verdict, set_champion
from stackseg.registry.versions import (
    CHALLENGER,
    CHAMPION,
    HISTORY_PREFIX,
    PREVIOUS,
    ChampionChange,
    RegisteredModel,
    find,
    read_registered_model,
)

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

WRITES = (
    "set_registered_model_alias",
    "set_registered_model_tag",
    "delete_registered_model_alias",
    "update_registered_model",
    "update_model_version",
)


@pytest.fixture
def rock(registry: Registry) -> Registry:
    """Return a model with four versions, of which the last is the challenger."""
    for number in range(1, 5):
        registry.add_version(f"s3://bucket/{number}", tags={"mean_iou": f"0.{number}"})
    MlflowClient().set_registered_model_alias(registry.name, CHALLENGER, "4")
    return registry


def known(rock: Registry) -> RegisteredModel:
    return read_registered_model(rock.name)


def aliases(rock: Registry) -> dict[str, str]:
    return known(rock).aliases


def previous_in_mlflow(rock: Registry) -> str:
    return str(MlflowClient().get_model_version_by_alias(rock.name, PREVIOUS).version)


def crown(rock: Registry, version: str, **given: Any) -> ChampionChange:
    settings: dict[str, Any] = {"action": "promote", "why": "a test", "figures": {}, "lock": rock.lock}
    if "expected" not in given:
        settings["expected"] = aliases(rock).get(CHAMPION)
    return set_champion(rock.name, version, **settings | given)


def roll_back(rock: Registry) -> None:
    crown(rock, find(known(rock), PREVIOUS), action="rollback")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@contextmanager
def killed_at(number: int, *, after: bool) -> Iterator[None]:
    """Let the n-th write to the registry be the last, before or after it is done."""
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

    with pytest.MonkeyPatch.context() as patched:
        for name in WRITES:
            patched.setattr(MlflowClient, name, wrapped(getattr(MlflowClient, name)))
        yield


class TestChanges:
    def test_the_first_champion_has_no_previous(self, rock: Registry) -> None:
        crown(rock, "2")
        assert aliases(rock) == {CHAMPION: "2", CHALLENGER: "4"}

    def test_forward_and_back_and_forward(self, rock: Registry) -> None:
        for version in ("2", "4"):
            crown(rock, version)
        assert aliases(rock) == {CHAMPION: "4", PREVIOUS: "2"}  # no challenger is left
        roll_back(rock)
        assert aliases(rock) == {CHAMPION: "2", PREVIOUS: "4"}
        roll_back(rock)
        assert aliases(rock) == {CHAMPION: "4", PREVIOUS: "2"}
        assert [(one.from_version, one.to_version) for one in known(rock).history] == [
            (None, "2"),
            ("2", "4"),
            ("4", "2"),
            ("2", "4"),
        ]
        # whoever asks MLflow itself is told the same
        assert previous_in_mlflow(rock) == "2"

    def test_the_history_keeps_who_when_why_and_the_figures(self, rock: Registry) -> None:
        figures = {"gain": [0.01, 0.05], "iou": {"clay": [0.7, 0.6]}}
        made = crown(rock, "3", action="force", why="because [it] — is “so”", figures=figures)
        (kept,) = known(rock).history
        assert kept == made
        assert (kept.action, kept.why, kept.figures) == ("force", "because [it] — is “so”", figures)
        assert kept.who
        assert kept.host

    def test_what_a_tag_cannot_hold_is_left_out_and_the_change_is_made(self, rock: Registry) -> None:
        figures = {"iou": {f"class {number}": [0.123456789, 0.123456789] for number in range(400)}}
        crown(rock, "3", why="x" * 9000, figures=figures)
        assert aliases(rock)[CHAMPION] == "3"
        tags = MlflowClient().get_registered_model(rock.name).tags
        assert max(len(text) for text in tags.values()) <= MAX_TAG
        assert known(rock).history[0].to_version == "3"

    def test_a_version_is_found_by_alias_and_number_and_nothing_else(self, rock: Registry) -> None:
        assert (find(known(rock), "challenger"), find(known(rock), "2")) == ("4", "2")
        for wanted in ("champion", "9", "latest", ""):
            with pytest.raises(StoreError, match=r"expected one of challenger, 4, 3, 2, 1"):
                find(known(rock), wanted)
        with pytest.raises(StoreError, match=r"dvc repro.*stackseg register"):
            find(read_registered_model("unheard of"), "champion")

    def test_an_alias_that_nothing_has_yet_is_said_in_plain_words(self, rock: Registry) -> None:
        with pytest.raises(StoreError, match=r": no earlier champion; expected one of challenger"):
            find(known(rock), PREVIOUS)
        crown(rock, "4")
        with pytest.raises(StoreError, match="no version was registered since the last promotion"):
            find(known(rock), CHALLENGER)

    def test_a_champion_that_changed_since_the_decision_stays(self, rock: Registry) -> None:
        crown(rock, "1")
        crown(rock, "2")
        with pytest.raises(StoreError, match=r"the champion is version 2 by now; expected version 1"):
            crown(rock, "3", expected="1")
        assert aliases(rock) == {CHAMPION: "2", PREVIOUS: "1", CHALLENGER: "4"}

    def test_a_champion_that_was_set_in_mlflow_is_rolled_back_to_the_one_before(self, rock: Registry) -> None:
        crown(rock, "1")
        MlflowClient().set_registered_model_alias(rock.name, CHAMPION, "3")
        roll_back(rock)
        assert aliases(rock)[CHAMPION] == "1"
        assert known(rock).versions["3"].description.startswith("### Promotion\n\n- Replaced by version 1 on ")
        roll_back(rock)
        assert aliases(rock)[CHAMPION] == "3"

    def test_of_two_at_the_same_time_one_is_made_and_the_other_told(self, rock: Registry) -> None:
        crown(rock, "1")
        start = threading.Barrier(2)
        answers: dict[str, str] = {}

        def go(version: str) -> None:
            start.wait()
            try:
                crown(rock, version, expected="1")
                answers[version] = "done"
            except StoreError as error:
                answers[version] = error.found

        threads = [threading.Thread(target=go, args=(version,)) for version in ("2", "3")]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        (winner,) = [version for version, answer in answers.items() if answer == "done"]
        (loser,) = set(answers) - {winner}
        assert answers[loser] == f"the champion is version {winner} by now"
        assert aliases(rock) == {CHAMPION: winner, PREVIOUS: "1", CHALLENGER: "4"}
        assert [one.to_version for one in known(rock).history] == ["1", winner]


def test_a_kill_at_any_write_leaves_the_old_or_the_new_champion_and_the_way_back(rock: Registry) -> None:
    crown(rock, "1")
    crown(rock, "2")
    before = aliases(rock)
    # champion, history, previous, challenger, and the descriptions of the model and of both versions
    for number, after in [*((one, False) for one in range(1, 8)), (7, True)]:
        MlflowClient().set_registered_model_alias(rock.name, CHALLENGER, "4")
        old, earlier = before[CHAMPION], before[PREVIOUS]
        with killed_at(number, after=after), pytest.raises(Killed):
            crown(rock, "4", expected=old)
        left = aliases(rock)
        expected = ("4", old) if number > 1 else (old, earlier)
        assert (left[CHAMPION], left[PREVIOUS]) == expected
        # the next change brings up to date what is missing
        crown(rock, left[PREVIOUS], expected=left[CHAMPION], action="rollback")
        mended = known(rock)
        before = mended.aliases
        assert (before[PREVIOUS], before[CHAMPION]) == expected
        assert previous_in_mlflow(rock) == expected[0]
        assert (mended.history[-1].from_version, mended.history[-1].to_version) == expected
        assert f"Replaced by version {expected[1]}" in mended.versions[expected[0]].description
        assert (CHALLENGER in before) == (number == 1)


class TestDeletedVersions:
    def test_a_version_deleted_meanwhile_leaves_the_champion(self, rock: Registry) -> None:
        crown(rock, "1")
        crown(rock, "2")
        MlflowClient().delete_model_version(rock.name, "3")
        with pytest.raises(StoreError, match="version 3 was deleted meanwhile, the champion stays 2"):
            crown(rock, "3")
        assert aliases(rock) == {CHAMPION: "2", PREVIOUS: "1", CHALLENGER: "4"}
        assert [one.to_version for one in known(rock).history] == ["1", "2"]

    def test_the_way_back_leads_past_deleted_versions(self, rock: Registry) -> None:
        for version in ("1", "2", "3"):
            crown(rock, version)
        MlflowClient().delete_model_version(rock.name, "3")
        assert aliases(rock) == {PREVIOUS: "2", CHALLENGER: "4"}
        MlflowClient().delete_model_version(rock.name, "2")
        roll_back(rock)
        assert aliases(rock) == {CHAMPION: "1", CHALLENGER: "4"}


def test_the_history_and_the_intent_of_an_older_release_are_read_and_do_not_disturb(rock: Registry) -> None:
    client = MlflowClient()
    move = {
        "id": "7f9d", "when": "2026-11-21T10:00:00Z", "who": "ada", "host": "lab", "action": "promote",
        "model": rock.name, "from_version": "1", "to_version": "2", "previous_before": None, "why": "passed the gate",
        "figures": {"gain_mean_iou": 0.02}, "outcome": "done",
    }  # fmt: skip
    abandoned = {**move, "from_version": "2", "to_version": "3", "outcome": "abandoned: version 3 was deleted"}
    client.set_registered_model_tag(rock.name, f"{HISTORY_PREFIX}20261121T100000.000000.7f9d", json.dumps(move))
    client.set_registered_model_tag(rock.name, f"{HISTORY_PREFIX}20261122T100000.000000.7f9d", json.dumps(abandoned))
    client.set_registered_model_tag(rock.name, "stackseg.move", json.dumps({**move, "to_version": "4", "outcome": ""}))
    client.set_registered_model_alias(rock.name, CHAMPION, "2")
    (read,) = known(rock).history
    assert (read.who, read.action, read.from_version, read.to_version) == ("ada", "promote", "1", "2")
    assert aliases(rock) == {CHAMPION: "2", PREVIOUS: "1", CHALLENGER: "4"}
    crown(rock, "3")
    assert aliases(rock) == {CHAMPION: "3", PREVIOUS: "2", CHALLENGER: "4"}


class TestDescriptions:
    def test_versions_tell_what_the_gate_said_and_who_replaced_whom(self, rock: Registry) -> None:
        client = MlflowClient()
        client.update_model_version(rock.name, "4", "**Mean IoU 0.4** and what else was known")
        crown(rock, "1")
        note_verdict(rock.name, "4", "passed (mean IoU 0.9 against 0.8 of version 1 on 40 test planes)")
        crown(rock, "4", why="passed\nthe gate")
        text = known(rock).versions["4"].description
        assert text.startswith("**Mean IoU 0.4** and what else was known\n\n### Promotion\n")
        assert "- Gate: passed (mean IoU 0.9 against 0.8 of version 1 on 40 test planes)" in text
        assert "UTC (promote by " in text
        assert " instead of version 1: passed the gate" in text
        assert "Replaced" not in text
        assert "- Replaced by version 4 on " in known(rock).versions["1"].description
        roll_back(rock)
        text = known(rock).versions["4"].description
        assert text.count("### Promotion") == 1
        assert "- Replaced by version 1 on " in text
        assert "(rollback by " in text
        back = known(rock).versions["1"].description
        assert " instead of version 4: a test" in back
        assert "Replaced" not in back

    def test_a_refused_version_keeps_the_reasons(self, rock: Registry) -> None:
        note_verdict(rock.name, "4", "refused: no gain")
        assert known(rock).versions["4"].tags["gate"] == "refused: no gain"
        assert known(rock).versions["4"].description == (
            "### Promotion\n\n- Gate: refused: no gain\n- Not the champion so far"
        )

    def test_the_model_tells_its_champion_and_keeps_what_people_wrote_above(self, rock: Registry) -> None:
        MlflowClient().update_registered_model(rock.name, "Sandstone of the north quarry.")
        note_verdict(rock.name, "4", "refused: no gain")
        assert "None yet" in known(rock).description
        crown(rock, "2")
        crown(rock, "3")
        text = known(rock).description
        assert text.startswith("Sandstone of the north quarry.\n\n### Champion\n\nVersion 3: mean IoU 0.3, ")
        assert text.count("### Champion") == 1
        assert f"mlflow models serve -m 'models:/{rock.name}@champion'" in text  # the name holds a space

    def test_a_long_text_gives_way_to_the_section(self, rock: Registry) -> None:
        MlflowClient().update_model_version(rock.name, "4", "x" * 5000)
        crown(rock, "4")
        text = known(rock).versions["4"].description
        assert 4990 <= len(text) <= 5000
        assert text.endswith(": a test")
