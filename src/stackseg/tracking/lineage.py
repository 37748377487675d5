"""Where a run comes from: git commit, uncommitted changes, DVC experiment."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from stackseg.atomic import read_text
from stackseg.errors import ParamsError

if TYPE_CHECKING:
    from stackseg.model.network import NetworkSpec
    from stackseg.params.model import ModelParams

# written by the stages themselves: their change says nothing about what was run
WRITTEN_BY_RUNS = ("dvc.lock", "outputs", "mlruns", "checkpoints")


@dataclass(frozen=True)
class GitState:
    """Commit of the project; `diff` holds the changes that make it dirty."""

    commit: str | None
    dirty: bool | None
    diff: str
    branch: str | None

    @property
    def short(self) -> str:
        """The commit in seven characters, with + where dirty; empty outside a repository."""
        return "" if self.commit is None else self.commit[:7] + ("+" if self.dirty else "")


def git_state(root: Path) -> GitState:
    """Return the project's git state; outside a repository, everything is None."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return GitState(None, None, "", None)
    kept = [f":(exclude){name}" for name in WRITTEN_BY_RUNS]
    diff = _git(root, "diff", "HEAD", "--", ".", *kept) or ""
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--", ".", *kept) or ""
    changes = diff + ("\n# untracked files\n" + untracked if untracked else "")
    return GitState(commit, bool(changes), changes, _git(root, "rev-parse", "--abbrev-ref", "HEAD"))


def dvc_tags() -> dict[str, str]:
    """Return DVC's names for the experiment that this process runs in, as tags."""
    names = {"DVC_EXP_NAME": "dvc.experiment", "DVC_EXP_BASELINE_REV": "dvc.baseline", "DVC_STAGE": "dvc.stage"}
    return {tag: os.environ[name] for name, tag in names.items() if os.environ.get(name)}


def run_name(network: ModelParams | NetworkSpec, git: GitState) -> str:
    """Return a run's name: the network, and DVC's name of the experiment or else the commit, with + where dirty."""
    name = f"{network.architecture}-{network.encoder}"
    code = os.environ.get("DVC_EXP_NAME") or git.short
    return f"{name} · {code}" if code else name


def require_dependency(pipeline: Path, stage: str, name: str) -> None:
    """Check that a file which params name is among a stage's dependencies, or DVC would not see it change.

    Parameters
    ----------
    pipeline
        dvc.yaml; without one, there is nothing that could go stale.
    stage, name
        The stage that reads the file, and the file as params name it.

    Raises
    ------
    ParamsError
        It is not.
    """
    if not pipeline.exists():
        return
    tree = YAML(typ="safe").load(read_text(pipeline, ParamsError))
    deps = tree.get("stages", {}).get(stage, {}).get("deps", [])
    if Path(name) not in {Path(one) for one in deps if isinstance(one, str)}:
        raise ParamsError(
            f"{name} is not among the deps of stage {stage}: `dvc repro` would not notice when it changes",
            where=str(pipeline),
            remedy=f"add the line `- {name}` to stages.{stage}.deps",
        )


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
