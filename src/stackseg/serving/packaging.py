"""Log a bundle as an MLflow model: code, safetensors and JSON."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

import stackseg
from stackseg.learning.bundle import BundleSpec

# what serving imports; versions are those that scored the model
SERVED_PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "safetensors", "numpy", "scipy", "scikit-image",
    "tifffile", "imagecodecs", "pillow", "natsort", "pydantic", "ruamel.yaml", "pandas",
)  # fmt: skip

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, "image")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "mask"),
            ColSpec(Array(DataType.long), "shape"),
            ColSpec(Array(DataType.string), "classes"),
            ColSpec(Array(DataType.double), "fractions"),
            ColSpec(DataType.string, "bundle_digest"),
            ColSpec(DataType.string, "code_digest"),
            ColSpec(DataType.string, "git_commit", required=False),
            ColSpec(DataType.string, "data_md5"),
            ColSpec(DataType.double, "milliseconds"),
        ]
    ),
)


def log_bundle(bundle: Path, spec: BundleSpec) -> Any:
    """Log a bundle with the package's code to the active run; returns MLflow's ModelInfo."""
    package = Path(stackseg.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        # compiled leftovers would make equal code differ
        code = Path(folder) / package.name
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__"))
        with warnings.catch_warnings():
            # the signature is given; an example would be an image that nobody needs
            warnings.filterwarnings("ignore", ".*An input example was not provided", UserWarning)
            return mlflow.pyfunc.log_model(
                name="model",
                python_model=str(code / "serving" / "model_code.py"),
                artifacts={"bundle": bundle.resolve().as_uri()},
                code_paths=[str(code)],
                pip_requirements=[f"{name}=={_public(version(name))}" for name in SERVED_PACKAGES]
                + [f"mlflow=={version('mlflow')}"],
                signature=SIGNATURE,
                metadata={"bundle_digest": spec.digest, "data_md5": spec.lineage.data_md5},
            )


def _public(full: str) -> str:
    # a local build label (+cu130) is on no registry
    return full.partition("+")[0]
