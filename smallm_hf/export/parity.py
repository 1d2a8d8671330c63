"""Whether an exported model computes what its source computes: logits and greedy tokens on real prompts.

The source reads a prompt and its own greedy continuation in one pass, without a cache. The export reads the same
tokens as a program would use it: the prompt in one pass, then token by token through its cache. Equal first choices
at every place are equal greedy texts.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.environment import versions
from smallm_hf.base.errors import UserError
from smallm_hf.inspection import evaluation_mode, position_limit
from smallm_hf.models.modeling_smallm import CACHE_NAME
from smallm_hf.tokenizing.encoding import encode_ordinary, start_token_id

# Prose, numbers, code, other scripts, runs of spaces and newlines, and a special token spelled out.
PROMPTS = (
    "Once upon a time, there was a little girl who",
    "In 1998 they sold 12,345 of them for $3.50  (4.1% more); it's what we'd",
    "def mean(values):\n    return sum(values) / len(values)\n\n\nclass",
    "Ünïcödé: naïve café, Привет мир, 你好, مرحبا, ½ × 2³ = 4 and 🙂👍🏽 are",
    "The mark <|endoftext|> ends a text.\n\n\tThe next   one",
)
GREEDY_TOKENS = 16

NextLogits = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its source.

    Attributes:
        difference: largest difference of two logits, as a share of the source's largest absolute logit.
        top1_agreement: share of places with the same first choice. None asks for all of them, but where the source
            itself prefers its choice by no more than `difference`: a tie.
    """

    difference: float
    top1_agreement: float | None = None


# Two orders of adding up the same products in float32 differ by 2e-6 at most on the models this was measured on.
FLOAT32 = Tolerance(1e-4)


@dataclass(frozen=True)
class Runtime:
    """A program that runs an exported model.

    Attributes:
        packages: the distributions it consists of, whose versions are recorded.
        encode: ordinary text to token ids, without any special token.
        begin: begins a text; the function it returns reads the next T tokens and gives their logits, float32 (T, V).
        tolerance: of what it computes.
    """

    packages: tuple[str, ...]
    encode: Callable[[str], list[int]]
    begin: Callable[[], NextLogits]
    tolerance: Tolerance = FLOAT32


def begin_text(model: PreTrainedModel) -> NextLogits:
    """Begins a text with a model of `transformers`, in evaluation mode, and a cache of its own."""
    cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def step(token_ids: Sequence[int]) -> np.ndarray:
        mask = torch.ones(1, cache.get_seq_length() + len(token_ids), dtype=torch.long)
        output = model(torch.tensor([token_ids]), attention_mask=mask, **{CACHE_NAME: cache}, use_cache=True)
        return output.logits[0].float().numpy()

    return step


def torch_runtime(folder: Path, **options: Any) -> Runtime:
    """What `transformers` loads from a folder, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=options.get("gguf_file"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return Runtime(
        ("transformers", "torch"), lambda text: encode_ordinary(tokenizer, [text])[0], partial(begin_text, model)
    )


def check_parity(source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, runtime: Runtime) -> dict[str, Any]:
    """Compares an export with its source, a float32 model on the CPU, and returns what `parity.json` records.

    Raises:
        UserError: the export cuts a text into other tokens, prefers other tokens, or its logits are too far away or
            NaN.
    """
    tolerance = runtime.tolerance
    with evaluation_mode(source):
        records = [_compare(source, tokenizer, runtime, prompt) for prompt in PROMPTS]
    difference = float(np.max([record["relative_difference"] for record in records]))  # NaN stays NaN
    agreement = float(np.average([r["top1_agreement"] for r in records], weights=[r["tokens"] for r in records]))
    equal = sum(record["top1_differences"] - record["ties"] for record in records) == 0
    if not difference <= tolerance.difference:
        raise UserError(
            f"the export's logits differ from the source's by {difference:.2g} of the largest, "
            f"{tolerance.difference:.2g} is allowed; nothing was written, choose another target or type"
        )
    if not (equal if tolerance.top1_agreement is None else agreement >= tolerance.top1_agreement):
        raise UserError(
            f"the export's first choice is the source's at {agreement:.1%} of the places, "
            f"{tolerance.top1_agreement or 1:.1%} is needed; nothing was written, choose another target or type"
        )
    return {
        "engine": {name: importlib.metadata.version(name) for name in runtime.packages},
        "source_class": type(source).__name__,
        "tolerance": asdict(tolerance),
        "max_abs_difference": max(record["max_abs_difference"] for record in records),
        "relative_difference": difference,
        "top1_agreement": agreement,
        "greedy_tokens_equal": all(record["greedy_tokens_equal"] for record in records),
        "ties": sum(record["ties"] for record in records),
        "prompts": records,
        "versions": versions(),
    }


def _compare(
    source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, runtime: Runtime, prompt: str
) -> dict[str, Any]:
    prompt_ids = encode_ordinary(tokenizer, [prompt])[0]
    if (other := runtime.encode(prompt)) != prompt_ids:
        raise UserError(
            f"the export cuts {prompt!r} into {len(other)} tokens that are not the {len(prompt_ids)} of the source's "
            "tokenizer; nothing was written, choose another target"
        )
    start = start_token_id(tokenizer)
    prompt_ids = prompt_ids if start is None else [start, *prompt_ids]
    limit = position_limit(source) or len(prompt_ids) + GREEDY_TOKENS
    new_tokens = min(GREEDY_TOKENS, limit // 2)
    prompt_ids = prompt_ids[: limit - new_tokens]
    token_ids, step = list(prompt_ids), begin_text(source)
    for place in range(new_tokens):  # an eos among them ends nothing
        token_ids.append(int(step(token_ids[-1:] if place else prompt_ids)[-1].argmax()))
    with torch.inference_mode():
        batch = torch.tensor([token_ids])
        expected = source(batch, attention_mask=torch.ones_like(batch), use_cache=False).logits[0].float().numpy()
    step = runtime.begin()
    pieces = [prompt_ids, *([token] for token in token_ids[len(prompt_ids) :])]
    logits = np.concatenate([step(piece) for piece in pieces])

    scale = float(np.abs(expected).max())
    difference = float(np.abs(logits - expected).max())
    chosen = np.take_along_axis(expected, logits.argmax(-1, keepdims=True), -1)[:, 0]
    lead = expected.max(-1) - chosen  # of the source's first choice over the export's; 0 where they are the same
    return {
        "prompt": prompt,
        "tokens": len(token_ids),
        "max_abs_difference": difference,
        "relative_difference": difference / scale,
        "top1_agreement": float((lead == 0).mean()),
        "top1_differences": int((lead > 0).sum()),
        "ties": int(((lead > 0) & (lead <= runtime.tolerance.difference * scale)).sum()),
        "greedy_tokens": new_tokens,
        "greedy_tokens_equal": bool((lead == 0)[len(prompt_ids) - 1 :].all()),
    }
