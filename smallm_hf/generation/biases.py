"""What a request adds to the logits, or takes from them, before temperature and all else that it asks for."""

import torch

from smallm_hf.generation.request import Request


class Biases:
    """A bias for some tokens, and penalties for those that the continuation holds already, as OpenAI defines them.

    Args:
        request: with `logit_bias`, `presence_penalty` or `frequency_penalty`.
        vocab_size: the number of logits.
        device: theirs.
    """

    def __init__(self, request: Request, vocab_size: int, device: torch.device):
        self.request = request
        self.written = torch.zeros(vocab_size, device=device)  # how often the continuation holds each token
        self.bias = torch.zeros(vocab_size, device=device)
        for token_id, bias in request.logit_bias:
            self.bias[token_id] += bias

    def add(self, token_id: int) -> None:
        """A token that was written."""
        self.written[token_id] += 1

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores (1, V) with all of it."""
        penalty = self.request.presence_penalty * (self.written > 0) + self.request.frequency_penalty * self.written
        return scores + self.bias - penalty
