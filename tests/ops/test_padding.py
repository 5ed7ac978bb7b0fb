import torch
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.ops import pad_left, pad_right, position_ids

ROWS = st.lists(st.lists(st.integers(1, 99), max_size=5), min_size=1, max_size=5)


@given(ROWS)
def test_padding_on_either_side_keeps_the_tokens_in_order(rows):
    for pad in (pad_left, pad_right):
        ids, mask = pad(rows, 7)
        assert ids.dtype == torch.long and mask.dtype == torch.bool
        assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
        assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == rows
        assert (ids[~mask] == 7).all()


def test_padding_stands_on_the_side_it_is_named_for():
    rows = [[5], [1, 2, 3]]
    assert pad_left(rows, 0)[0].tolist() == [[0, 0, 5], [1, 2, 3]]
    assert pad_right(rows, 0)[0].tolist() == [[5, 0, 0], [1, 2, 3]]
    assert pad_left(rows, 0)[1].tolist() == [[False, False, True], [True, True, True]]


def test_no_rows_are_an_empty_batch():
    assert pad_right([], 0)[0].shape == (0, 0)


@given(ROWS, st.integers(0, 4))
def test_positions_count_tokens_however_much_padding_stands_before_and_after(rows, extra):
    _, mask = pad_left(rows, 0)
    wide = torch.nn.functional.pad(mask, (extra, extra))
    for row, kept in zip(position_ids(wide), wide, strict=True):
        assert row[kept].tolist() == list(range(int(kept.sum())))
        assert (row >= 0).all()


def test_a_completion_after_a_left_padded_prompt_goes_on_counting():
    mask = torch.tensor([[False, False, True, True, True, False], [True] * 6])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]]
