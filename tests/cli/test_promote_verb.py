"""What promote asks of a version before it moves the champion, and how the versions are listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner, Result

from stackseg.cli.main import app
from stackseg.errors import StacksegError
from stackseg.lifecycle.store import prepare_store
from stackseg.lifecycle.versions import registered

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

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
