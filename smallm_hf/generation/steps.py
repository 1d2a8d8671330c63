"""The steps of writing: a model reads what there is of some texts, then one token of each at a time.

Between the tokens stands our own code, which does no more than a cache of keys and values needs, and which may be
compiled; `generate` prepares all of it. A model with a state of another kind is stepped by its own methods, as
`generate` would.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.inspection import position_limit
from smallm_hf.models.modeling_smallm import CACHE_NAME

# The libraries' float32 products on a CPU read a matrix for a few vectors at a fraction of the speed of memory; those
# that Inductor writes come near it. Nothing is chosen by its time, so that the same text is written every time.
OWN_PRODUCTS = {
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP",
    "max_autotune_report_choices_stats": False,
    "autotune_num_choices_displayed": 0,
}
# One for each model and size of cache; past Dynamo's own 8, a process that writes with several would fail.
COMPILED_STEPS = 256
_COMPILING = threading.Lock()  # the settings of the compilers are those of the whole process


def one_step(model: PreTrainedModel, input_ids: torch.Tensor, cache: Cache, **padding: torch.Tensor) -> torch.Tensor:
    """The logits (B, V) after the last of the ids (B, T), which go into the cache."""
    return model(input_ids=input_ids, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1, **padding).logits[:, -1]


@functools.cache
def compiled_step() -> Callable[..., torch.Tensor]:
    """`one_step` compiled: once for each model and shape of batch and cache."""
    return torch.compile(one_step, fullgraph=True, dynamic=False)


@contextmanager
def compiling(model: PreTrainedModel) -> Iterator[None]:
    """What holds while a compiled step is called first, which compiles it: settings of the compilers, one at a time.

    On a CPU the weights become constants of it, laid out for its products: should the model's change, it keeps these.

    Raises:
        UserError: the compiler of this machine fails.
    """
    frozen = {"freezing": model.device.type == "cpu"}
    if frozen["freezing"] and model.dtype == torch.float32:
        frozen |= OWN_PRODUCTS
    with _COMPILING, inductor.patch(**frozen), dynamo.patch(recompile_limit=COMPILED_STEPS):
        try:
            yield
        except (TorchDynamoException, InductorError) as error:
            raise UserError(
                f"compiling fails on this machine ({one_line(error)}); write with --compile false"
            ) from error


def _unmark(cache: Cache) -> None:
    """Copies the tensors of a cache: a step with frozen weights would take those that are marked static for its own."""
    for layer in cache.layers:
        tensors = {name: value for name, value in vars(layer).items() if isinstance(value, torch.Tensor)}
        vars(layer).update({name: tensor.clone() for name, tensor in tensors.items()})


def _carried_along(before: torch.Tensor, rows: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """The next tokens (B, 1) of all rows: those of `rows`, and where a text has ended its last one again."""
    if len(rows) == len(before):
        return tokens
    newest = before[:, -1:].clone()
    newest[rows] = tokens
    return newest


class CachedSteps:
    """The logits of the next tokens, by a model whose state is a cache of keys and values.

    Texts of different length stand side by side behind padding, which nothing sees; those that end leave the cache.
    Those of a compiled step are of one length, and one that ends is carried along: each number of rows is compiled.

    Args:
        model: one that `decodes_directly`.
        texts: token ids (T,) of each, on the device of the model.
        compiled_tokens: compile the step, for a cache of so many tokens; None compiles nothing.
    """

    def __init__(self, model: PreTrainedModel, texts: Sequence[torch.Tensor], compiled_tokens: int | None = None):
        self.model, self.compiles = model, compiled_tokens is not None
        if self.compiles:
            self.cache = fixed_cache(model, compiled_tokens)
        else:
            self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self.tokens = pad_sequence(texts, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True, padding_side="left")
        self.mask = None if mask.all() else mask
        self.step, self.compiling, self.rows = one_step, nullcontext(), list(range(len(texts)))

    def logits(self) -> torch.Tensor:
        """Those after the tokens taken last, (rows, V)."""
        padding = {}
        if self.mask is not None:
            places = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
            padding = {"attention_mask": self.mask, "position_ids": places[:, -self.tokens.shape[1] :]}
        with self.compiling:
            logits = self.step(self.model, self.tokens, self.cache, **padding)
        self.compiling = nullcontext()
        return logits if len(self.rows) == len(logits) else logits[self.rows]

    def go_on(self, rows: Sequence[int], tokens: torch.Tensor) -> None:
        """Takes the next tokens (len(rows), 1) of these rows; the others have ended."""
        if self.compiles and self.step is one_step:  # the texts have been read: only steps of one token are compiled
            _unmark(self.cache)
            self.step, self.compiling = compiled_step(), compiling(self.model)
        if self.compiles:
            self.rows = [self.rows[row] for row in rows]
            tokens = _carried_along(self.tokens, self.rows, tokens)
        elif len(rows) < len(self.tokens):
            self.rows = list(range(len(rows)))
            kept = torch.tensor(rows, device=self.model.device)
            self.cache.batch_select_indices(kept)
            self.mask = None if self.mask is None else self.mask[kept]
        if self.mask is not None:
            self.mask = nn.functional.pad(self.mask, (0, 1), value=1)
        self.tokens = tokens


class OwnSteps:
    """As `CachedSteps`, by the methods that a model has for `generate`, whatever its state is.

    A text that ends is carried along to the last.

    Args:
        model: any that can `generate`.
        token_ids: (B, T), what is there of the texts; of one length, but for a model that padding does not touch.
        inputs: all else that `generate` prepared for the model.
    """

    def __init__(self, model: PreTrainedModel, token_ids: torch.Tensor, inputs: dict[str, Any]):
        self.model, self.token_ids, self.inputs = model, token_ids, inputs
        self.rows, self.begins = list(range(len(token_ids))), True

    def logits(self) -> torch.Tensor:
        """As those of `CachedSteps`; a model that keeps no state reads everything again."""
        last = None if self.begins or not self.inputs.get("use_cache") else 1
        asked = {"next_sequence_length": last, "is_first_iteration": self.begins, **self.inputs}
        outputs = self.model(**self.model.prepare_inputs_for_generation(self.token_ids, **asked), return_dict=True)
        two_sides = self.model.config.is_encoder_decoder
        self.inputs = self.model._update_model_kwargs_for_generation(outputs, self.inputs, is_encoder_decoder=two_sides)
        self.begins = False
        return outputs.logits[self.rows, -1]

    def go_on(self, rows: Sequence[int], tokens: torch.Tensor) -> None:
        """As that of `CachedSteps`."""
        self.rows = [self.rows[row] for row in rows]
        self.token_ids = torch.cat([self.token_ids, _carried_along(self.token_ids, self.rows, tokens)], dim=1)


def decodes_directly(model: PreTrainedModel) -> bool:
    """Whether `CachedSteps` can step a model: its state is a cache of keys and values, and its step one graph."""
    return getattr(model, "_can_compile_fullgraph", False) and not getattr(model, "_is_stateful", False)


def fixed_cache(model: PreTrainedModel, tokens: int) -> StaticCache:
    """A cache for a compiled step and that many tokens at least; few sizes, so that few steps are compiled."""
    limit = position_limit(model)
    size = 1 << (tokens - 1).bit_length()
    return StaticCache(config=model.config, max_cache_len=size if limit is None else min(limit, size))


def lay_out_for_decoding(model: PreTrainedModel) -> PreTrainedModel:
    """Stores the weights of linear maps by columns, where that makes them faster to multiply with one vector.

    The values stay, and so does the shape. On a CPU in float32, the libraries' product reads the usual rows of small
    matrices at half the speed of memory, and columns at nearly all of it. To be saved, a model is loaded again.
    """
    if model.device.type == "cpu" and model.dtype == torch.float32:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.T.contiguous().T
    return model
