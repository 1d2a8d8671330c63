"""Fixtures by which every law of SmaLLM is tested on every kind of it."""

import pytest
import torch
from smallm_kinds import KINDS, make_model

from smallm_hf import SmaLLMForCausalLM


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def model(kind) -> SmaLLMForCausalLM:
    return make_model(kind)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two rows of twelve tokens, none of them special."""
    return torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
