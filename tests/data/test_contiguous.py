"""Rows of windows that go on where the window before them ended."""

import numpy as np
import pytest
import torch

from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.contiguous import ContiguousRows

TOKENS = np.arange(1000, dtype=np.uint16)


def test_each_window_of_a_row_follows_the_one_before_and_each_epoch_begins_anew():
    batches = ContiguousRows(TOKENS, rows=3, context_length=7, seed=5)
    assert batches.windows_per_row == 999 // 21
    updates = [batches.at(3 * update, 3) for update in range(2 * batches.windows_per_row)]
    for number, batch in enumerate(updates):
        assert torch.equal(batch.targets[:, :-1], batch.inputs["input_ids"][:, 1:])
        assert batch.inputs["rows"].tolist() == [0, 1, 2]
        is_first = number % batches.windows_per_row == 0
        assert batch.inputs["begins"].tolist() == [is_first] * 3
        if not is_first:
            assert torch.equal(batch.inputs["input_ids"][:, 0], updates[number - 1].targets[:, -1])


def test_an_epoch_holds_every_token_once_but_for_less_than_a_window_of_each_row_at_the_ends():
    batches = ContiguousRows(TOKENS, rows=3, context_length=7, seed=5)
    seen = batches.at(0, batches.examples_per_epoch).inputs["input_ids"].flatten()
    assert sorted(seen.tolist()) == list(range(batches.offset(0), batches.offset(0) + len(seen)))
    assert len(TOKENS) - 1 - len(seen) == batches.left_over < 21
    cuts = {ContiguousRows(TOKENS, 3, 7, seed).offset(epoch) for seed in (5, 6) for epoch in range(9)}
    assert len(cuts) > 5 and cuts <= {*range(batches.left_over + 1)}


def test_windows_are_the_same_however_they_are_asked_for():
    batches = ContiguousRows(TOKENS, rows=4, context_length=5, seed=1)
    whole = batches.at(0, 2 * batches.examples_per_epoch)
    again = ContiguousRows(TOKENS, rows=4, context_length=5, seed=1)
    for first, count in ((380, 7), (0, 1), (190, 8)):
        part = again.at(first, count)
        assert torch.equal(part.targets, whole.targets[first : first + count])
        for name, tensor in part.inputs.items():
            assert torch.equal(tensor, whole.inputs[name][first : first + count])
        assert part.counted == count * 5


def test_a_text_that_is_too_short_for_the_rows_is_refused():
    with pytest.raises(UserError, match=r"100 tokens, fewer than one window of training.context_length=32 .* 4 rows"):
        ContiguousRows(TOKENS[:100], rows=4, context_length=32, seed=0)
