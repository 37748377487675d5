"""An ensemble answers with the mean of what its members would have answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from other_bundles import another
from stackseg.dataset.specimens import find_specimens
from stackseg.errors import ModelError, StacksegError
from stackseg.model.bundle import ParentRecord, load_bundle, read_bundle
from stackseg.model.ensemble import join_bundles
from stackseg.model.segment import segment
from stackseg.model.uncertainty import disagreement
from stackseg.training.parent import check_parent, read_parent


def join(folder: Path, catalog: Any, *models: Path) -> Any:
    members = [
        (ParentRecord(reference=str(one), digest=spec.digest), spec, weights)
        for one in models
        for spec, weights in [read_bundle(one)]
    ]
    return join_bundles(folder, members, catalog, (None, None))


def probabilities(model: Path, data: Path, **options: Any) -> Any:
    (specimen,) = find_specimens(data)
    bundle = load_bundle(model)
    return np.stack([one.probabilities_cyx for one in segment(specimen, bundle, probabilities=True, **options)])


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_the_answer_is_the_mean_of_the_members(trained: tuple[Any, Any], tmp_path: Path, offset: float) -> None:
    project, _ = trained
    first = project.folder / "model"
    second = another(first, tmp_path / "second", offset=offset)
    joined = join(tmp_path / "both", project.catalog, first, second)
    apart = [probabilities(one, project.data) for one in (first, second)]
    assert np.abs(apart[0] - apart[1]).max() > 0.05
    together = probabilities(tmp_path / "both", project.data)
    np.testing.assert_allclose(together, np.mean(apart, 0), atol=1e-4)
    turned = probabilities(tmp_path / "both", project.data, tta="flips")
    np.testing.assert_allclose(
        turned, np.mean([probabilities(one, project.data, tta="flips") for one in (first, second)], 0), atol=1e-4
    )
    assert load_bundle(tmp_path / "both").digest == joined.digest


def test_how_much_members_differ_is_told_and_changes_nothing_else(trained: tuple[Any, Any], tmp_path: Path) -> None:
    project, _ = trained
    first = project.folder / "model"
    join(tmp_path / "both", project.catalog, first, another(first, tmp_path / "second"))
    (specimen,) = find_specimens(project.data)
    apart = [probabilities(one, project.data) for one in (first, tmp_path / "second")]
    asked = list(segment(specimen, load_bundle(tmp_path / "both"), probabilities=True, disagreement=True))
    assert np.array_equal([one.probabilities_cyx for one in asked], probabilities(tmp_path / "both", project.data))
    for plane, *members in zip(asked, *apart, strict=True):
        expected_yx = disagreement(torch.from_numpy(np.stack(members)))
        np.testing.assert_allclose(plane.disagreement_yx, expected_yx, atol=1e-5)
        assert expected_yx.max() > 0.001
    (single,) = segment(specimen, load_bundle(first), planes=[0], disagreement=True)
    assert single.disagreement_yx is None


def test_it_has_seen_what_its_members_have_seen_and_says_who_they_are(trained: tuple[Any, Any], tmp_path: Path) -> None:
    project, _ = trained
    first = project.folder / "model"
    second = another(first, tmp_path / "second")
    joined = join(tmp_path / "both", project.catalog, first, second)
    apart = [load_bundle(one).spec for one in (first, second)]
    assert set(joined.seen.training) == {*apart[0].seen.training, *apart[1].seen.training}
    assert [one.digest for one in joined.lineage.members] == [one.digest for one in apart]
    assert joined.validation.mean_iou is None
    assert joined.lineage.catalog_digest == project.catalog.digest()
    # in another order it is another model, as digests go
    assert join(tmp_path / "turned", project.catalog, second, first).digest != joined.digest


def test_what_does_not_go_together_is_refused_in_one_line(trained: tuple[Any, Any], tmp_path: Path) -> None:
    project, _ = trained
    first = project.folder / "model"
    renamed = tuple(one.model_copy(update={"name": f"{one.name}s"}) for one in load_bundle(first).inference.classes)
    other = another(first, tmp_path / "other", classes=renamed)
    second = another(first, tmp_path / "second")
    join(tmp_path / "both", project.catalog, first, second)
    for models, words in (
        ((first,), "1 model; expected two at least"),
        ((first, first), "the same model as"),
        ((first, other), "classes: voids, grains, ores; expected void, grain, ore"),
        ((first, tmp_path / "both"), "an ensemble; expected single models"),
    ):
        with pytest.raises(ModelError) as caught:
            join(tmp_path / "refused", project.catalog, *models)
        assert words in caught.value.sentence()
        assert "\n" not in caught.value.sentence()
        assert not (tmp_path / "refused").exists()


def test_no_training_begins_with_an_ensemble(trained: tuple[Any, Any], tmp_path: Path) -> None:
    project, _ = trained
    first = project.folder / "model"
    join(tmp_path / "both", project.catalog, first, another(first, tmp_path / "second"))
    child = project.having({"model.init": str(tmp_path / "both")})
    with pytest.raises(StacksegError, match="is an ensemble; expected a single model"):
        check_parent(read_parent(tmp_path / "both", str(tmp_path / "both")), child.params, child.catalog)
