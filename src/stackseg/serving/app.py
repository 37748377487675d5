"""The served app: MLflow's own scoring app around a version that can be exchanged, behind the guard."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import mlflow.pyfunc
import numpy as np
import torch
from mlflow.pyfunc import PyFuncModel, scoring_server
from starlette.types import ASGIApp

from stackseg.model.code_digest import code_digest
from stackseg.model.segment import segment
from stackseg.serving.pyfunc import SegmentationModel, Wishes
from stackseg.serving.request import Guard, Limits

log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Loaded:
    """A version in memory."""

    label: str
    model: PyFuncModel
    face: SegmentationModel

    def warm(self) -> None:
        """Segment a plane of one tile: the first image takes several times as long as the others."""
        spec = self.face.spec.inference
        tile_yxc = np.zeros((spec.tile, spec.tile, spec.num_channels), np.float32)
        for _ in segment(_OnePlane(tile_yxc), self.face.bundle):
            pass


class Cores:
    """Shares the cores among requests: one alone takes all of them, several take one each, others wait."""

    def __init__(self, num_cores: int) -> None:
        self.num = num_cores
        # torch's memory and helpers belong to the thread that calls it: there are never more than these, and the one
        # that takes all cores is always the same, for the helpers of another would go on spinning beside it
        self._alone = ThreadPoolExecutor(1, thread_name_prefix="segment-alone")
        self._pool = ThreadPoolExecutor(num_cores, thread_name_prefix="segment")
        self._lock = threading.Lock()
        self._num_waiting = 0

    def run(self, call: Callable[[], Any]) -> Any:
        """Run a call on one of the cores, or on all of them if there is no other, and return what it returns."""
        with self._lock:
            self._num_waiting += 1
            alone = self._num_waiting == 1
        try:
            if alone:
                return self._alone.submit(self._call, call, self.num).result()
            return self._pool.submit(self._call, call, 1).result()
        finally:
            with self._lock:
                self._num_waiting -= 1

    def run_everywhere(self, call: Callable[[], Any]) -> None:
        """Run a call on all cores together, and then on each by itself."""
        self._alone.submit(self._call, call, self.num).result()
        together = threading.Barrier(self.num)
        for one in [self._pool.submit(self._call, lambda: (together.wait(), call()), 1) for _ in range(self.num)]:
            one.result()

    @staticmethod
    def _call(call: Callable[[], Any], num_threads: int) -> Any:
        torch.set_num_threads(num_threads)
        return call()


class Exchangeable:
    """What MLflow's app takes for its model; requests that are under way keep the version that they began with."""

    def __init__(self, loaded: Loaded, cores: Cores) -> None:
        self._loaded = loaded
        self._cores = cores

    @property
    def metadata(self) -> Any:
        """MLflow reads the signature from here."""
        return self._loaded.model.metadata

    @property
    def loaded(self) -> Loaded:
        """What is served now."""
        return self._loaded

    def exchange(self, loaded: Loaded) -> None:
        """Serve another version from the next request on."""
        self._loaded = loaded

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Answer one request."""
        model = self._loaded.model
        return self._cores.run(lambda: model.predict(data, params=params))


def load_version(uri: str, label: str, limits: Limits) -> Loaded:
    """Load a version, and say if it was made by other code.

    Parameters
    ----------
    uri
        As MLflow names models, e.g. ``models:/stackseg/3``.
    label
        What the log calls it.
    limits
        Of the images.
    """
    model = mlflow.pyfunc.load_model(uri)
    face = cast(SegmentationModel, model.unwrap_python_model())
    face.max_megapixels = limits.max_megapixels
    other_code = face.spec.lineage.code_digest != code_digest()
    if other_code:
        log.warning(
            f"{label} was trained by other code ({face.spec.lineage.code_digest[:12]}, commit "
            f"{(face.spec.lineage.git_commit or 'unknown')[:8]}): masks may differ from its scores"
        )
    return Loaded(label, model, face)


def build_app(exchangeable: Exchangeable, limits: Limits) -> ASGIApp:
    """Return MLflow's scoring app around an exchangeable model, behind the guard."""
    app = scoring_server.init(cast(PyFuncModel, exchangeable))
    return Guard(app, limits, tuple(Wishes.model_fields))


class Watch(threading.Thread):
    """Looks where an alias points, and loads and warms the new version before it takes over."""

    def __init__(
        self,
        exchangeable: Exchangeable,
        where: Callable[[], str],
        load: Callable[[str], Loaded],
        *,
        now: str,
        seconds: float,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._exchangeable = exchangeable
        self._where = where
        self._load = load
        self._now = now
        self._seconds = seconds
        self._told = ""

    def run(self) -> None:
        """Look again and again; whatever goes wrong, the present version goes on."""
        while True:
            time.sleep(self._seconds)
            self.look()

    def look(self) -> None:
        """Look once."""
        try:
            version = self._where()
            if version == self._now:
                return
            loaded = self._load(version)
        except Exception as error:
            self._warn(f"the new version is not served: {' '.join(str(error).split())[:300]}")
            return
        self._exchangeable.exchange(loaded)
        self._now, self._told = version, ""
        log.info(f"now serving {loaded.label}")

    def _warn(self, text: str) -> None:
        """Say what is wrong, once."""
        if text != self._told:
            log.warning(text)
        self._told = text


class _OnePlane:
    def __init__(self, plane_yxc: np.ndarray[Any, Any]) -> None:
        self._plane_yxc = plane_yxc

    def __len__(self) -> int:
        return 1

    def plane(self, z: int) -> np.ndarray[Any, Any]:
        return self._plane_yxc
