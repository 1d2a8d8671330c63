"""A carried state: what a row has read before is read into each of its windows, and gradients end there."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from smallm_hf import RecurrentConfig, RecurrentForCausalLM
from smallm_hf.data.batches.contiguous import ContiguousRows
from smallm_hf.training.carried import CarriedLanguageModelling

ROWS, LENGTH = 4, 6
TOKENS = np.random.default_rng(0).integers(0, 40, ROWS * LENGTH * 3 + 1)


def make(cell_type: str, **options) -> tuple[CarriedLanguageModelling, ContiguousRows]:
    torch.manual_seed(0)
    model = RecurrentForCausalLM(RecurrentConfig(vocab_size=40, hidden_size=12, cell_type=cell_type))
    objective = CarriedLanguageModelling(model, rows=ROWS, **{"compile": False, "chunked": False, **options})
    return objective, ContiguousRows(TOKENS, ROWS, LENGTH, seed=0)


def nats_of(objective: CarriedLanguageModelling, batches: ContiguousRows, first: int, count: int) -> torch.Tensor:
    return objective(**batches.at(first, count).to(torch.device("cpu")))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("cell_type", ["rnn", "gru", "lstm"])
def test_windows_one_after_the_other_cost_what_the_whole_stretch_costs(cell_type, chunked):
    objective, batches = make(cell_type, chunked=chunked)
    nats = sum(nats_of(objective, batches, ROWS * window, ROWS) for window in range(3))
    inputs = torch.from_numpy(TOKENS[:-1]).view(ROWS, 3 * LENGTH)
    targets = torch.from_numpy(TOKENS[1:])
    expected = F.cross_entropy(objective.model(inputs).logits.flatten(0, 1), targets, reduction="sum")
    assert batches.left_over == 0
    assert nats.item() == pytest.approx(expected.item(), rel=1e-5)
    # The next epoch begins with an empty state.
    first = nats_of(objective, batches, 3 * ROWS, ROWS)
    assert first.item() == nats_of(make(cell_type, chunked=chunked)[0], batches, 0, ROWS).item()


def test_rows_in_several_micro_steps_carry_their_own_state():
    whole, batches = make("lstm")
    parts, _ = make("lstm")
    for first in range(0, 3 * ROWS, ROWS):
        expected = nats_of(whole, batches, first, ROWS)
        found = sum(nats_of(parts, batches, first + row, 2) for row in (0, 2))
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_gradient_reaches_the_window_before():
    objective, batches = make("gru")
    nats_of(objective, batches, 0, ROWS).backward()
    assert not any(part.requires_grad for state in objective.carried for part in state)
    objective.zero_grad()
    nats_of(objective, batches, ROWS, ROWS).backward()  # through a freed graph it would raise
    assert objective.model.model.layers[0].cell.weight_hh_l0.grad.abs().max() > 0


def test_what_was_carried_is_replaced_and_never_changed():
    objective, batches = make("lstm")
    nats_of(objective, batches, 0, ROWS)
    kept = objective.carried
    copies = [[part.clone() for part in state] for state in kept]
    first = nats_of(objective, batches, ROWS, ROWS)
    assert all(torch.equal(a, b) for x, y in zip(kept, copies, strict=True) for a, b in zip(x, y, strict=True))
    objective.carried = kept  # as an update that is taken back leaves it
    assert nats_of(objective, batches, ROWS, ROWS).item() == first.item()


@pytest.mark.slow
@pytest.mark.parametrize("cell_type", ["rnn", "gru", "lstm"])
def test_a_compiled_loss_carries_the_same_state(cell_type):
    plain, batches = make(cell_type)
    compiled, _ = make(cell_type, compile=True)
    for first in range(0, 3 * ROWS, ROWS):
        expected, found = nats_of(plain, batches, first, ROWS), nats_of(compiled, batches, first, ROWS)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        found.backward()
