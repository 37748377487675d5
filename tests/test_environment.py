import os
import subprocess
import sys

import pytest

from stackseg.environment import apply_quiet_environment, quiet_environment

# Whatever makes a library think that it runs in a test or CI, where it is quiet anyway, is taken away.
_CI_MARKS = {"CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "DVC_TEST", "DO_NOT_TRACK"}


def _quiet_process(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in _CI_MARKS}
    environment.update(quiet_environment())
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_what_the_user_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in quiet_environment():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    before = dict(os.environ)
    try:
        apply_quiet_environment()
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
        assert os.environ["DVC_NO_ANALYTICS"] == "1"
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def test_dvc_neither_reports_nor_asks_for_its_newest_version(tmp_path: object) -> None:
    code = f"""
import socket
def refuse(*arguments): raise SystemExit("DVC opened a connection")
socket.socket.connect = socket.getaddrinfo = refuse
from dvc import analytics
from dvc.updater import Updater
updater = Updater({str(tmp_path)!r})
updater.fetch(detach=False)
print(analytics.is_enabled())
"""
    assert _quiet_process(code) == "False"


@pytest.mark.slow
def test_mlflow_and_albumentations_are_quiet() -> None:
    code = """
import socket
def refuse(*arguments): raise SystemExit("a library opened a connection")
socket.socket.connect = socket.getaddrinfo = refuse
import albumentations
import mlflow
from mlflow.telemetry.utils import is_telemetry_disabled
from huggingface_hub import constants
print(is_telemetry_disabled(), constants.HF_HUB_DISABLE_TELEMETRY)
"""
    assert _quiet_process(code) == "True True"
