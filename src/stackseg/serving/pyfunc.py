"""The pyfunc face of segment(): an image in, its mask out."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from stackseg.errors import DataError, StacksegError
from stackseg.model.bundle import Bundle, BundleSpec, load_bundle
from stackseg.model.code_digest import code_digest
from stackseg.model.devices import pick_device
from stackseg.model.segment import segment
from stackseg.serving.decode import called, received
from stackseg.serving.drift import measure_drift, require_voxel_size
from stackseg.serving.encode import IGNORE_VOXEL_SIZE, OUTPUT_FORMS, OutputForm, encode_answer

MAX_MEGAPIXELS = 256.0
"""Most pixels of one image, over planes and channels, where nobody sets another limit."""


class Wishes(BaseModel):
    """What a request may ask for: the parameters of the model's signature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: OutputForm = "tiff"
    probabilities: bool = False
    tta: bool = False
    plane: int = -1
    ignore_voxel_size: bool = False


class SegmentationModel(PythonModel):
    """Answers a DataFrame with a binary column `image` (a TIFF or PNG file) with one row per image."""

    max_megapixels: float = MAX_MEGAPIXELS

    def load_context(self, context: Any) -> None:
        """Load and verify the bundle; it runs on STACKSEG_DEVICE, by default a GPU if there is one."""
        folder = Path(context.artifacts["bundle"])
        self.use(load_bundle(folder, pick_device(os.environ.get("STACKSEG_DEVICE", "auto"))), *_registered_as(folder))

    def use(self, bundle: Bundle, name: str | None = None, version: str | None = None) -> None:
        """Answer with a bundle, which is registered under a name and a version."""
        self._bundle, self._name, self._version = bundle, name, version
        self._code = code_digest()

    @property
    def spec(self) -> BundleSpec:
        """The bundle.json of what is served."""
        return self._bundle.spec

    @property
    def bundle(self) -> Bundle:
        """What is served."""
        return self._bundle

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Segment each image.

        Parameters
        ----------
        model_input
            Column `image`: the bytes of a TIFF or PNG file, one plane or a small stack.
        params
            See `Wishes`; `plane` answers one plane of a stack, whose others are its context (-1: all).

        Returns
        -------
        DataFrame
            `mask`: base64 of class indices (Z, Y, X) in the form `output`; `shape`; `classes` and `fractions` in the
            order of the class index; the lineage of the answer, and `drift`.
        """
        try:
            wishes = _wishes(params)
            images = _images(model_input)
            names = [called(number, len(images)) for number in range(1, len(images) + 1)]
            return pd.DataFrame([self._answer(*one, wishes) for one in zip(images, names, strict=True)])
        except StacksegError as error:
            # MLflow answers its own exception without a stack trace
            raise MlflowException.invalid_parameter_value(error.sentence()) from None

    def _answer(self, image: bytes, name: str, wishes: Wishes) -> dict[str, Any]:
        started = time.perf_counter()
        with received(image, self.max_megapixels, name) as stack:
            drift = measure_drift(stack, stack.info.voxel_size_zyx_um, self.spec)
            if not wishes.ignore_voxel_size:
                require_voxel_size(drift, where=name, remedy=f"or {IGNORE_VOXEL_SIZE}")
            planes = list(
                segment(
                    stack,
                    self._bundle,
                    planes=_chosen(wishes.plane, len(stack)),
                    probabilities=wishes.probabilities,
                    tta=wishes.tta,
                )
            )
        mask_zyx = np.stack([one.mask_yx for one in planes])
        probabilities = [one.probabilities_cyx for one in planes if one.probabilities_cyx is not None]
        answer: dict[str, Any] = encode_answer(
            mask_zyx, np.stack(probabilities) if probabilities else None, wishes.output
        )
        spec, pixels = self.spec, np.bincount(mask_zyx.ravel(), minlength=len(self._bundle.inference.classes))
        return answer | {
            "output": wishes.output,
            "shape": list(mask_zyx.shape),
            "classes": list(spec.inference.class_names),
            "colours": [one.display for one in spec.inference.classes],
            "fractions": [round(float(n) / mask_zyx.size, 6) for n in pixels],
            "drift": drift.model_dump(mode="json"),
            "warnings": drift.sentences(),
            "model_name": self._name,
            "model_version": self._version,
            "bundle_digest": spec.digest,
            "code_digest": self._code,
            "git_commit": spec.lineage.git_commit,
            "data_md5": spec.lineage.data_md5,
            "context_slices": spec.inference.context_slices,
            "intensity_scope": spec.inference.intensity.params.scope,
            "milliseconds": round(1000 * (time.perf_counter() - started), 1),
        }


def _wishes(params: dict[str, Any] | None) -> Wishes:
    asked = {key: value for key, value in (params or {}).items() if value is not None}
    output = asked.get("output", "tiff")
    if output not in OUTPUT_FORMS:
        raise DataError("an unknown form of output", expected=", ".join(OUTPUT_FORMS), where='parameter "output"')
    return Wishes.model_validate(asked)


def _images(model_input: pd.DataFrame) -> list[bytes]:
    if not isinstance(model_input, pd.DataFrame) or "image" not in model_input or len(model_input) == 0:
        raise DataError("no image", expected='rows with a column "image"', remedy=_FORM)
    images = list(model_input["image"])
    if not all(isinstance(one, bytes) for one in images):
        raise DataError("an image that is no base64", expected="base64 of a TIFF or PNG file", remedy=_FORM)
    if any(one.startswith(_UNDECODED) for one in images):
        raise DataError("MLflow decodes no images under inputs or instances", remedy=_FORM)
    return images


# how TIFF and PNG files begin in base64
_UNDECODED = (b"SUkq", b"SUkr", b"TU0A", b"iVBORw0K")
_FORM = 'send {"dataframe_split": {"columns": ["image"], "data": [["<base64>"]]}}'


def _chosen(plane: int, num_planes: int) -> range:
    if plane == -1:
        return range(num_planes)
    if not 0 <= plane < num_planes:
        raise DataError(
            f"plane {plane} of {num_planes}", expected=f"-1 (all) or 0 to {num_planes - 1}", where='parameter "plane"'
        )
    return range(plane, plane + 1)


def _registered_as(bundle: Path) -> tuple[str | None, str | None]:
    """Return name and version that MLflow noted beside the model when it fetched it from the registry."""
    for folder in list(bundle.parents)[:2]:
        note = folder / REGISTERED_MODEL_META_FILE_NAME
        if note.exists():
            found = YAML(typ="safe").load(note)
            return str(found["model_name"]), str(found["model_version"])
    return None, None
