"""An n-gram language model: what followed the last few tokens, by tables that were counted and not trained.

The probability of a token after a context is what the context's own table gives it, plus what that table leaves over
times the probability after the context without its oldest token: interpolated smoothing, Kneser-Ney's for example
(Chen and Goodman 1999, section 2.8). Every token of the vocabulary has some probability after every context.

Shapes: B batch, T positions, V vocabulary, N n-grams of one length.
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from .configuration_ngram import NgramConfig

UNSEEN = -1  # in place of the number of a context that has no table
PROBABILITIES_AT_ONCE = 1 << 22  # so many are worked on in one go: the rest of a large batch waits as logits


class NgramTable(nn.Module):
    """The n-grams of one length, in order.

    An n-gram is a context and a word. A context of one token has that token's id as its number, a longer one its place
    in the table of n-grams of its own length, of which it is one: prefixes of texts form a tree.

    Attributes:
        keys: (N,) int64, ascending: number of the context x V + word.
        probabilities: (N,) float32, of the word after the context, without what shorter contexts add.
        backoffs: float32, for each context of one token less, what its n-grams here leave over; 1 where it has none.
    """

    def __init__(self, keys: torch.Tensor, probabilities: torch.Tensor, backoffs: torch.Tensor):
        super().__init__()
        self.keys, self.probabilities, self.backoffs = map(nn.Buffer, (keys, probabilities, backoffs))

    @classmethod
    def empty(cls, size: int, contexts: int) -> "NgramTable":
        """A table that is about to be read from a file, or for which nothing was counted."""
        return cls(torch.zeros(size, dtype=torch.int64), torch.zeros(size), torch.ones(contexts))

    def find(self, keys: torch.Tensor) -> torch.Tensor:
        """The places of keys in the table, `UNSEEN` for those it does not hold."""
        places = torch.searchsorted(self.keys, keys)
        return torch.where(torch.searchsorted(self.keys, keys, right=True) > places, places, UNSEEN)

    def interpolate(self, probabilities: torch.Tensor, contexts: torch.Tensor) -> None:
        """Turn probabilities after shorter contexts, (rows, V), into those after these, (rows,), in place."""
        vocab_size = probabilities.shape[-1]
        left_over = self.backoffs[contexts.clamp(min=0)].masked_fill(contexts == UNSEEN, 1.0)
        probabilities *= left_over[:, None]
        begins = torch.searchsorted(self.keys, contexts * vocab_size)
        sizes = torch.searchsorted(self.keys, (contexts + 1) * vocab_size) - begins  # 0 for what is unseen
        rows = torch.repeat_interleave(sizes)
        within = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[rows]
        entries = begins[rows] + within
        probabilities[rows, self.keys[entries] % vocab_size] += self.probabilities[entries].float()


class NgramForCausalLM(PreTrainedModel, GenerationMixin):
    """The tables as a language model: its logits are log-probabilities. It has no parameter to train.

    The beginning of a row, what stands behind left padding, and what a context was never followed by in the counted
    text are alike: the tokens that are there are read, as far back as their table reaches. Tables that were counted
    within documents hold no n-gram across an eos, so that nothing is read across it.
    """

    config: NgramConfig
    _is_stateful = True  # no cache that could be cut back, which assisted generation needs
    # In 16 bits probabilities would no longer add up to one.
    _keep_in_fp32_modules_strict = ("unigrams", "probabilities", "backoffs")

    def __init__(self, config: NgramConfig):
        config.validate_architecture()  # its fields may have been set since it was made
        super().__init__(config)
        sizes = [config.vocab_size, *config.ngrams]
        self.unigrams = nn.Buffer(torch.full((config.vocab_size,), 1 / config.vocab_size))
        self.tables = nn.ModuleList(NgramTable.empty(sizes[i], sizes[i - 1]) for i in range(1, len(sizes)))
        self.post_init()

    def fill(self, unigrams: torch.Tensor, tables: list[NgramTable]) -> None:
        """Take counted tables, of n-grams of 2, 3 ... `order` tokens, and the probabilities (V,) of single tokens."""
        self.unigrams, self.tables = nn.Buffer(unigrams), nn.ModuleList(tables)
        self.config.ngrams = [len(table.keys) for table in tables]

    @property
    def device(self) -> torch.device:
        """Where the tables are; the library asks parameters."""
        return self.unigrams.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the probabilities in the tables."""
        return self.unigrams.dtype

    @can_return_tuple
    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
    ) -> CausalLMOutput:
        """Log-probabilities of the next token, and the loss where `labels` are given.

        Args:
            input_ids: Tokens, (B, T).
            attention_mask: 1 for tokens, 0 for padding, (B, T).
            position_ids: Place of each token in its text, (B, T); where it restarts, another text begins. Without it
                places are counted from the first token that is no padding.
            labels: Tokens to predict, (B, T), equal to `input_ids` and shifted in here; -100 is not counted.
            use_cache: Without effect: there is no state beside the tokens.
            logits_to_keep: Number of last positions, or indices of positions, to score; 0 scores all.
            num_items_in_batch: What the summed loss is divided by in place of the counted labels.

        Returns:
            `loss` in nats per counted label and `logits`, (B, T, V) float32, of which each row of V is normalised.
        """
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        contexts = self._contexts(input_ids, position_ids)  # (B, T, n - 1)
        logits = self._log_probabilities(slice_logits_to_keep(contexts, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutput(loss=loss, logits=logits)

    def _contexts(self, input_ids: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """The numbers of the contexts of 1, 2 ... n - 1 tokens that end at each position, (B, T, n - 1)."""
        contexts = [input_ids]
        for table in self.tables[:-1]:
            before = nn.functional.pad(contexts[-1][:, :-1], (1, 0), value=UNSEEN)
            if places is not None:
                before = before.masked_fill(places == 0, UNSEEN)
            keys = before * self.config.vocab_size + input_ids
            contexts.append(table.find(keys.masked_fill(before == UNSEEN, UNSEEN)))
        return torch.stack(contexts, dim=-1)[..., : len(self.tables)]

    def _log_probabilities(self, contexts: torch.Tensor) -> torch.Tensor:
        """Of every token after contexts (..., n - 1), the longest of which that was seen speaks first."""
        vocab_size = self.config.vocab_size
        probabilities = self.unigrams.float().repeat(*contexts.shape[:-1], 1)
        rows, wanted = probabilities.view(-1, vocab_size), contexts.flatten(0, -2)
        step = max(1, PROBABILITIES_AT_ONCE // vocab_size)
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            for table, numbers in zip(self.tables, wanted[part].unbind(-1), strict=True):
                if len(table.keys):
                    table.interpolate(rows[part], numbers)
            rows[part].log_()
        return probabilities

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> dict:
        """The last n - 1 tokens: nothing else is read, so that a step takes equally long however long the text is."""
        size = max(1, self.config.context_size)
        mask = None if attention_mask is None else attention_mask[:, -size:]
        return {"input_ids": input_ids[:, -size:], "attention_mask": mask, "logits_to_keep": 1}
