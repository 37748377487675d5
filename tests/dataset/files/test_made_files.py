"""Made files of every kind: each pixel is what was written, or there is a note, or the file is refused."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stackseg.dataset.files.stack import open_stack
from stackseg.dataset.labels.codes import raw_counts
from stackseg.dataset.specimens import SpecimenNote, open_files
from stackseg.errors import DataError

PHOTOMETRICS = ("minisblack", "miniswhite", "rgb", "palette", "separated", "ycbcr", "cielab", "icclab", "itulab", "cfa")
CODECS = (None, "deflate", "lzw", "zstd", "packbits", "lzma", "png", "jpeg", "jpeg2000", "webp", "jpegxl", "lerc")
DTYPES = ("?", "u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8")


@dataclass(frozen=True)
class Made:
    """What a file was made of; `pixels` is (Z, Y, X) or (Z, Y, X, S)."""

    pixels: npt.NDArray[np.generic]
    options: dict[str, Any]


@st.composite
def files(draw: st.DrawFn) -> Made:
    """Draw the pixels of a file and how tifffile is to write them."""
    photometric = draw(st.sampled_from(PHOTOMETRICS))
    samples = draw(st.sampled_from({"rgb": (3, 3, 4), "separated": (4,)}.get(photometric, (3,))))
    if photometric in ("minisblack", "miniswhite", "palette", "cfa"):
        samples = draw(st.sampled_from((1, 1, 2, 3, 4))) if photometric[:3] == "min" else 1
    kinds = ("u1", "u2") if photometric == "palette" else DTYPES if samples == 1 else DTYPES[1:]
    dtype = np.dtype(draw(st.sampled_from(kinds)))
    shape = (draw(st.integers(1, 4)), 32, 48) + ((samples,) if samples > 1 else ())
    values = np.random.default_rng(draw(st.integers(0, 9))).integers(0, draw(st.sampled_from((2, 4, 200))), shape)
    if draw(st.booleans()) and samples == 4:
        values[..., 3] = draw(st.sampled_from((0, 255)))
    planar = draw(st.sampled_from(("contig", "separate"))) if samples > 1 else "contig"
    pixels = values.astype(dtype)
    if samples > 1 and planar == "separate":
        pixels = np.moveaxis(pixels, 3, 1)
    axes = "ZYX" if samples == 1 else "ZYXS" if planar == "contig" else "ZSYX"
    headers = ("none", "axes", "ome", "imagej") if photometric in ("minisblack", "rgb") else ("none", "axes", "ome")
    header = draw(st.sampled_from(headers))
    options: dict[str, Any] = {
        "photometric": photometric,
        "planarconfig": planar if samples > 1 else None,
        "compression": draw(st.sampled_from(CODECS)),
        "predictor": draw(st.booleans()) or None,
        "byteorder": draw(st.sampled_from("<>")),
        "bigtiff": draw(st.booleans()),
        "tile": draw(st.sampled_from((None, (16, 16)))),
        "rowsperstrip": draw(st.sampled_from((None, 8))),
        "metadata": None if header == "none" else {"axes": axes},
        "ome": header == "ome",
        "imagej": header == "imagej",
        "software": draw(st.sampled_from(("tifffile", "another"))),
    }
    if photometric == "palette":
        options["colormap"] = np.random.default_rng(1).integers(0, 65535, (3, 2 ** (8 * dtype.itemsize)), np.uint16)
    if samples == 4 and photometric == "rgb":
        options["extrasamples"] = draw(st.sampled_from((None, ["unassalpha"], ["assocalpha"], ["unspecified"])))
    if orientation := draw(st.sampled_from((None, None, None, 1, *range(2, 9)))):
        options["extratags"] = [(274, "H", 1, orientation, True)]
    if options["tile"]:
        options["rowsperstrip"] = None
    return Made(pixels, options)


def write(path: Path, made: Made) -> None:
    """Write a file; combinations that tifffile knows nothing of are no examples."""
    file = io.BytesIO()
    try:
        tifffile.imwrite(file, made.pixels, **made.options)
    except Exception:  # whatever a codec or tifffile itself refuses
        assume(False)
    path.write_bytes(file.getvalue())


def as_written(made: Made) -> npt.NDArray[np.generic]:
    """Return the pixels as (Z, Y, X, S)."""
    pixels = made.pixels
    if pixels.ndim == 3:
        return pixels[..., None]
    return pixels if made.options["planarconfig"] == "contig" else np.moveaxis(pixels, 1, 3)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_pixels_are_as_written_or_noted_or_the_file_is_refused(made: Made) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.tif"
        write(path, made)
        written = as_written(made)
        try:
            with open_stack(path) as stack:
                planes = [stack.plane(z) for z in range(len(stack))]
                info = stack.info
        except DataError:
            return
        assert made.options["photometric"] in ("minisblack", "miniswhite", "rgb", "palette", "ycbcr")
        assert made.options.get("extratags", [(0, 0, 0, 1)])[0][3] == 1
        found = np.stack(planes)
        assert found.dtype == (np.uint8 if written.dtype == np.bool_ else written.dtype)
        if found.shape == written.shape and np.array_equal(found, written):
            return
        alpha_left_out = found.shape == written[..., :-1].shape and np.array_equal(found, written[..., :-1])
        said = " ".join(info.notes)
        assert "exact" in said or "YCbCr" in said or (alpha_left_out and "dropped" in said)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_masks_keep_apart_what_was_written_apart(made: Made) -> None:
    with tempfile.TemporaryDirectory() as folder:
        image, mask = Path(folder) / "i.tif", Path(folder) / "m.tif"
        written = as_written(made)
        tifffile.imwrite(image, np.zeros(written.shape[:3], np.uint8), photometric="minisblack", metadata=None)
        write(mask, made)
        try:
            specimen = open_files("made", image, mask, SpecimenNote())
            counts = [raw_counts(specimen.raw_mask(z), where="m") for z in specimen.labelled]
        except DataError:
            return
        alpha_dropped = any("dropped" in note for note in specimen.notes())
        lossy = any("exact" in note or "YCbCr" in note for note in specimen.notes())
        for page_yxs, found in zip(written, counts, strict=True):
            kept = page_yxs[..., :-1] if alpha_dropped else page_yxs
            kept = np.where(kept[..., 3:] == 0, 0, kept) if kept.shape[2] == 4 else kept  # unseen
            sizes = np.unique(kept.reshape(-1, kept.shape[2]), axis=0, return_counts=True)[1]
            assert lossy or sorted(sizes.tolist()) == sorted(found.values())
