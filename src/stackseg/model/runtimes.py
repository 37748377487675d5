"""Networks computed on the CPU by another runtime than torch: ONNX Runtime or OpenVINO."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stackseg.errors import ModelError
from stackseg.model.ensemble_network import EnsembleNetwork
from stackseg.params.inference import Runtime

CONVERTED_FILES: dict[Runtime, tuple[str, ...]] = {
    "torch": (),
    "onnxruntime": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
}
"""What `convert` writes; the first is the one that is opened."""
ALLOWED_DIFFERENCE = 0.01
"""Mean difference of the probabilities from torch's; bfloat16 makes about 0.001."""
_TRACED_SIDE = 256
_COMPILED_SHAPES = 4
"""OpenVINO compiles for a size of windows; so many are kept."""

Engine = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Image (1, I, Y, X) → logits (1, C, Y, X), or of an ensemble the probabilities (M, 1, C, Y, X) of its members."""


class CompiledNetwork(nn.Module):
    """A network that another runtime computes, with the answers of the torch network that it was converted from.

    The first window of each size is computed by both, and compared.

    Parameters
    ----------
    network
        The torch network, as inference uses it, on the CPU.
    runtime
        Which one.
    engine
        From `open_engine`.
    """

    def __init__(self, network: nn.Module, runtime: Runtime, engine: Engine) -> None:
        super().__init__()
        self.network = network
        self._runtime = runtime
        self._engine = engine
        self._checked: set[tuple[int, ...]] = set()

    def forward(self, image_bcyx: Tensor) -> Tensor:
        """Return the logits (B, C, Y, X).

        Raises
        ------
        ModelError
            The runtime does not give what torch gives.
        """
        if isinstance(self.network, EnsembleNetwork):
            return self.member_probabilities(image_bcyx).mean(0).log()
        return self._computed(image_bcyx, lambda logits: logits.softmax(1))

    def member_probabilities(self, image_bcyx: Tensor) -> Tensor:
        """Return the probabilities (M, B, C, Y, X) of the members of an ensemble."""
        return self._computed(image_bcyx, lambda probabilities: probabilities)

    def _computed(self, image_bcyx: Tensor, as_probabilities: Callable[[Tensor], Tensor]) -> Tensor:
        computed = torch.from_numpy(self._engine(np.ascontiguousarray(image_bcyx.numpy(force=True))))
        shape = tuple(image_bcyx.shape)
        if shape not in self._checked:
            with torch.autocast("cpu", enabled=False):
                expected = as_probabilities(_Answer(self.network)(image_bcyx))
            difference = (as_probabilities(computed) - expected).abs().mean().item()
            if not difference <= ALLOWED_DIFFERENCE:  # a NaN is no agreement
                raise ModelError(
                    f"{self._runtime} gives probabilities that differ by {difference:.3f} for windows of "
                    f"{shape[2]}×{shape[3]} pixels",
                    expected=f"{ALLOWED_DIFFERENCE} at most",
                    remedy="this network does not go with it: use the runtime torch",
                )
            self._checked.add(shape)
        return computed


def require_runtime(runtime: Runtime) -> None:
    """Raise ModelError if a runtime is not installed."""
    if find_spec(runtime) is None:
        raise ModelError(f"{runtime} is not installed", remedy=f'`pip install "stackseg[{runtime}]"` installs it')


def convert(network: nn.Module, runtime: Runtime, folder: Path, *, in_channels: int, tile: int) -> None:
    """Write a network in a runtime's format, for images of any size that the network takes.

    Raises
    ------
    ModelError
        It cannot be converted.
    """
    side = min(tile, _TRACED_SIDE)
    example = torch.rand(1, in_channels, side, side).contiguous(memory_format=torch.channels_last)
    path = folder / CONVERTED_FILES[runtime][0]
    write = _write_onnx if runtime == "onnxruntime" else _write_openvino
    try:
        with warnings.catch_warnings():
            # tracing warns of each Python branch on a size; what it gives is compared with torch's
            warnings.simplefilter("ignore")
            write(_Answer(network).eval(), example, path)
    except Exception as error:  # whatever the converters raise of a layer that they do not know
        short = " ".join(str(error).split())[:160]
        raise ModelError(
            f"this network cannot be converted for {runtime} ({short})", remedy="use the runtime torch"
        ) from error


def open_engine(runtime: Runtime, folder: Path, precision: str) -> Engine:
    """Open the files that `convert` wrote.

    Raises
    ------
    ModelError
        They are damaged, or the runtime does not know the precision.
    """
    path = folder / CONVERTED_FILES[runtime][0]
    try:
        return _open_onnx(path) if runtime == "onnxruntime" else _open_openvino(path, precision)
    except Exception as error:  # each runtime has its own
        short = " ".join(str(error).split())[:160]
        raise ModelError(f"{runtime} cannot open it ({short})", where=str(path), remedy="export it again") from error


class _Answer(nn.Module):
    """What is computed by the runtime: logits, or the probabilities of an ensemble's members."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_bcyx: Tensor) -> Tensor:
        if isinstance(self.network, EnsembleNetwork):
            return self.network.member_probabilities(image_bcyx)
        logits_bcyx: Tensor = self.network(image_bcyx)
        return logits_bcyx.float()


def _write_onnx(network: nn.Module, example: Tensor, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # the newer exporter does not come to an end where height and width are open and multiples of 32
    torch.onnx.export(
        network,
        (example,),
        path,
        dynamo=False,
        input_names=["image"],
        output_names=["answer"],
        dynamic_axes={"image": {2: "height", 3: "width"}},
    )


def _open_onnx(path: Path) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image_bcyx: np.asarray(session.run(None, {"image": image_bcyx})[0])


def _write_openvino(network: nn.Module, example: Tensor, path: Path) -> None:
    import openvino

    model = openvino.convert_model(network, example_input=example, input=[1, example.shape[1], -1, -1])
    openvino.save_model(model, path, compress_to_fp16=False)


def _open_openvino(path: Path, precision: str) -> Engine:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    # it takes bfloat16 on its own accord where the processor has it
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled: dict[tuple[int, ...], Any] = {}

    def run(image_bcyx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        shape = image_bcyx.shape
        if shape not in compiled:
            if len(compiled) == _COMPILED_SHAPES:
                del compiled[next(iter(compiled))]
            model.reshape(list(shape))
            compiled[shape] = core.compile_model(model, "CPU", settings)
        # its memory is used again by the next window
        return np.array(compiled[shape](image_bcyx)[0])

    return run
