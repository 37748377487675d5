"""Have a stack segmented by a served model, plane by plane with several requests in flight."""

from __future__ import annotations

import base64
import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import requests
import tifffile
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from stackseg.dataset.channels import PlaneSource
from stackseg.dataset.files.axes import VoxelSize
from stackseg.errors import DataError, MachineError
from stackseg.serving.encode import IGNORE_VOXEL_SIZE, Mask, decode_tiff_mask

CONNECT_SECONDS = 10
FULL_TRIES = 12
RESPONSE_FIELDS = {
    "mask", "colours", "warnings", "context_slices", "intensity_scope", "bundle_digest", "model_name", "model_version"
}  # fmt: skip


@dataclass(frozen=True)
class RemotePlane:
    """Mask of one plane, and all else of the server's response."""

    z: int
    mask_yx: Mask
    response: dict[str, Any]


@dataclass(frozen=True)
class RemoteModel:
    """A served model's address, and what is asked of it.

    `url` is that of the server, with or without ``/invocations``; `params` are those of the model's signature.
    """

    url: str
    params: dict[str, Any]
    timeout_s: float
    in_flight: int

    def segment(self, source: PlaneSource, voxel_size_zyx_um: VoxelSize | None) -> Iterator[RemotePlane]:
        """Yield the planes of a stack in order.

        Each plane goes with the neighbours that the model looks at; where intensities are standardised by the whole
        stack (`intensity.scope: specimen`), the whole stack goes in one request.

        Raises
        ------
        MachineError
            The server does not answer, or is another.
        DataError
            It refuses; its own sentence says why.
        """
        with ThreadPoolExecutor(self.in_flight, thread_name_prefix="remote") as pool, _session() as session:

            def ask(z: int, context: int) -> RemotePlane:
                first, last = max(0, z - context), min(len(source) - 1, z + context)
                planes = [source.plane(one) for one in range(first, last + 1)]
                response = self._post(session, planes, voxel_size_zyx_um, z - first, f"plane {z}")
                return RemotePlane(z, decode_tiff_mask(response["mask"])[0], response)

            first = ask(0, 0)
            context = int(first.response["context_slices"])
            if first.response["intensity_scope"] == "specimen" and len(source) > 1:
                planes = [source.plane(z) for z in range(len(source))]
                response = self._post(session, planes, voxel_size_zyx_um, -1, "the stack")
                masks_zyx = decode_tiff_mask(response["mask"])
                yield from (RemotePlane(z, mask_yx, response) for z, mask_yx in enumerate(masks_zyx))
                return
            if context == 0:
                yield first
            pending: deque[Future[RemotePlane]] = deque()
            todo = iter(range(1 if context == 0 else 0, len(source)))
            while True:
                while len(pending) < 2 * self.in_flight and (z := next(todo, None)) is not None:
                    pending.append(pool.submit(ask, z, context))
                if not pending:
                    return
                yield pending.popleft().result()

    def _post(
        self,
        session: requests.Session,
        planes: list[npt.NDArray[np.generic]],
        voxel_size: VoxelSize | None,
        plane: int,
        where: str,
    ) -> dict[str, Any]:
        image = base64.b64encode(encode_image(planes, voxel_size)).decode("ascii")
        params = self.params | {"output": "tiff", "plane": plane}
        body = {"dataframe_split": {"columns": ["image"], "data": [[image]]}, "params": params}
        address = f"{self.url.rstrip('/').removesuffix('/invocations')}/invocations"
        try:
            response = session.post(address, json=body, timeout=(CONNECT_SECONDS, self.timeout_s))
        except requests.RequestException as error:
            raise _connection_error(error, address) from None
        if response.status_code != requests.codes.ok:
            sentence = _error_sentence(response)
            if sentence is None and response.status_code in _STATUS_OF_OTHERS:
                raise MachineError(
                    f"no server of stackseg's ({response.status_code} {response.reason})",
                    where=address,
                    remedy="check the address; `stackseg serve` says it when it starts",
                )
            sentence = sentence or response.reason or "no reason given"
            raise DataError(f"{where} was refused ({response.status_code}): {sentence}", where=address)
        try:
            answer: dict[str, Any] = response.json()["predictions"][0]
            missing = RESPONSE_FIELDS - set(answer)
        except (ValueError, KeyError, IndexError, TypeError):
            missing = RESPONSE_FIELDS
        if missing:
            raise DataError("its answer is no mask of stackseg's", where=address, remedy="check the address")
        return answer


def _session() -> requests.Session:
    """Return a session that comes again when a full server says when (503 with Retry-After)."""
    session = requests.Session()
    retries = Retry(FULL_TRIES, connect=0, read=False, redirect=0, other=0, allowed_methods=None, raise_on_status=False)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retries))
    return session


def encode_image(planes: list[npt.NDArray[np.generic]], voxel_size_zyx_um: VoxelSize | None) -> bytes:
    """Return an OME-TIFF of planes (Y, X, C each), with their voxel size where it is known."""
    stack_zyxc = np.stack(planes)
    metadata: dict[str, Any] = {"axes": "ZCYX"}
    for axis, size in zip("ZYX", voxel_size_zyx_um or (None, None, None), strict=True):
        if size is not None:
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    file = io.BytesIO()
    stack_zcyx = np.moveaxis(stack_zyxc, 3, 1)
    # under its own name tifffile's channels count as a guess
    options: dict[str, Any] = {"photometric": "minisblack", "compression": "zlib", "software": "stackseg"}
    tifffile.imwrite(file, stack_zcyx, ome=True, metadata=metadata, **options)
    return file.getvalue()


# what a server says that has no such address; a proxy before ours says other things
_STATUS_OF_OTHERS = (requests.codes.not_found, requests.codes.method_not_allowed, requests.codes.not_implemented)


def _error_sentence(response: requests.Response) -> str | None:
    """Return the sentence of a refusal, or None where it is not of the form that stackseg's and MLflow's are of."""
    try:
        tree = response.json()
        text = tree.get("error") or tree.get("message")
    except (ValueError, AttributeError):
        return None
    if not isinstance(text, str):
        return None
    sentence = " ".join(text.rpartition("\nError: ")[2].split())[:400]
    return sentence.replace(IGNORE_VOXEL_SIZE, "add --ignore-voxel-size")


def _connection_error(error: requests.RequestException, address: str) -> MachineError:
    found, remedy = f"the server does not answer ({type(error).__name__})", "check the address"
    if isinstance(error, requests.exceptions.MissingSchema | requests.exceptions.InvalidSchema):
        found, remedy = "an address without http", "begin it with http://"
    elif isinstance(error, requests.ReadTimeout):
        remedy = "wait longer by --timeout, or send fewer at a time by --in-flight"
    elif isinstance(error, requests.ConnectionError):
        remedy = "start it with `stackseg serve`, or check the address"
    return MachineError(found, where=address, remedy=remedy)
