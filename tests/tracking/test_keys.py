"""Keys of MLflow's: any name of a user's gets one that MLflow takes, and no two get the same."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

from stackseg.tracking.keys import accepted_keys
from stackseg.tracking.run_logger import log_metrics
from stackseg.tracking.store import prepare_store

ODD = [
    "haematite (Fe2O3)", "haematite [Fe2O3]", "haematite _Fe2O3_", "a/b", "/a", "a/", "a//b", "../a", ".", "..",
    ".hidden", "100 %", "Größe µm²", 'say "ore"', "it's", "a:b", "a\nb", "x" * 60, "鉱石",
]  # fmt: skip


@given(st.sets(st.text(max_size=300) | st.sampled_from(ODD), max_size=6))
def test_mlflow_takes_every_key_and_no_two_are_the_same(names: set[str]) -> None:
    whole = [f"test/iou/{name}" for name in names]
    keys = accepted_keys(whole)
    assert len(set(keys.values())) == len(whole)
    for key in keys.values():
        _validate_metric_name(key)
        _validate_tag_name(key)
        assert len(key) <= 250
    for key in accepted_keys(whole, flags=re.ASCII, longest=40).values():
        assert re.fullmatch(r"[a-zA-Z0-9_\-./ ]{1,40}", key)


def test_plain_names_stay_and_only_those_that_would_merge_are_told_apart_by_a_digest() -> None:
    keys = accepted_keys(["quartz", "Größe", "pore (open)", *ODD[:3]])
    assert [keys[one] for one in ("quartz", "Größe", "pore (open)", ODD[2])] == [
        "quartz", "Größe", "pore _open_", "haematite _Fe2O3_",
    ]  # fmt: skip
    assert re.fullmatch(r"haematite _Fe2O3_-[0-9a-f]{8}", keys[ODD[0]])
    assert keys[ODD[0]] != keys[ODD[1]]


def test_a_real_store_holds_one_metric_per_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ready = prepare_store(tmp_path, experiment="rocks")
    run_id = MlflowClient().create_run(ready.experiment_id).info.run_id
    log_metrics(run_id, {f"test/iou/{name}": place / 100 for place, name in enumerate(ODD)})
    assert sorted(mlflow.get_run(run_id).data.metrics.values()) == [place / 100 for place in range(len(ODD))]
