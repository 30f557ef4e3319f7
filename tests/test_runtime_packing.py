"""Packing of memory: nothing that lives together overlaps, and it is tighter than greedily."""

from hypothesis import given
from hypothesis import strategies as st

from qbee.runtime.packing import Block, Packing

BLOCKS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(-1, 6), st.integers(0, 4)), min_size=1, max_size=9
).map(lambda drawn: [Block(size, first, first + length) for size, first, length in drawn])


def overlaps(packing, offsets):
    return [
        (i, j)
        for i, a in enumerate(packing.blocks)
        for j in packing.meeting[i]
        if j < i
        and offsets[i] < offsets[j] + packing.blocks[j].size_bytes
        and offsets[j] < offsets[i] + a.size_bytes
    ]


@given(BLOCKS)
def test_blocks_that_live_together_never_overlap_and_no_head_is_below_the_bound(blocks):
    packing = Packing(blocks)
    for offsets in (packing.greedy(), packing.tight(20)):
        assert overlaps(packing, offsets) == []
        assert min(offsets) >= 0
        assert packing.head_bytes(offsets) >= packing.bound_bytes


def test_a_search_finds_the_bound_where_the_largest_first_do_not():
    blocks = [
        Block(2, 1, 3),
        Block(1, 1, 1),
        Block(4, 3, 4),
        Block(3, 2, 3),
        Block(4, 4, 5),
        Block(1, 4, 4),
    ]
    packing = Packing(blocks)
    assert packing.head_bytes(packing.greedy()) == 10
    assert packing.head_bytes(packing.tight(100)) == packing.bound_bytes == 9


def test_fixed_blocks_stay_where_they_are():
    packing = Packing([Block(4, 0, 1), Block(2, 0, 1), Block(3, 0, 1)])
    assert packing.greedy({1: 3}) == [5, 3, 0]
