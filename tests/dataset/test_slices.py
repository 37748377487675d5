from __future__ import annotations

import pytest

from stackseg.dataset.slices import planes_of
from stackseg.errors import ParamsError


def test_they_are_counted_as_in_python() -> None:
    assert planes_of(None, 7) == range(7)
    assert planes_of("2:5", 7) == range(2, 5)
    assert planes_of(":5", 7) == range(5)
    assert planes_of("5:", 7) == range(5, 7)


@pytest.mark.parametrize("wrong", ["5", "5:5", "6:2", "0:8", "-2:", "1:2:3", "a:b", "7:", "²:3", ""])
def test_they_have_to_be_there(wrong: str) -> None:
    with pytest.raises(ParamsError, match=r"--slices: .*; expected A:B with 0 ≤ A < B ≤ 7"):
        planes_of(wrong, 7)
