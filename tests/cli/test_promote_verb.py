"""What promote asks of a version before it moves the champion, and how the versions are listed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner, Result

from registry_fixtures import Registry
from stackseg.cli.main import app
from stackseg.cli.promote import show_verdict
from stackseg.errors import StacksegError
from stackseg.evaluation.bootstrap import Interval
from stackseg.model.bundle import read_spec
from stackseg.registry.champion import set_champion
from stackseg.registry.gate import Verdict
from stackseg.registry.versions import read_registered_model
from stackseg.serving.packaging import log_bundle
from tiny_projects import Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    # MLflow's own, on being imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

TAGS = {
    "mean_iou": "0.8556", "mean_iou_interval": "0.8101..0.9012 (plane)", "data_md5": "d021c1aa",
    "catalog_digest": "7732e1bb", "git_commit": "e248b2ecc", "git_dirty": "true",
}  # fmt: skip


@pytest.fixture
def gone(registry: Registry) -> Registry:
    """Return a model of two versions, of which the artifacts are gone."""
    for alias in ("champion", "challenger"):
        version = registry.add_version((registry.root / "gone").as_uri(), run_id="d34242ab", tags=TAGS)
        MlflowClient().set_registered_model_alias(registry.name, alias, version)
    return registry


def stackseg(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments)


def test_force_leaves_out_the_gate_but_not_whether_the_version_loads(gone: Registry) -> None:
    error = stackseg("promote", "--force", "--reason", "a test").exception
    assert isinstance(error, StacksegError)
    assert error.sentence().startswith(f"models:/{gone.name}/2: its artifacts cannot be had")
    assert read_registered_model(gone.name).aliases["champion"] == "1"


def test_force_refuses_weights_that_were_damaged_in_place(gone: Registry, trained: tuple[Project, Any]) -> None:
    model = trained[0].folder / "model"
    with mlflow.start_run(experiment_id=MlflowClient().get_experiment_by_name("stackseg").experiment_id):
        info = log_bundle(model, read_spec(model))
    version = gone.add_version(f"models:/{info.model_id}", model_id=info.model_id)
    (weights,) = Path("mlruns").rglob(f"{info.model_id}/**/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    error = stackseg("promote", version, "--force", "--reason", "a test").exception
    assert isinstance(error, StacksegError)
    assert "digest" in error.sentence()
    assert read_registered_model(gone.name).aliases["champion"] == "1"


def test_the_ends_of_the_gain_are_told_as_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    gain = Interval(low=0.0052, high=0.0691, confidence=0.9, num_units=40, unit="plane", method="bootstrap")
    verdict = Verdict(
        challenger="2", champion="1", num_planes=40, num_planes_seen=0, num_units=40, unit="plane",
        challenger_mean_iou=0.9, champion_mean_iou=0.87, gain=gain, gain_mean_iou=0.03, classes=(),
        ms_per_megapixel=100.0, megabytes=57.0, catalog_digest="c", challenger_digest="a", champion_digest="b",
        reasons=(),
    )  # fmt: skip
    show_verdict(verdict, confidence=0.95)
    said = " ".join(capsys.readouterr().out.split())
    assert "gain in mean IoU above +0.0052 with 95% confidence, below +0.0691 with as much" in said


def test_a_blank_reason_is_none_and_a_blank_version_is_not_the_challenger(gone: Registry) -> None:
    for blank in ("", " "):
        done = stackseg("promote", "--force", "--reason", blank)
        assert done.exit_code == 2
        assert "--reason" in done.output
    assert "no version or alias ''" in str(stackseg("promote", "").exception)


def test_versions_fit_80_columns(gone: Registry) -> None:
    lines = stackseg("models").output.splitlines()
    rows = [line for line in lines if line.startswith((" 1", " 2"))]
    assert len(rows) == 2
    assert all(".810–.901" in row and "e248b2e+" in row for row in rows), lines
    assert max(map(len, lines)) <= 80
    assert len(lines) == 7  # none is broken


def test_a_rollback_goes_to_the_version_before_and_the_history_tells_it(gone: Registry) -> None:
    note = {"action": "promote", "why": "passed the gate", "figures": {}, "lock": gone.lock}
    set_champion(gone.name, "2", expected="1", **note)
    assert f"version 1 is the champion of {gone.name} (before: 2)" in stackseg("rollback").output
    assert "(before: 1)" in stackseg("rollback", "--reason", "it was better after all").output
    told = json.loads(stackseg("models", "--history", "--json").output)
    assert [(one["action"], one["from_version"], one["to_version"], one["why"]) for one in told] == [
        ("promote", "1", "2", "passed the gate"),
        ("rollback", "2", "1", "rollback"),
        ("rollback", "1", "2", "it was better after all"),
    ]
    assert "it was better" in stackseg("models", "--history").output


def test_the_command_that_serves_the_champion_can_be_typed_as_it_is_printed(gone: Registry) -> None:
    MlflowClient().set_registered_model_alias(gone.name, "champion", "2")
    set_champion(gone.name, "1", expected="2", action="promote", why="", figures={}, lock=gone.lock)
    said = stackseg("rollback").output
    address = f"models:/{gone.name}@champion"
    assert " " in address
    typed = shlex.split(said.partition("or: ")[2])
    assert typed[:7] == ["mlflow", "models", "serve", "-m", address, "--env-manager", "local"]
    line = next(one for one in read_registered_model(gone.name).description.splitlines() if "models serve" in one)
    assert shlex.split(line.split("`")[1])[4] == address
