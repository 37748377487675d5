"""The mean over xy, xz and yz sections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stackseg.dataset.specimens import find_specimens
from stackseg.errors import DataError, ParamsError
from stackseg.model.bundle import load_bundle
from stackseg.model.orthogonal import mean_over_sections, require_isotropic
from stackseg.model.segment import segment
from stackseg.training.export import inference_spec

VOLUME_ZYXC = np.random.default_rng(0).random((5, 7, 9, 2), np.float32)


def along_rows(image_abi: np.ndarray) -> torch.Tensor:
    """Return the running sum of the first channel along the second axis of a section: (1, A, B)."""
    return torch.from_numpy(np.cumsum(image_abi[:, :, 0], axis=1))[None]


def test_each_voxel_has_the_mean_of_the_three_sections_through_it() -> None:
    volume_zyx = VOLUME_ZYXC[:, :, :, 0]
    # in xy and xz sections the second axis is x, in yz sections it is y
    expected_zyx = (2 * np.cumsum(volume_zyx, axis=2) + np.cumsum(volume_zyx, axis=1)) / 3
    for planes in (range(5), [3, 1]):
        found = list(mean_over_sections(5, planes, lambda z: VOLUME_ZYXC[z], 0, along_rows))
        np.testing.assert_allclose(np.stack([one[0] for one in found]), expected_zyx[list(planes)], rtol=1e-5)


def test_sections_across_come_with_their_neighbours() -> None:
    def last_channel(image_abi: np.ndarray) -> torch.Tensor:
        assert image_abi.shape[2] == 3 * 2
        return torch.from_numpy(image_abi[None, :, :, 4].copy())  # the first channel of the next section

    volume_zyx = VOLUME_ZYXC[:, :, :, 0]
    expected_zyx = sum(
        np.take(volume_zyx, [*range(1, size), size - 2], axis) for axis, size in enumerate(volume_zyx.shape)
    )
    found = list(mean_over_sections(5, range(5), lambda z: VOLUME_ZYXC[z], 1, last_channel))
    np.testing.assert_allclose(np.stack([one[0] for one in found]), expected_zyx / 3, rtol=1e-5)


def test_segment_averages_probabilities_and_a_model_may_say_so(trained: tuple[Any, Any]) -> None:
    project, _ = trained
    (specimen,) = find_specimens(project.data)
    bundle = load_bundle(project.folder / "model")
    asked = list(segment(specimen, bundle, probabilities=True, orthogonal=True))
    own = replace(bundle, inference=bundle.inference.model_copy(update={"orthogonal": True}))
    said = list(segment(specimen, own, probabilities=True, planes=[4]))
    assert np.array_equal(said[0].probabilities_cyx, asked[4].probabilities_cyx)
    flat = [one.probabilities_cyx for one in segment(specimen, bundle, probabilities=True)]
    assert np.array_equal(
        [one.probabilities_cyx for one in segment(specimen, own, probabilities=True, orthogonal=False)], flat
    )
    found = np.stack([one.probabilities_cyx for one in asked])
    assert np.abs(found - np.stack(flat)).max() > 0.01
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-4)
    assert np.array_equal(found.argmax(1), [one.mask_yx for one in asked])


def test_what_has_no_sections_across_is_refused(trained: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="one plane; expected a stack"):
        next(mean_over_sections(1, [0], lambda z: VOLUME_ZYXC[z], 0, along_rows))
    with pytest.raises(DataError, match=r"plane 3: 6×9 pixels; expected 7×9, as plane 0"):
        next(mean_over_sections(5, [0], lambda z: VOLUME_ZYXC[z, z == 3 :], 0, along_rows))
    with pytest.raises(DataError, match=r"rock: voxels of 2 × 1 × 1 µm .* expected equal sides"):
        require_isotropic((2.0, 1.0, 1.0), "rock")
    for fitting in (None, (1.0, 1.1, 1.0), (None, 0.5, 0.5)):
        require_isotropic(fitting, "rock")
    project, _ = trained
    params = project.params.override({"inference.orthogonal": True})
    (specimen,) = project.catalog.specimens
    images = project.catalog.model_copy(update={"specimens": (specimen.model_copy(update={"is_stack": False}),)})
    with pytest.raises(ParamsError, match="is single images; expected stacks"):
        inference_spec(params, images)
