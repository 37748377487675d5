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
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array

import stackseg
from stackseg.model.bundle import BundleSpec

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
            ColSpec(DataType.string, "probabilities", required=False),
            ColSpec(DataType.string, "output"),
            ColSpec(Array(DataType.long), "shape"),
            ColSpec(Array(DataType.string), "classes"),
            ColSpec(Array(DataType.string), "colours"),
            ColSpec(Array(DataType.long), "num_objects", required=False),
            ColSpec(Array(DataType.double), "fractions"),
            ColSpec(AnyType(), "drift"),
            ColSpec(Array(DataType.string), "warnings"),
            ColSpec(DataType.string, "model_name", required=False),
            ColSpec(DataType.string, "model_version", required=False),
            ColSpec(DataType.string, "bundle_digest"),
            ColSpec(DataType.string, "code_digest"),
            ColSpec(DataType.string, "git_commit", required=False),
            ColSpec(DataType.string, "data_md5"),
            ColSpec(DataType.long, "context_slices"),
            ColSpec(DataType.string, "intensity_scope"),
            ColSpec(DataType.double, "milliseconds"),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("output", DataType.string, "tiff"),
            ParamSpec("probabilities", DataType.boolean, False),
            ParamSpec("tta", DataType.string, "model"),
            ParamSpec("plane", DataType.long, -1),
            ParamSpec("ignore_voxel_size", DataType.boolean, False),
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
        # DVC may keep outputs as links into its cache, which MLflow refuses to follow: the copy has none
        files = Path(folder) / bundle.name
        shutil.copytree(bundle, files)
        with warnings.catch_warnings():
            # the signature is given; an example would be an image that nobody needs
            warnings.filterwarnings("ignore", ".*An input example was not provided", UserWarning)
            return mlflow.pyfunc.log_model(
                name="model",
                python_model=str(code / "serving" / "model_code.py"),
                artifacts={"bundle": files.as_uri()},
                code_paths=[str(code)],
                pip_requirements=[
                    f"{name}=={_public(version(name))}" for name in (*SERVED_PACKAGES, *_runtime(spec), "mlflow")
                ],
                signature=SIGNATURE,
                metadata={"bundle_digest": spec.digest, "data_md5": spec.lineage.data_md5},
            )


def _runtime(spec: BundleSpec) -> tuple[str, ...]:
    return () if spec.inference.runtime == "torch" else (spec.inference.runtime,)


def _public(full: str) -> str:
    # a local build label (+cu130) is on no registry
    return full.partition("+")[0]
