"""Another runtime gives what torch gives, or says that it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_ensemble import join
from torch import nn

from other_bundles import another
from stackseg.dataset.specimens import find_specimens
from stackseg.errors import MachineError, ModelError
from stackseg.evaluation.compare_runtimes import compare_runtimes
from stackseg.model.bundle import Segmenter, load_bundle, precision_of, read_spec
from stackseg.model.export import export_bundle
from stackseg.model.runtimes import CONVERTED_FILES, CompiledNetwork, convert, open_engine
from stackseg.model.segment import segment
from stackseg.params.inference import Runtime

# tracing asks classes of numpy for what they no longer have
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


def answer(bundle: Segmenter, data: Path, **options: Any) -> Any:
    (specimen,) = find_specimens(data)
    return list(segment(specimen, bundle, probabilities=True, planes=range(2), **options))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_gives_what_torch_gives_for_windows_of_any_size(
    trained: tuple[Any, Any], tmp_path: Path, runtime: Runtime
) -> None:
    project, _ = trained
    model = project.folder / "model"
    by_torch, other = load_bundle(model), load_bundle(model, runtime=runtime)
    assert other.inference.runtime == runtime
    assert other.digest == by_torch.digest
    assert isinstance(other.network, CompiledNetwork)
    for tile, overlap in ((1024, 64), (64, 32)):
        cut = {"tile": tile, "overlap": overlap}
        pairs = zip(
            *(
                answer(replace(one, inference=one.inference.model_copy(update=cut)), project.data)
                for one in (by_torch, other)
            ),
            strict=True,
        )
        for expected, found in pairs:
            np.testing.assert_allclose(found.probabilities_cyx, expected.probabilities_cyx, atol=1e-4)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_export_is_a_bundle_of_its_own(trained: tuple[Any, Any], tmp_path: Path, runtime: Runtime) -> None:
    project, _ = trained
    model, out = project.folder / "model", tmp_path / "exported"
    spec = export_bundle(
        model, runtime, out, lambda one, other: compare_runtimes(one, other, project.catalog, project.data)
    )
    assert {one.name for one in out.iterdir()} == {"bundle.json", "model.safetensors", *CONVERTED_FILES[runtime]}
    assert read_spec(out) == spec
    original = read_spec(model)
    assert (spec.seen, spec.lineage, spec.weights_sha256) == (original.seen, original.lineage, original.weights_sha256)
    assert spec.digest != original.digest
    figures = spec.exported
    assert figures is not None
    assert figures.num_planes == len(project.catalog.planes("validation"))
    assert figures.differing_pixels < 0.01
    assert figures.mean_iou == pytest.approx(figures.mean_iou_torch, abs=0.01)
    assert min(figures.ms_per_megapixel, figures.ms_per_megapixel_torch) > 0
    expected, found = (answer(load_bundle(one), project.data)[0].probabilities_cyx for one in (model, out))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # by torch again
    assert np.array_equal(answer(load_bundle(out, runtime="torch"), project.data)[0].probabilities_cyx, expected)
    with pytest.raises(ModelError, match=f"an export to {runtime} itself; expected the model that it was made of"):
        export_bundle(out, runtime, tmp_path / "again", lambda one, other: pytest.fail("not compared"))
    converted = out / CONVERTED_FILES[runtime][0]
    converted.write_bytes(converted.read_bytes() + b" ")
    with pytest.raises(ModelError, match=rf"{converted.name}: SHA-256 .* Export the model again"):
        load_bundle(out)
    converted.unlink()
    with pytest.raises(ModelError, match="it is not there"):
        load_bundle(out)


def test_members_of_an_ensemble_are_computed_each(trained: tuple[Any, Any], tmp_path: Path) -> None:
    project, _ = trained
    first = project.folder / "model"
    join(tmp_path / "both", project.catalog, first, another(first, tmp_path / "second", offset=900.0))
    expected = answer(load_bundle(tmp_path / "both"), project.data, disagreement=True)
    found = answer(load_bundle(tmp_path / "both", runtime="openvino"), project.data, disagreement=True)
    np.testing.assert_allclose(found[0].probabilities_cyx, expected[0].probabilities_cyx, atol=1e-4)
    np.testing.assert_allclose(found[0].disagreement_yx, expected[0].disagreement_yx, atol=1e-4)


class _OfItsSize(nn.Module):
    """Says something else in images of another size than the one it was traced with."""

    def forward(self, image_bcyx: torch.Tensor) -> torch.Tensor:
        return torch.cat([image_bcyx, image_bcyx + int(image_bcyx.shape[2]) / 64], 1)


class _Sorted(nn.Module):
    def forward(self, image_bcyx: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.sort(image_bcyx.detach().numpy(), axis=3))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_differs_from_torch_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    network = _OfItsSize()
    convert(network, runtime, tmp_path, in_channels=1, tile=64)
    compiled = CompiledNetwork(network, runtime, open_engine(runtime, tmp_path, "fp32"))
    image = torch.rand(1, 1, 64, 64)
    assert torch.allclose(compiled(image), network(image), atol=1e-5)
    with pytest.raises(ModelError, match=rf"{runtime} gives probabilities that differ by 0\.\d+ for windows of 128×64"):
        compiled(torch.rand(1, 1, 128, 64))


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    for runtime in RUNTIMES:
        (tmp_path / CONVERTED_FILES[runtime][0]).write_bytes(b"no network")
        with pytest.raises(ModelError, match=f"{runtime} cannot open it"):
            open_engine(runtime, tmp_path, "fp32")


def test_what_is_not_installed_or_not_for_the_device_is_told(
    trained: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained[0].folder / "model"
    monkeypatch.setattr("stackseg.model.runtimes.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'openvino is not installed. `pip install "stackseg\[openvino\]"`'):
        load_bundle(model, runtime="openvino")
    inference = read_spec(model).inference.model_copy(update={"runtime": "onnxruntime", "precision": "bf16"})
    with pytest.raises(MachineError, match="has no bfloat16 on the CPU"):
        precision_of(inference, torch.device("cpu"))
    with pytest.raises(MachineError, match="device cuda; expected cpu, where onnxruntime computes"):
        precision_of(inference, torch.device("cuda"))
    automatic = inference.model_copy(update={"precision": "auto"})
    assert precision_of(automatic, torch.device("cpu")) == "fp32"
