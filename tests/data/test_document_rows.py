"""Documents as rows, which train and are scored each by itself."""

import numpy as np
import pytest

from smallm_hf.base.errors import UserError
from smallm_hf.config import parse_command_line
from smallm_hf.data.batches.base import IGNORED
from smallm_hf.data.batches.documents import DocumentRows, rows_of
from smallm_hf.data.configuration import BatchingConfig

EOS = 9
DOCUMENTS = [[1, 2], [3], [1, 1, 1, 1, 1, 1, 1, 2], [], [4, 5, 6]]  # an eos behind each makes 3, 2, 9, 1, 4 tokens
TOKENS = np.array([token for document in DOCUMENTS for token in [*document, EOS]], np.uint16)
LENGTHS = np.array([len(document) + 1 for document in DOCUMENTS])


def rows(context_length=4, seed=0) -> DocumentRows:
    return DocumentRows(TOKENS, LENGTHS, context_length, seed)


def test_each_row_begins_with_the_eos_before_its_document_and_longer_ones_go_on():
    batches = rows()
    batch = batches.at(0, batches.examples_per_epoch)
    assert batches.examples_per_epoch == 7
    found = zip(batch.inputs["input_ids"].tolist(), batch.targets.tolist(), strict=True)
    no = IGNORED
    assert sorted(found) == sorted(
        [
            ([EOS, 1, 2, EOS], [1, 2, EOS, no]),
            ([EOS, 3, EOS, EOS], [3, EOS, no, no]),
            ([EOS, 1, 1, 1], [1, 1, 1, 1]),
            ([1, 1, 1, 1], [1, 1, 1, 2]),
            ([2, EOS, EOS, EOS], [EOS, no, no, no]),
            ([EOS, EOS, EOS, EOS], [EOS, no, no, no]),
            ([EOS, 4, 5, 6], [4, 5, 6, EOS]),
        ]
    )
    assert batch.counted == batches.counted(0, 7) == len(TOKENS)


def test_rows_come_once_an_epoch_the_same_however_they_are_cut_and_in_another_order_next_time():
    batches = rows()
    whole = batches.at(0, 21)
    parts = [batches.at(first, 3) for first in range(0, 21, 3)]
    assert whole.targets.tolist() == [row for part in parts for row in part.targets.tolist()]
    assert whole.counted == sum(part.counted for part in parts) == 3 * len(TOKENS)
    epochs = [whole.targets[start : start + 7].tolist() for start in (0, 7, 14)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    assert whole.targets.tolist() != rows(seed=1).at(0, 21).targets.tolist()


@pytest.mark.parametrize("context_length", [1, 3, 100])
def test_rows_hold_every_token_once(context_length):
    starts, lengths = rows_of(LENGTHS, context_length)
    places = [place for start, length in zip(starts, lengths, strict=True) for place in range(start, start + length)]
    assert places == list(range(len(TOKENS)))
    assert lengths.max() <= context_length


@pytest.mark.parametrize("other", [{"stride": 2}, {"within_documents": True}, {"carry_state": True}])
def test_what_reads_across_documents_is_refused(other):
    (name,) = other
    with pytest.raises(UserError, match=rf"batching.document_rows=true reads each .*, and batching.{name}=.* does not"):
        BatchingConfig(document_rows=True, **other)


def test_shorter_rows_and_mixtures_are_refused():
    words = ["--batching.document_rows", "true", "--training.max_steps", "1"]
    with pytest.raises(UserError, match=r"document_rows=true reads its rows whole, and training.length_warmup=\[64\]"):
        parse_command_line("test", [*words, "--training.length_warmup", "[64]"], training=True)
    sources = '[{"source": "a.txt", "weight": 1}]'
    with pytest.raises(UserError, match=r"document_rows=true reads one text as it is, and data.sources with weights"):
        parse_command_line("test", [*words, "--data.sources", sources], training=True)
