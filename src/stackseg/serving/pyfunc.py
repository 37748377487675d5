"""The pyfunc face of segment(): an image in, its mask out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT, MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from ruamel.yaml import YAML

from stackseg.errors import DataError, StacksegError
from stackseg.model.bundle import Bundle, BundleSpec, load_bundle
from stackseg.model.code_digest import code_digest
from stackseg.model.devices import pick_device
from stackseg.model.segment import SYMMETRIES, segment
from stackseg.serving.decode import open_image
from stackseg.serving.drift import measure_drift, require_voxel_size
from stackseg.serving.encode import IGNORE_VOXEL_SIZE, as_labels, encode_mask
from stackseg.serving.request import FORM, RequestParams, image_name, parse_params

MAX_MEGAPIXELS = 256.0
"""Most pixels of one image, over planes and channels, where nobody sets another limit."""


class SegmentationModel(PythonModel):
    """Answers a DataFrame with a binary column `image` (a TIFF or PNG file) with one row per image."""

    max_megapixels: float = MAX_MEGAPIXELS

    def load_context(self, context: Any) -> None:
        """Load and verify the bundle; it runs on STACKSEG_DEVICE, by default a GPU if there is one."""
        folder = Path(context.artifacts["bundle"])
        self.use(load_bundle(folder, pick_device(os.environ.get("STACKSEG_DEVICE", "auto"))), *registered_as(folder))

    def use(self, bundle: Bundle, name: str | None = None, version: str | None = None) -> None:
        """Segment with a bundle, which is registered under a name and a version."""
        self.bundle, self.name, self.version = bundle, name, version
        self._code = code_digest()

    @property
    def spec(self) -> BundleSpec:
        """The bundle.json of what is served."""
        return self.bundle.spec

    @property
    def label(self) -> str:
        """What logs call it."""
        return f"{self.name} version {self.version}" if self.name else f"bundle {self.bundle.digest[:12]}"

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Segment each image.

        Parameters
        ----------
        model_input
            Column `image`: the bytes of a TIFF or PNG file, one plane or a small stack.
        params
            See `RequestParams`; `plane` asks for one plane of a stack, whose others are its context (-1: all).

        Returns
        -------
        DataFrame
            A row of `respond` for each image.
        """
        check = _time_left() if _MLFLOW_IS_IN_SERVING_ENVIRONMENT.get() else lambda: None
        try:
            return pd.DataFrame(self.respond(_images(model_input), parse_params(params), check))
        except StacksegError as error:
            # MLflow answers its own exception without a stack trace
            raise MlflowException.invalid_parameter_value(error.sentence()) from None

    def respond(self, images: list[bytes], params: RequestParams, check: Callable[[], None]) -> list[dict[str, Any]]:
        """Return the response to each image of a request.

        Parameters
        ----------
        images
            TIFF or PNG files.
        params
            What is asked for.
        check
            Called before each window; what it raises ends the work.

        Returns
        -------
        list
            Of each image `mask`: base64 of class indices (Z, Y, X) in the form `output`, or of numbers of objects where
            the model tells these apart; `num_objects` in each plane then, else None; `shape`; `classes` and `fractions`
            in the order of the class index; the lineage of the response, and `drift`.
        """
        names = [image_name(number, len(images)) for number in range(1, len(images) + 1)]
        return [self._respond(image, name, params, check) for image, name in zip(images, names, strict=True)]

    def _respond(self, image: bytes, name: str, params: RequestParams, check: Callable[[], None]) -> dict[str, Any]:
        started = time.perf_counter()
        check()
        tta = self.spec.inference.tta if params.tta == "model" else params.tta
        passes = len(SYMMETRIES[tta]) * (3 if self.spec.inference.orthogonal else 1)
        with open_image(image, self.max_megapixels, name, passes=passes) as source:
            check()
            drift = measure_drift(source, source.info.voxel_size_zyx_um, self.spec)
            if not params.ignore_voxel_size:
                require_voxel_size(drift, where=name, remedy=f"or {IGNORE_VOXEL_SIZE}")
            planes = list(
                segment(
                    source,
                    self.bundle,
                    planes=_chosen(params.plane, len(source)),
                    probabilities=params.probabilities,
                    objects=True,
                    tta=tta,
                    before_window=check,
                )
            )
        mask_zyx = np.stack([one.mask_yx for one in planes])
        probabilities = [one.probabilities_cyx for one in planes if one.probabilities_cyx is not None]
        objects = [one.objects_yx for one in planes if one.objects_yx is not None]
        encoded: dict[str, Any] = encode_mask(
            as_labels(np.stack(objects)) if objects else mask_zyx,
            np.stack(probabilities) if probabilities else None,
            params.output,
        )
        spec, pixels = self.spec, np.bincount(mask_zyx.ravel(), minlength=len(self.bundle.inference.classes))
        return encoded | {
            "output": params.output,
            "shape": list(mask_zyx.shape),
            "classes": list(spec.inference.class_names),
            "colours": [one.display for one in spec.inference.classes],
            "num_objects": [int(one.max()) for one in objects] if objects else None,
            "fractions": [round(float(n) / mask_zyx.size, 6) for n in pixels],
            "drift": drift.model_dump(mode="json"),
            "warnings": drift.sentences(),
            "model_name": self.name,
            "model_version": self.version,
            "bundle_digest": spec.digest,
            "code_digest": self._code,
            "git_commit": spec.lineage.git_commit,
            "data_md5": spec.lineage.data_md5,
            "context_slices": spec.inference.context_slices,
            "intensity_scope": spec.inference.intensity.params.scope,
            "milliseconds": round(1000 * (time.perf_counter() - started), 1),
        }


def registered_as(bundle: Path) -> tuple[str | None, str | None]:
    """Return name and version that MLflow noted beside the model when it fetched it from the registry."""
    for folder in list(bundle.parents)[:2]:
        note = folder / REGISTERED_MODEL_META_FILE_NAME
        if note.exists():
            found = YAML(typ="safe").load(note)
            return str(found["model_name"]), str(found["model_version"])
    return None, None


def _time_left() -> Callable[[], None]:
    """Return a check that ends the work once MLflow's server has given it up."""
    seconds = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()
    deadline = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > deadline:
            raise DataError(
                f"more than {seconds} seconds of work",
                remedy="send fewer planes at a time, or have the server started with a larger --timeout",
            )

    return check


def _images(model_input: pd.DataFrame) -> list[bytes]:
    if not isinstance(model_input, pd.DataFrame) or "image" not in model_input or len(model_input) == 0:
        raise DataError("no image", expected='rows with a column "image"', remedy=f"send {FORM}")
    images = list(model_input["image"])
    if not all(isinstance(one, bytes) for one in images):
        raise DataError("an image that is no base64", expected="base64 of a TIFF or PNG file", remedy=f"send {FORM}")
    if any(one.startswith(_UNDECODED) for one in images):
        raise DataError("MLflow decodes no images under inputs or instances", remedy=f"send {FORM}")
    return images


# how TIFF and PNG files begin in base64
_UNDECODED = (b"SUkq", b"SUkr", b"TU0A", b"iVBORw0K")


def _chosen(plane: int, num_planes: int) -> range:
    if plane == -1:
        return range(num_planes)
    if not 0 <= plane < num_planes:
        raise DataError(
            f"plane {plane} of {num_planes}", expected=f"-1 (all) or 0 to {num_planes - 1}", where='parameter "plane"'
        )
    return range(plane, plane + 1)
