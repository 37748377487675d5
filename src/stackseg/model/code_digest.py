"""The digest of the code that makes a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import stackseg

# rooms whose code shapes a trained model, without the files in them that only describe, score, draw or adopt
ROOMS = ("params", "imaging", "learning")
NOT_TRAINING = frozenset(
    {
        "params/adapt.py",
        "params/evaluate.py",
        "params/project.py",
        "params/promotion.py",
        "params/search.py",
        "imaging/adoption.py",
        "imaging/boundaries.py",
        "imaging/describing.py",
        "imaging/digests.py",
        "imaging/intervals.py",
        "imaging/neurons.py",
        "imaging/pictures.py",
        "imaging/scores.py",
        "imaging/summary.py",
        "imaging/synthetic.py",
        "imaging/synthetic_rock.py",
        "imaging/unchanged.py",
        "learning/drift.py",
        "learning/evaluation.py",
        "learning/plane_counts.py",
        "learning/reports.py",
    }
)


def training_files() -> list[Path]:
    """Return the source files that training and inference use; dvc.yaml's train stage depends on the same."""
    package = Path(stackseg.__file__).parent
    found = [
        package / "aside.py",
        package / "errors.py",
        *(path for room in ROOMS for path in sorted((package / room).rglob("*.py"))),
    ]
    return [
        path
        for path in found
        if path.name != "__init__.py" and path.relative_to(package).as_posix() not in NOT_TRAINING
    ]


def code_digest(*more: Path) -> str:
    """Return the SHA-256 over the source files that training and inference use, and some more of the package."""
    package = Path(stackseg.__file__).parent
    sha = hashlib.sha256()
    for path in [*training_files(), *more]:
        # line ends differ between platforms, the code does not
        sha.update(f"{path.relative_to(package).as_posix()}\n".encode())
        sha.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return sha.hexdigest()
