"""What promote asks of a version before it moves the champion, and how the versions are listed."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner, Result

from stackseg.cli.main import app
from stackseg.cli.promote import show_verdict
from stackseg.errors import StacksegError
from stackseg.evaluation.bootstrap import Interval
from stackseg.model.bundle import read_spec
from stackseg.registry.gate import Verdict
from stackseg.registry.versions import registered
from stackseg.serving.packaging import log_bundle
from stackseg.tracking.store import prepare_store
from tiny_projects import make_tiny_project

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
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with two versions, of which the artifacts are gone."""
    (tmp_path / "params.yaml").write_text("format: 1\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    prepare_store(tmp_path, experiment="stackseg")
    client = MlflowClient()
    client.create_registered_model("stackseg")
    for alias in ("champion", "challenger"):
        made = client.create_model_version("stackseg", (tmp_path / "gone").as_uri(), run_id="d34242ab", tags=TAGS)
        client.set_registered_model_alias("stackseg", alias, made.version)
    return tmp_path


def stackseg(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments)


def test_force_leaves_out_the_gate_but_not_whether_the_version_loads(root: Path) -> None:
    error = stackseg("promote", "--force", "--reason", "a test").exception
    assert isinstance(error, StacksegError)
    assert error.sentence().startswith("models:/stackseg/2: its artifacts cannot be had")
    assert registered("stackseg").aliases["champion"] == "1"


def test_force_refuses_weights_that_were_damaged_in_place(root: Path) -> None:
    make_tiny_project(root, {"train.epochs": 1}).train("model")
    client = MlflowClient()
    with mlflow.start_run(experiment_id=client.get_experiment_by_name("stackseg").experiment_id):
        info = log_bundle(Path("model"), read_spec(Path("model")))
    made = client.create_model_version("stackseg", f"models:/{info.model_id}", model_id=info.model_id)
    (weights,) = Path("mlruns").rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    error = stackseg("promote", str(made.version), "--force", "--reason", "a test").exception
    assert isinstance(error, StacksegError)
    assert "digest" in error.sentence()
    assert registered("stackseg").aliases["champion"] == "1"


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


def test_a_blank_reason_is_none_and_a_blank_version_is_not_the_challenger(root: Path) -> None:
    for blank in ("", " "):
        done = stackseg("promote", "--force", "--reason", blank)
        assert done.exit_code == 2
        assert "--reason" in done.output
    assert "no version or alias ''" in str(stackseg("promote", "").exception)


def test_versions_fit_80_columns(root: Path) -> None:
    lines = stackseg("models").output.splitlines()
    rows = [line for line in lines if line.startswith((" 1", " 2"))]
    assert len(rows) == 2
    assert all(".810–.901" in row and "e248b2e+" in row for row in rows), lines
    assert max(map(len, lines)) <= 80
    assert len(lines) == 7  # none is broken
