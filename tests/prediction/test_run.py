"""A stack into each kind of file: the pixels are those of segment(), and no call that ends early looks finished."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.v05.image import Image as OmeZarrImage
from ome_zarr_models.v05.image_label import ImageLabel
from PIL import Image

import stackseg.prediction.run as module
from stackseg.dataset.files.inputs import open_input
from stackseg.dataset.files.stack import open_stack
from stackseg.errors import DataError, MachineError
from stackseg.model.bundle import Bundle, load_bundle
from stackseg.model.segment import SegmentedPlane, segment
from stackseg.model.uncertainty import entropy
from stackseg.prediction.outputs import WHOLE, Share, plan_outputs
from stackseg.prediction.part import Part, put_layers
from stackseg.prediction.run import Options, Prediction, predict
from stackseg.prediction.writers import tiff
from stackseg.prediction.writers import zarr as zarr_writer
from tiny_projects import tiny_stack

VOXEL_ZYX = (0.7, 0.25, 0.5)
KINDS = ("m.tif", "m.ome.tif", "m.zarr", "m/")


class Planes:
    """Planes (Y, X, 1) held in memory."""

    def __init__(self, image_zyx: np.ndarray) -> None:
        self._image_zyx = image_zyx

    def __len__(self) -> int:
        return len(self._image_zyx)

    def plane(self, z: int) -> np.ndarray:
        return self._image_zyx[z][:, :, None]


@pytest.fixture(scope="module")
def bundle(trained: tuple[Any, Any]) -> Bundle:
    return load_bundle(trained[0].folder / "model")


@pytest.fixture(scope="module")
def source() -> Planes:
    return Planes(tiny_stack(4, seed=5)[0])


@pytest.fixture(scope="module")
def expected(source: Planes, bundle: Bundle) -> list[SegmentedPlane]:
    return list(segment(source, bundle, probabilities=True))


@pytest.fixture
def run(source: Planes, bundle: Bundle, tmp_path: Path) -> Callable[..., Prediction]:
    def run(
        out: str,
        *,
        resume: bool = False,
        beside: bool = False,
        source: Any = source,
        share: Share = WHOLE,
        put: bool = True,
        **options: Any,
    ) -> Prediction:
        outputs = plan_outputs(f"{tmp_path}/{out}", probabilities=beside, uncertainty=beside)
        given: dict[str, Any] = {
            "voxel_size_zyx_um": VOXEL_ZYX,
            "model": "models:/rock/3",
            "resume": resume,
            "share": share,
            "put": put,
        }
        return predict(source, bundle, outputs, Options(**options), **given)

    return run


def read(path: Path) -> np.ndarray:
    """Return what a result holds, whatever its kind; probabilities are (Z, C, Y, X)."""
    if path.name.endswith(".tif"):
        return np.asarray(tifffile.imread(path))
    if path.suffix == ".zarr":
        array = np.asarray(zarr.open_array(path / "s0", mode="r"))
        return array if array.ndim == 3 else np.moveaxis(array, 0, 1)
    files = sorted(path.glob("*.png"))
    planes = np.stack([np.asarray(Image.open(file)) for file in files])
    return planes if "class" not in files[0].name else planes.reshape(-1, 3, *planes.shape[1:])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


@pytest.mark.parametrize("out", KINDS)
def test_every_kind_holds_what_segment_gives(
    out: str, run: Callable[..., Prediction], expected: list[SegmentedPlane], tmp_path: Path
) -> None:
    done = run(out, beside=True)
    masks_zyx = np.stack([one.mask_yx for one in expected])
    shares_zcyx = np.stack([one.probabilities_cyx for one in expected])  # type: ignore[misc]
    mask, probabilities, uncertainty = done.written
    np.testing.assert_array_equal(read(mask), masks_zyx)
    with open_input(mask) as stack:
        np.testing.assert_array_equal([stack.plane(z)[:, :, 0] for z in range(len(stack))], masks_zyx)
    np.testing.assert_array_equal(read(probabilities), np.rint(shares_zcyx * 255))
    np.testing.assert_array_equal(read(uncertainty), np.rint(np.stack([entropy(one) for one in shares_zcyx]) * 255))
    assert done.pixels == tuple(np.bincount(masks_zyx.ravel(), minlength=3))
    assert sorted(tmp_path.iterdir()) == sorted(done.written)


@pytest.mark.parametrize("out", KINDS)
def test_the_result_says_what_it_is(out: str, run: Callable[..., Prediction], bundle: Bundle, tmp_path: Path) -> None:
    run(out, slices="1:3")
    path = tmp_path / out
    origin = ("models:/rock/3", bundle.digest, "1:3")
    if not out.endswith(".tif"):
        text = (path / ("zarr.json" if out == "m.zarr" else "stackseg.json")).read_text()
        assert all(one in text for one in origin)
        return
    with tifffile.TiffFile(path) as file, open_stack(path) as stack:
        page = file.pages.first
        assert all(one in page.software for one in origin)
        assert stack.info.voxel_size_zyx_um == pytest.approx(VOXEL_ZYX)
        assert page.colormap[:, :3].T.tolist() == [[0, 0, 0], [0, 65535, 0], [65535, 0, 0]]
        assert (file.is_ome, page.is_tiled, file.is_imagej) == (
            (True, True, False) if out == "m.ome.tif" else (False, False, True)
        )


def test_ome_tiff_names_channels_and_classes(run: Callable[..., Prediction], tmp_path: Path) -> None:
    run("m.ome.tif", beside=True)
    with tifffile.TiffFile(tmp_path / "m.ome.tif") as mask:
        assert '<M K="class 2">ore</M>' in mask.ome_metadata
    with tifffile.TiffFile(tmp_path / "m_probabilities.ome.tif") as probabilities:
        assert probabilities.series[0].axes == "ZCYX"
        assert all(f'Name="{name}"' in probabilities.ome_metadata for name in ("void", "grain", "ore"))


def test_a_large_tif_is_a_tiled_ome_bigtiff(
    run: Callable[..., Prediction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("m.tif").large == ()
    monkeypatch.setattr(tiff, "CLASSIC_TIFF_BYTES", 4 * 40 * 48 - 1)
    monkeypatch.setattr(tiff, "TILE", 32)
    assert run("large.tif").large == (tmp_path / "large.tif",)
    with tifffile.TiffFile(tmp_path / "large.tif") as file:
        assert (file.is_bigtiff, file.is_ome, file.pages.first.is_tiled) == (True, True, True)
    np.testing.assert_array_equal(read(tmp_path / "large.tif"), read(tmp_path / "m.tif"))


def test_ome_zarr_is_valid_sharded_and_has_a_pyramid(
    run: Callable[..., Prediction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_writer, "CHUNK", 16)
    run("m.zarr", beside=True)
    group = zarr.open_group(tmp_path / "m.zarr", mode="r")
    label = ImageLabel.from_zarr(group).attributes.ome.image_label
    assert label is not None
    assert [one.rgba for one in label.colors or ()] == [(0, 0, 0, 255), (0, 255, 0, 255), (255, 0, 0, 255)]
    assert [one["class"] for one in group.attrs["ome"]["image-label"]["properties"]] == ["void", "grain", "ore"]  # type: ignore[index, call-overload]
    levels = [group[f"s{level}"] for level in range(3)]
    assert [(one.shape, one.chunks, one.shards) for one in levels] == [  # type: ignore[union-attr]
        ((4, 40, 48), (1, 16, 16), (1, 48, 48)),
        ((4, 20, 24), (1, 16, 16), (1, 32, 32)),
        ((4, 10, 12), (1, 10, 12), (1, 10, 12)),
    ]
    full_zyx = read(tmp_path / "m.zarr")
    for level, array in enumerate(levels):
        np.testing.assert_array_equal(np.asarray(array), full_zyx[:, :: 2**level, :: 2**level])
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]  # type: ignore[index, call-overload]
    scales = [one["coordinateTransformations"][0]["scale"] for one in datasets]  # type: ignore[index, union-attr]
    assert scales == [[0.7, 0.25, 0.5], [0.7, 0.5, 1.0], [0.7, 1.0, 2.0]]
    probabilities = zarr.open_group(tmp_path / "m_probabilities.zarr", mode="r")
    OmeZarrImage.from_zarr(probabilities)
    channels = probabilities.attrs["ome"]["omero"]["channels"]  # type: ignore[index, call-overload]
    assert [one["label"] for one in channels] == ["void", "grain", "ore"]  # type: ignore[index, union-attr]
    OmeZarrImage.from_zarr(zarr.open_group(tmp_path / "m_uncertainty.zarr", mode="r"))


def test_png_planes_are_named_by_their_number_in_the_stack(run: Callable[..., Prediction], tmp_path: Path) -> None:
    source = Planes(np.repeat(tiny_stack(1, seed=2)[0], 12, 0))
    run("m/", source=source, slices="9:11")
    assert sorted(one.name for one in (tmp_path / "m").iterdir()) == ["09.png", "10.png", "stackseg.json"]
    image = Image.open(tmp_path / "m" / "09.png")
    assert (image.mode, image.getpalette()[:9]) == ("P", [0, 0, 0, 0, 255, 0, 255, 0, 0])  # type: ignore[index]


def test_slices_keep_their_neighbours_as_context(
    run: Callable[..., Prediction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = module.segment

    def segment_and_tell(source: Any, *rest: Any, **named: Any) -> Iterator[SegmentedPlane]:
        asked.append((len(source), named["planes"]))
        return real(source, *rest, **named)

    monkeypatch.setattr(module, "segment", segment_and_tell)
    run("m.tif", slices="2:4")
    run("all.tif")
    assert asked == [(4, range(2, 4)), (4, range(4))]
    np.testing.assert_array_equal(read(tmp_path / "m.tif"), read(tmp_path / "all.tif")[2:4])


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[SegmentedPlane], None]:
    """Return a function that puts one plane for each into the place of segment()."""
    return lambda plane: monkeypatch.setattr(
        module, "segment", lambda source, *_, planes, **__: (replace(plane, z=z) for z in planes)
    )


def test_masks_are_cleaned_up_and_counted_so(
    run: Callable[..., Prediction], given: Callable[[SegmentedPlane], None], tmp_path: Path
) -> None:
    mask_yx = np.zeros((9, 9), np.uint8)
    mask_yx[1:6, 1:6] = 1
    mask_yx[3, 3] = 0
    mask_yx[2, 2] = mask_yx[8, 8] = 2
    given(SegmentedPlane(0, mask_yx, None))
    done = run("m.tif", min_object=2, fill_holes=True)
    expected_yx = np.zeros((9, 9))
    expected_yx[1:6, 1:6] = 1
    np.testing.assert_array_equal(read(tmp_path / "m.tif"), [expected_yx] * 4)
    assert done.pixels == (4 * 56, 4 * 25, 0)
    run("plain.tif")
    np.testing.assert_array_equal(read(tmp_path / "plain.tif"), [mask_yx] * 4)


@pytest.mark.parametrize("out", KINDS)
def test_objects_are_numbers_in_every_kind(
    out: str,
    trained_on_discs: tuple[Any, Any],
    source: Planes,
    given: Callable[[SegmentedPlane], None],
    tmp_path: Path,
) -> None:
    objects_yx = np.zeros((40, 48), np.int32)
    objects_yx[1:5, 1:5], objects_yx[7, 7], objects_yx[10:20, 10:20] = 1, 2, 3
    objects_yx[12, 12] = 0
    given(SegmentedPlane(0, (objects_yx > 0).astype(np.uint8), None, objects_yx))
    outputs = plan_outputs(f"{tmp_path}/{out}", probabilities=False, uncertainty=False)
    discs = load_bundle(trained_on_discs[0].folder / "model")
    options = Options(min_object=4, fill_holes=True)
    done = predict(source, discs, outputs, options, voxel_size_zyx_um=None, model="m")
    expected_yx = np.where(objects_yx == 1, 1, 0)
    expected_yx[10:20, 10:20] = 2
    found = read(tmp_path / out)
    assert found.dtype == (np.uint32 if out == "m.zarr" else np.uint16)
    np.testing.assert_array_equal(found, [expected_yx] * 4)
    assert (done.num_objects, done.pixels[1]) == (8, 4 * 116)
    if out == "m.zarr":
        label = ImageLabel.from_zarr(zarr.open_group(tmp_path / out, mode="r")).attributes.ome.image_label
        assert label is not None
        assert label.colors is None


def test_more_objects_than_a_png_can_number_are_refused(
    trained_on_discs: tuple[Any, Any], source: Planes, given: Callable[[SegmentedPlane], None], tmp_path: Path
) -> None:
    many_yx = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    given(SegmentedPlane(0, np.ones((300, 300), np.uint8), None, many_yx))
    outputs = plan_outputs(f"{tmp_path}/m/", probabilities=False, uncertainty=False)
    discs = load_bundle(trained_on_discs[0].folder / "model")
    with pytest.raises(DataError, match="89999 objects in one plane; expected at most 65535"):
        predict(source, discs, outputs, Options(), voxel_size_zyx_um=None, model="m")
    assert list(tmp_path.iterdir()) == []


def test_disagreement_is_written_where_a_model_has_it(
    run: Callable[..., Prediction],
    expected: list[SegmentedPlane],
    given: Callable[[SegmentedPlane], None],
    tmp_path: Path,
) -> None:
    given(replace(expected[0], disagreement_yx=np.full((40, 48), 0.2, np.float32)))
    run("m.tif", beside=True)
    assert (read(tmp_path / "m_disagreement.tif") == 51).all()


@pytest.mark.parametrize("out", KINDS)
@pytest.mark.parametrize("fault", [DataError("broken"), KeyboardInterrupt()])
def test_a_fault_leaves_nothing_that_looks_finished(
    out: str,
    fault: BaseException,
    run: Callable[..., Prediction],
    expected: list[SegmentedPlane],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, planes: range, **__: Any) -> Iterator[SegmentedPlane]:
        yield from (expected[z] for z in planes if z < 3)
        raise fault

    with monkeypatch.context() as there:
        there.setattr(module, "segment", broken)
        with pytest.raises(type(fault)):
            run(out, beside=True)
    assert [one.name for one in tmp_path.iterdir()] == ([] if out.endswith(".tif") else [f"{out.strip('/')}.part"])
    if not out.endswith(".tif"):
        done = run(out, beside=True, resume=True)
        whole = run(f"whole{out[1:]}", beside=True)
        assert done.num_resumed > 0
        assert done.pixels == whole.pixels
        for here, there_ in zip(done.written, whole.written, strict=True):
            assert tree(here) == tree(there_)
        assert not (tmp_path / f"{out.strip('/')}.part").exists()


@pytest.mark.parametrize("out", KINDS)
def test_a_full_disk_is_said_at_once(
    out: str, run: Callable[..., Prediction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stackseg.prediction.writers.png.Path.write_bytes", full)
    monkeypatch.setattr("zarr.storage._local._put", full)
    monkeypatch.setattr("tifffile.TiffWriter.write", full)
    with pytest.raises(MachineError) as caught:
        run(out)
    assert str(caught.value) == (f"{tmp_path / out}: cannot be written: No space left on device. Free some space")
    assert list(tmp_path.iterdir()) == []


def test_another_call_is_not_gone_on_with(run: Callable[..., Prediction], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        there.setattr(Part, "finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run("m.zarr")
    with pytest.raises(DataError, match=r"m\.zarr\.part: begun with other min-object, tta\. Repeat the same command"):
        run("m.zarr", resume=True, tta="flips", min_object=3)
    other = Planes(tiny_stack(4, seed=6)[0])
    with pytest.raises(DataError, match="begun with other input"):
        run("m.zarr", resume=True, source=other)
    assert run("m.zarr", resume=True).num_resumed == 4


class TestShares:
    """Several calls fill one result."""

    @pytest.mark.parametrize("out", ["m.zarr", "m/"])
    @pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
    def test_in_any_order_they_give_the_bytes_of_one_call(
        self, out: str, order: tuple[int, ...], run: Callable[..., Prediction], tmp_path: Path
    ) -> None:
        whole = run(f"whole{out[1:]}", beside=True)
        done = [run(out, beside=True, share=Share(number, 3)) for number in order]
        assert [one.num_waiting for one in done] == [2, 1, 0]
        assert [len(one.written) for one in done] == [0, 0, 3]
        assert sum(one.num_planes for one in done) == whole.num_planes == 4
        assert np.sum([one.pixels for one in done], 0).tolist() == list(whole.pixels)
        for here, there in zip(done[-1].written, whole.written, strict=True):
            assert tree(here) == tree(there)
        assert not (tmp_path / f"{out.strip('/')}.part").exists()

    def test_more_shares_than_planes(self, run: Callable[..., Prediction], tmp_path: Path) -> None:
        whole = run("whole.zarr", slices="1:4")
        done = [run("m.zarr", slices="1:4", share=Share(number, 5)) for number in (1, 2, 3, 4, 5)]
        assert sorted(one.num_planes for one in done) == [0, 0, 1, 1, 1]
        assert tree(tmp_path / "m.zarr") == tree(tmp_path / "whole.zarr")
        assert np.sum([one.pixels for one in done], 0).tolist() == list(whole.pixels)

    def test_they_are_of_one_call(self, run: Callable[..., Prediction]) -> None:
        run("m.zarr", share=Share(1, 2))
        with pytest.raises(DataError, match="begun with other tta"):
            run("m.zarr", share=Share(2, 2), tta="flips")
        with pytest.raises(DataError, match="begun with other parts"):
            run("m.zarr", share=Share(2, 3))
        with pytest.raises(DataError, match=r"m\.zarr\.part: part 1/2 was begun before\. --resume goes on with it"):
            run("m.zarr", share=Share(1, 2))
        assert run("m.zarr", share=Share(1, 2), resume=True).num_resumed == 2

    @pytest.mark.parametrize("fault", [DataError("broken"), KeyboardInterrupt()])
    def test_one_that_was_broken_off_is_gone_on_with(
        self,
        fault: BaseException,
        run: Callable[..., Prediction],
        expected: list[SegmentedPlane],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def broken(*_: Any, planes: range, **__: Any) -> Iterator[SegmentedPlane]:
            yield from (expected[z] for z in planes if z < 3)
            raise fault

        with monkeypatch.context() as there:
            there.setattr(module, "segment", broken)
            with pytest.raises(type(fault)):
                run("m.zarr", beside=True, share=Share(2, 2))
        assert run("m.zarr", beside=True, share=Share(1, 2)).num_waiting == 1
        done = run("m.zarr", beside=True, share=Share(2, 2), resume=True)
        whole = run("whole.zarr", beside=True)
        for here, there_ in zip(done.written, whole.written, strict=True):
            assert tree(here) == tree(there_)

    def test_one_that_is_done_again_changes_nothing(self, run: Callable[..., Prediction], tmp_path: Path) -> None:
        whole = run("whole.zarr")
        for number in (1, 2, 1, 2):
            assert run("m.zarr", share=Share(number, 2), resume=True, put=False).num_planes == 2
        assert not (tmp_path / "m.zarr").exists()
        put_layers(plan_outputs(f"{tmp_path}/m.zarr", probabilities=False, uncertainty=False))
        assert tree(tmp_path / "m.zarr") == tree(whole.written[0])
        assert sorted(one.name for one in tmp_path.iterdir()) == ["m.zarr", "whole.zarr"]

    def test_one_that_failed_at_its_first_plane_may_begin_again(
        self, run: Callable[..., Prediction], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any, **__: Any) -> Iterator[SegmentedPlane]:
            raise DataError("broken")
            yield

        with monkeypatch.context() as there:
            there.setattr(module, "segment", broken)
            with pytest.raises(DataError):
                run("m.zarr", share=Share(1, 2))
        assert run("m.zarr", share=Share(1, 2)).num_waiting == 1

    @pytest.mark.slow
    def test_processes_at_once(self, trained: tuple[Any, Any], tmp_path: Path) -> None:
        image_zyx = tiny_stack(9, seed=5)[0]
        tifffile.imwrite(tmp_path / "in.tif", image_zyx, photometric="minisblack", metadata={"axes": "ZYX"})
        words = ["--probabilities", "--model", str(trained[0].folder / "model"), "--device", "cpu"]
        entry = [sys.executable, "-c", "from stackseg.cli.main import run; run()", "predict", "in.tif"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        calls = [
            subprocess.Popen(
                [*entry, "m.zarr", *words, "--part", f"{number}/3"], cwd=tmp_path, env=env, stdout=subprocess.PIPE,
                text=True,
            )
            for number in (1, 2, 3)
        ]  # fmt: skip
        said = [one.communicate()[0] for one in calls]
        assert [one.returncode for one in calls] == [0, 0, 0]
        assert sum("m.zarr: whole, all 3 parts are there" in one for one in said) >= 1
        subprocess.run([*entry, "whole.zarr", *words], cwd=tmp_path, env=env, check=True, stdout=subprocess.DEVNULL)
        assert tree(tmp_path / "m.zarr") == tree(tmp_path / "whole.zarr")
        assert tree(tmp_path / "m_probabilities.zarr") == tree(tmp_path / "whole_probabilities.zarr")
        left = {one.name for one in tmp_path.iterdir()}
        assert left == {"in.tif", "m.zarr", "m_probabilities.zarr", "whole.zarr", "whole_probabilities.zarr"}


KILLED = """
import os, signal, sys
from pathlib import Path
from stackseg.cli.main import run
from stackseg.prediction.part import Part
noted, note = [], Part.note
def note_or_die(self, place, plane):
    noted.append(plane)
    if len(noted) == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # the third plane is there, and nothing says so
    note(self, place, plane)
Part.note = note_or_die
run()
"""


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with_to_the_same_bytes(trained: tuple[Any, Any], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", tiny_stack(6, seed=5)[0], photometric="minisblack", metadata={"axes": "ZYX"})
    words = ["--probabilities", "--model", str(trained[0].folder / "model"), "--device", "cpu"]

    def call(*python: str, out: str, resume: bool = False) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *python, "predict", "in.tif", out, *words, *(["--resume"] if resume else [])]
        env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert call("-c", KILLED, out="m.zarr").returncode == -signal.SIGKILL
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in.tif", "m.zarr.part"]
    entry = ("-c", "from stackseg.cli.main import run; run()")
    refused = call(*entry, out="m.zarr")
    assert refused.returncode == 1
    assert "m.zarr.part: an earlier call was broken off. --resume goes on with it" in refused.stderr
    resumed = call(*entry, out="m.zarr", resume=True)
    assert "m.zarr: 6 planes by bundle" in resumed.stdout
    assert "2 of them from before" in resumed.stdout
    whole = call(*entry, out="whole.zarr")
    shares = [[line.split()[-1] for line in said.stdout.splitlines()[3:7]] for said in (resumed, whole)]
    assert shares[0] == shares[1]
    assert tree(tmp_path / "m.zarr") == tree(tmp_path / "whole.zarr")
    assert tree(tmp_path / "m_probabilities.zarr") == tree(tmp_path / "whole_probabilities.zarr")
    assert not (tmp_path / "m.zarr.part").exists()
