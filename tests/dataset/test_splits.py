from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackseg.dataset.splits import Part, PlaneRef, assign_parts
from stackseg.errors import DataError, ParamsError
from stackseg.params.split import ExplicitSplit, SplitParams

HELD_OUT = ("validation", "test")
quick = settings(deadline=None, max_examples=60)


def stack(num_planes: int, name: str = "a", step: int = 1) -> list[PlaneRef]:
    return [PlaneRef(name, z) for z in range(0, num_planes * step, step)]


def split(**values: Any) -> SplitParams:
    return SplitParams.model_validate(values)


def planes_of(parts: dict[PlaneRef, Part], *wanted: str) -> set[PlaneRef]:
    return {ref for ref, part in parts.items() if part in wanted}


@st.composite
def specimens(draw: st.DrawFn) -> list[PlaneRef]:
    """Draw annotated planes of one to four specimens, some of them sparse."""
    refs = []
    for name in "abcd"[: draw(st.integers(1, 4))]:
        zs = draw(st.sets(st.integers(0, 90), min_size=1, max_size=40))
        refs += [PlaneRef(name, z) for z in zs]
    return refs


@st.composite
def splits(draw: st.DrawFn, *methods: str) -> SplitParams:
    folds = draw(st.integers(2, 6))
    return split(
        method=draw(st.sampled_from(methods)),
        validation=draw(st.floats(0.05, 0.45)),
        test=draw(st.floats(0.05, 0.45)),
        gap=draw(st.integers(0, 4)),
        folds=folds,
        fold=draw(st.none() | st.integers(0, folds - 1)),
    )


def grouped(refs: list[PlaneRef], size: int = 4) -> dict[PlaneRef, str]:
    # groups may span specimens: tiles of one slide under two names
    return {ref: str(ref.z // size) for ref in refs}


METHODS = ("blocks", "specimens", "groups", "random")


class TestEveryMethod:
    @given(specimens(), splits(*METHODS), st.integers(0, 5))
    @quick
    def test_a_plane_has_one_part_and_no_part_is_empty(
        self, refs: list[PlaneRef], chosen: SplitParams, seed: int
    ) -> None:
        try:
            parts = assign_parts(refs, chosen, seed, grouped(refs))
        except DataError as error:
            assert error.remedy  # noqa: PT017 - whether it raises is what is drawn
            assert "part is empty" in error.found  # noqa: PT017
            return
        assert parts.keys() == set(refs)
        assert {"training", *HELD_OUT} <= set(parts.values()) <= {"training", "gap", *HELD_OUT}
        assert ("gap" in parts.values()) <= (chosen.method == "blocks" and chosen.gap > 0)

    @given(specimens(), splits(*METHODS), st.integers(0, 5), st.randoms())
    @quick
    def test_order_does_not_matter(self, refs: list[PlaneRef], chosen: SplitParams, seed: int, rng: Any) -> None:
        shuffled = list(refs)
        rng.shuffle(shuffled)
        results = []
        for one in (refs, shuffled, refs):
            try:
                results.append(assign_parts(one, chosen, seed, grouped(refs)))
            except DataError as error:
                results.append(error.sentence())
        assert results[0] == results[1] == results[2]

    @given(specimens(), st.sampled_from(METHODS), st.integers(2, 6), st.integers(0, 5))
    @quick
    def test_the_test_part_knows_no_folds(self, refs: list[PlaneRef], method: str, folds: int, seed: int) -> None:
        found = set()
        for fold in (None, *range(folds)):
            try:
                parts = assign_parts(refs, split(method=method, folds=folds, fold=fold), seed, grouped(refs))
            except DataError:
                continue
            found.add(frozenset(planes_of(parts, "test")))
        assert len(found) <= 1

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("folds", [2, 3, 5])
    def test_over_all_folds_each_plane_validates_once(self, method: str, folds: int) -> None:
        refs = [ref for name in "abcdefg" for ref in stack(17, name)]
        groups = {ref: f"{ref.specimen}{ref.z // 4}" for ref in refs}
        times: Counter[PlaneRef] = Counter()
        test: set[PlaneRef] = set()
        for fold in range(folds):
            parts = assign_parts(refs, split(method=method, gap=0, folds=folds, fold=fold), 7, groups)
            test = planes_of(parts, "test")
            times.update(planes_of(parts, "validation"))
        assert times.keys() == set(refs) - test
        assert set(times.values()) == {1}

    @pytest.mark.parametrize("method", ["specimens", "groups", "random"])
    def test_the_seed_shuffles(self, method: str) -> None:
        refs = [ref for name in "abcdefg" for ref in stack(12, name)]
        chosen = split(method=method)
        found = {frozenset(planes_of(assign_parts(refs, chosen, seed, grouped(refs, 2)), "test")) for seed in range(6)}
        assert len(found) > 1

    @pytest.mark.parametrize("method", METHODS)
    def test_shares(self, method: str) -> None:
        refs = [ref for number in range(20) for ref in stack(20, f"s{number:02}")]
        parts = assign_parts(refs, split(method=method, validation=0.2, test=0.1, gap=0), 1, grouped(refs, 1))
        counts = Counter(parts.values())
        assert (counts["validation"], counts["test"], counts["training"]) == (80, 40, 280)

    def test_the_split_of_a_seed_never_changes(self) -> None:
        """Catalogues of the past stay what they were."""
        refs = [ref for name in "abcdefgh" for ref in stack(3, name)]
        by_specimen = assign_parts(refs, split(method="specimens"), 7)
        assert {ref.specimen for ref in planes_of(by_specimen, "test")} == {"g"}
        assert {ref.specimen for ref in planes_of(by_specimen, "validation")} == {"h"}


class TestBlocks:
    @given(specimens(), splits("blocks"))
    @quick
    def test_held_out_parts_are_contiguous(self, refs: list[PlaneRef], chosen: SplitParams) -> None:
        try:
            parts = assign_parts(refs, chosen, 0)
        except DataError:
            return
        for name in {ref.specimen for ref in refs}:
            ordered = [parts[ref] for ref in sorted(refs) if ref.specimen == name]
            for part in HELD_OUT:
                if part in ordered:
                    first = ordered.index(part)
                    assert set(ordered[first : first + ordered.count(part)]) == {part}

    @given(specimens(), splits("blocks"))
    @quick
    def test_the_gap_is_kept_in_slices_of_the_stack(self, refs: list[PlaneRef], chosen: SplitParams) -> None:
        try:
            parts = assign_parts(refs, chosen, 0)
        except DataError:
            return
        for one in refs:
            for other in refs:
                pair = {parts[one], parts[other]}
                if one.specimen == other.specimen and len(pair) == 2 and "gap" not in pair:
                    assert abs(one.z - other.z) > chosen.gap

    @given(specimens(), splits("blocks"))
    @quick
    def test_no_plane_is_left_out_without_need(self, refs: list[PlaneRef], chosen: SplitParams) -> None:
        try:
            parts = assign_parts(refs, chosen, 0)
        except DataError:
            return
        for ref in planes_of(parts, "gap"):
            near = [
                other
                for other in planes_of(parts, *HELD_OUT)
                if other.specimen == ref.specimen and abs(other.z - ref.z) <= chosen.gap
            ]
            assert near

    def test_a_stack(self) -> None:
        parts = assign_parts(stack(20), split(validation=0.2, test=0.2, gap=2), 0)
        letters = "".join(parts[ref][0] for ref in stack(20))
        assert letters == "t" * 8 + "g" * 2 + "v" * 4 + "g" * 2 + "t" * 4
        assert planes_of(parts, "test") == {PlaneRef("a", z) for z in range(16, 20)}

    def test_sparse_planes_need_no_gap(self) -> None:
        parts = assign_parts(stack(10, step=50), split(gap=2), 0)
        assert "gap" not in parts.values()

    def test_three_planes_give_one_each(self) -> None:
        parts = assign_parts(stack(3), split(gap=0), 0)
        assert [parts[ref] for ref in stack(3)] == ["training", "validation", "test"]

    def test_a_small_specimen_trains(self) -> None:
        refs = stack(20) + stack(2, "b")
        parts = assign_parts(refs, split(), 0)
        assert {parts[ref] for ref in stack(2, "b")} == {"training"}

    def test_a_share_larger_than_what_the_gap_leaves(self) -> None:
        # one plane is left of the four outside the test part: not enough for two parts
        with pytest.raises(DataError, match="the training part is empty"):
            assign_parts(stack(5), split(validation=0.5, test=0.2, gap=3), 0)


class TestUnits:
    @given(specimens(), splits("groups", "specimens"), st.integers(0, 5))
    @quick
    def test_a_unit_never_straddles(self, refs: list[PlaneRef], chosen: SplitParams, seed: int) -> None:
        groups = grouped(refs)
        try:
            parts = assign_parts(refs, chosen, seed, groups)
        except DataError:
            return
        seen: dict[str, set[str]] = {}
        for ref in refs:
            unit = groups[ref] if chosen.method == "groups" else ref.specimen
            seen.setdefault(unit, set()).add(parts[ref])
        assert all(len(one) == 1 for one in seen.values())


class TestTooLittle:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("num_planes", [1, 2])
    def test_planes(self, method: str, num_planes: int) -> None:
        refs = stack(num_planes)
        with pytest.raises(DataError, match="part is empty: ") as caught:
            assign_parts(refs, split(method=method), 0, grouped(refs, 1))
        assert "annotate at least three planes" in caught.value.remedy

    def test_none_at_all(self) -> None:
        with pytest.raises(DataError, match="Annotate at least three planes"):
            assign_parts([], split(), 0)

    @pytest.mark.parametrize(
        ("values", "remedy"),
        [
            ({"method": "blocks", "gap": 5}, "split.gap to 0"),
            ({"method": "specimens"}, "at least three specimens"),
            ({"method": "groups"}, "at least three groups"),
            ({"method": "random", "folds": 9, "fold": 8}, "lower split.folds"),
            ({"method": "groups", "folds": 9, "fold": 8}, "lower split.folds"),
            ({"method": "blocks", "gap": 0, "folds": 9, "fold": 0}, "lower split.folds"),
        ],
    )
    def test_the_remedy_fits_the_method(self, values: dict[str, Any], remedy: str) -> None:
        refs = stack(6)
        groups = grouped(refs, 1 if values.get("folds") else 4)
        with pytest.raises(DataError) as caught:
            assign_parts(refs, split(**values), 0, groups)
        assert remedy.lower() in str(caught.value).lower()


def explicit(**named: list[str]) -> SplitParams:
    return split(method="explicit", explicit=ExplicitSplit(**named))


class TestExplicit:
    def test_planes_and_ranges(self) -> None:
        refs = stack(10) + stack(3, "b") + stack(2, "c d.e")
        chosen = explicit(validation=["a/3", "a/5-6"], test=["b/*", "a/9-20"], unused=["a/7-8", "c d.e/*"])
        parts = assign_parts(refs, chosen, 0)
        assert planes_of(parts, "validation") == {PlaneRef("a", z) for z in (3, 5, 6)}
        assert planes_of(parts, "test") == {*stack(3, "b"), PlaneRef("a", 9)}
        assert planes_of(parts, "unused") == {PlaneRef("a", 7), PlaneRef("a", 8), *stack(2, "c d.e")}
        assert planes_of(parts, "training") == {PlaneRef("a", z) for z in (0, 1, 2, 4)}

    def test_a_plane_may_be_named_twice_for_the_same_part(self) -> None:
        parts = assign_parts(stack(9), explicit(validation=["a/3", "a/3-4"], test=["a/8"]), 0)
        assert len(planes_of(parts, "validation")) == 2

    @pytest.mark.parametrize("name", ["a/10", "b/1", "b/*", "a/6-3", "a/10-99"])
    @pytest.mark.parametrize("part", ["validation", "test", "unused"])
    def test_names_of_nothing(self, name: str, part: str) -> None:
        named: dict[str, list[str]] = {"validation": ["a/1"], "test": ["a/2"]}
        named[part] = [*named.get(part, []), name]
        with pytest.raises(ParamsError) as caught:
            assign_parts(stack(10), explicit(**named), 0)
        assert str(caught.value).startswith(f"split.explicit.{part}: {name} names no annotated plane. ")

    def test_named_for_two_parts(self) -> None:
        with pytest.raises(ParamsError, match="a/3 is named for validation and for test"):
            assign_parts(stack(10), explicit(validation=["a/3-4"], test=["a/2-3"]), 0)

    def test_a_part_that_is_not_named(self) -> None:
        with pytest.raises(DataError, match="the validation part is empty"):
            assign_parts(stack(10), explicit(test=["a/2-3"]), 0)

    @pytest.mark.parametrize("folds", [2, 4])
    def test_folds_rotate_validation_among_what_is_neither_test_nor_unused(self, folds: int) -> None:
        refs = stack(10) + stack(5, "b")
        named = {"method": "explicit", "explicit": {"validation": ["a/0"], "test": ["a/9"], "unused": ["a/8"]}}
        times: Counter[PlaneRef] = Counter()
        for fold in range(folds):
            parts = assign_parts(refs, split(**named, folds=folds, fold=fold), 0)
            assert planes_of(parts, "test") == {PlaneRef("a", 9)}
            assert planes_of(parts, "unused") == {PlaneRef("a", 8)}
            times.update(planes_of(parts, "validation"))
        assert times.keys() == set(refs) - {PlaneRef("a", 8), PlaneRef("a", 9)}
        assert set(times.values()) == {1}
