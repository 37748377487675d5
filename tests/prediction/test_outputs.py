"""What OUT means by its name, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackseg.errors import DataError, ParamsError
from stackseg.prediction.outputs import Share, parse_share, plan_outputs, require_free


def planned(out: str | Path) -> object:
    return plan_outputs(str(out), probabilities=False, uncertainty=False)


@pytest.mark.parametrize(
    ("out", "kind", "probabilities"),
    [
        ("a/m.tif", "tiff", "a/m_probabilities.tif"),
        ("m.v2.TIFF", "tiff", "m.v2_probabilities.TIFF"),
        ("m.ome.tif", "ome-tiff", "m_probabilities.ome.tif"),
        ("m.zarr", "zarr", "m_probabilities.zarr"),
        ("m.zarr/", "zarr", "m_probabilities.zarr"),
        ("m.ome.zarr", "zarr", "m_probabilities.ome.zarr"),
        ("planes", "png", "planes_probabilities"),
        ("v1.2/", "png", "v1.2_probabilities"),
    ],
)
def test_the_name_says_what_is_written(out: str, kind: str, probabilities: str) -> None:
    outputs = plan_outputs(out, probabilities=True, uncertainty=True)
    assert outputs.kind == kind
    assert outputs.layers == ("mask", "probabilities", "uncertainty", "disagreement")
    assert outputs.path("probabilities") == Path(probabilities)
    assert outputs.path("mask") == Path(out)


def test_an_unknown_suffix_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        planned("mask.jpg")
    assert str(caught.value) == (
        "OUT: a file named mask.jpg; expected .tif, .ome.tif, .zarr, or a folder of PNGs. For a folder of that name, "
        "`mask.jpg/`"
    )


def refusal(
    out: Path | str, image: Path, *, overwrite: bool = False, resume: bool = False, beside: bool = False
) -> str:
    outputs = plan_outputs(str(out), probabilities=beside, uncertainty=False)
    try:
        require_free(outputs, image, overwrite=overwrite, resume=resume)
    except DataError as error:
        return str(error)
    return ""


def test_what_is_there_is_replaced_only_when_asked_and_only_if_it_is_a_result(tmp_path: Path) -> None:
    image = tmp_path / "image.tif"
    image.touch()
    (tmp_path / "photos").mkdir()
    assert refusal(tmp_path / "m.tif", image) == ""
    assert refusal(tmp_path / "photos", image).endswith("the folder is there already. Name another, or add --overwrite")
    assert refusal(tmp_path / "photos", image, overwrite=True) == ""  # it is empty
    (tmp_path / "photos" / "me.png").touch()
    assert "a folder that `predict` has not written" in refusal(tmp_path / "photos", image, overwrite=True)
    (tmp_path / "photos" / "stackseg.json").touch()
    assert refusal(tmp_path / "photos", image, overwrite=True) == ""
    (tmp_path / "m_probabilities.tif").touch()
    assert refusal(tmp_path / "m.tif", image) == ""
    assert "m_probabilities.tif: the file is there already" in refusal(tmp_path / "m.tif", image, beside=True)
    assert refusal(tmp_path / "m.tif", image, beside=True, overwrite=True) == ""
    other = tmp_path / "other.zarr"
    other.mkdir()
    (other / "zarr.json").write_text('{"attributes": {}}')
    assert "has not written" in refusal(other, image, overwrite=True)
    (other / "zarr.json").write_text('{"attributes": {"stackseg": {}}}')
    assert refusal(other, image, overwrite=True) == ""


def test_out_lies_beside_in(tmp_path: Path) -> None:
    image = tmp_path / "in.zarr"
    image.mkdir()
    assert "would replace the image" in refusal(image, image, overwrite=True)
    assert "lie in one another" in refusal(image / "m.tif", image)
    assert "lie in one another" in refusal(tmp_path, image, overwrite=True)
    assert "no folder" in refusal(tmp_path / "there" / "m.tif", image)


def test_only_what_grows_in_a_folder_is_gone_on_with(tmp_path: Path) -> None:
    image = tmp_path / "in.tif"
    said = refusal(tmp_path / "m.tif", image, resume=True)
    assert said.endswith("m.tif: a TIFF cannot be gone on with. Write a .zarr or a folder with --resume")
    assert refusal(tmp_path / "m.zarr", image, resume=True) == ""
    (tmp_path / "m.zarr.part").mkdir()
    assert "--resume goes on with it, --overwrite begins anew" in refusal(tmp_path / "m.zarr", image)
    assert refusal(tmp_path / "m.zarr", image, resume=True) == refusal(tmp_path / "m.zarr", image, overwrite=True) == ""


@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 70))
def test_shares_divide_the_planes_in_their_order(first: int, num: int, of: int) -> None:
    planes = range(first, first + num)
    shares = [Share(number, of).planes(planes) for number in range(1, of + 1)]
    assert [z for one in shares for z in one] == list(planes)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/2/3", "", "1.0/2"])
def test_a_share_that_is_none(text: str) -> None:
    with pytest.raises(ParamsError, match=r"--part: .* expected I/N with 1 ≤ I ≤ N"):
        parse_share(text)


def test_what_several_write_grows_and_replaces_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image.tif"
    image.touch()
    assert (parse_share("2/3"), parse_share(None)) == (Share(2, 3), Share(1, 1))
    for out, overwrite, told in (
        ("m.tif", False, "not written by several processes"),
        ("m.zarr", True, "would replace"),
    ):
        outputs = plan_outputs(f"{tmp_path}/{out}", probabilities=False, uncertainty=False)
        with pytest.raises(DataError, match=told):
            require_free(outputs, image, overwrite=overwrite, resume=True, shared=True)
    outputs = plan_outputs(f"{tmp_path}/m.zarr", probabilities=False, uncertainty=False)
    require_free(outputs, image, overwrite=False, resume=False, shared=True)
