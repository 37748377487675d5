import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stackseg.model.uncertainty import entropy


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.randoms())
def test_entropy_is_between_the_certain_and_the_undecided_whatever_the_order(shares, random):
    share_c = np.array(shares, np.float32) / np.float32(sum(shares))
    found = entropy(share_c[:, None, None])
    random.shuffle(shares)
    shuffled_c = np.array(shares, np.float32) / np.float32(sum(shares))
    assert 0 <= found.item() <= 1 + 1e-5
    np.testing.assert_allclose(entropy(shuffled_c[:, None, None]), found, rtol=1e-4)


def test_entropy_is_0_for_the_certain_and_1_for_the_undecided():
    probabilities_cyx = np.array([[[1.0, 1 / 3]], [[0.0, 1 / 3]], [[0.0, 1 / 3]]], np.float32)
    np.testing.assert_allclose(entropy(probabilities_cyx), [[0.0, 1.0]], atol=1e-6)
