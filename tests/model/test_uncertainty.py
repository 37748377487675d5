import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from stackseg.model.uncertainty import disagreement, entropy


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


def test_members_that_say_the_same_agree_and_certain_ones_that_differ_do_not():
    of = torch.tensor([[0.5, 0.9, 1.0], [0.5, 0.9, 0.0]])  # members by pixels: the first of two classes
    members_mcyx = torch.stack([of, 1 - of], 1)[:, :, None]
    np.testing.assert_allclose(disagreement(members_mcyx), [[0.0, 0.0, 1.0]], atol=1e-6)


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=5))
def test_disagreement_is_what_the_mean_is_less_sure_of_than_the_members(shares):
    of_m = torch.tensor(shares, dtype=torch.float64)
    found = disagreement(torch.stack([of_m, 1 - of_m], 1)[:, :, None, None]).item()

    def bits(p):
        return -sum(one * math.log2(one) for one in (p, 1 - p))

    expected = bits(sum(shares) / len(shares)) - sum(map(bits, shares)) / len(shares)
    assert abs(found - expected) < 1e-6
    assert 0 <= found <= 1
