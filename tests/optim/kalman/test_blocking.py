"""Slices cover a batch once, in order, and are as large as asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkal.optim.kalman.filter import LARGEST_SOLVE, joint_slices

counts = st.integers(1, 300)


@given(
    counts, counts, st.one_of(st.none(), st.just("auto"), counts), st.one_of(st.none(), st.integers(0, 300))
)
def test_every_image_is_in_one_slice(images, m, block, most):
    slices = joint_slices(images, m, block, most)
    assert [i for one in slices for i in range(one.start, one.stop)] == list(range(images))


@pytest.mark.parametrize(
    ("m", "block", "most", "size"),
    [
        (10, None, None, 100),
        (10, 7, None, 7),
        (10, "auto", None, 8),
        (40, "auto", None, LARGEST_SOLVE // 40),
        (1000, "auto", None, 1),
        (1, "auto", None, 8),
        (1, "auto", 1000, 64),  # rows are formed: many scalar outputs go together
        (1, "auto", 5, 5),
        (10, "auto", 0, 1),
    ],
)
def test_the_first_slice(m, block, most, size):
    assert joint_slices(100, m, block, most)[0] == slice(0, size)
