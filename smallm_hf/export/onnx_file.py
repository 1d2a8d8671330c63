"""An ONNX graph with a key-value cache, named and laid out as ONNX Runtime's users expect.

`onnx/model.onnx` with configs and tokenizer above it is where transformers.js and optimum look. Inputs are
`input_ids`, `attention_mask`, `position_ids` and `past_key_values.N.key|value`, which begin empty; outputs are `logits`
and `present.N.key|value`. Batch, length and cached length are free.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.export.native import plain_config
from smallm_hf.export.parity import NextLogits, Runtime
from smallm_hf.models.modeling_smallm import CACHE_NAME
from smallm_hf.tokenizing.encoding import encode_ordinary
from smallm_hf.tokenizing.loading import save_tokenizer

ONNX_FILE = "onnx/model.onnx"
# A file of the format may not reach 2 GiB; larger weights lie beside the graph.
LARGEST_FILE_BYTES = 2_000_000_000


class _Step(nn.Module):
    """One call of the graph: the cache comes in and goes out as flat tensors, key and value of each layer in turn."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **{CACHE_NAME: DynamicCache(ddp_cache_data=zip(past[::2], past[1::2], strict=True))},
        )
        present = [tensor for layer in output[CACHE_NAME].layers for tensor in (layer.keys, layer.values)]
        return output.logits, *present


def write_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Runtime:
    """Writes the graph in float32, configs and tokenizer, and returns ONNX Runtime with them, on the CPU."""
    import onnx_ir

    config = plain_config(model.config)
    model = model.float().eval()
    model.set_attn_implementation("eager")  # its graph is the smallest
    # Inputs to trace with: lengths that differ, and none of 0 or 1, which the tracer would take for constants.
    batch, length, past = 2, 3, 5
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = [f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")]
    example = {
        "input_ids": torch.zeros(batch, length, dtype=torch.long),
        "attention_mask": torch.ones(batch, past + length, dtype=torch.long),
        "position_ids": torch.arange(past, past + length).repeat(batch, 1),
        **{f"past_key_values.{name}": torch.zeros(batch, heads, past, head_dim) for name in cached},
    }
    with warnings.catch_warnings():  # axes share their names on purpose
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Step(model),
            tuple(example.values()),
            dynamo=True,
            verbose=False,
            input_names=list(example),
            output_names=["logits", *(f"present.{name}" for name in cached)],
            dynamic_shapes={
                "input_ids": {0: "batch_size", 1: "sequence_length"},
                "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
                "position_ids": {0: "batch_size", 1: "sequence_length"},
                "past": ({0: "batch_size", 2: "past_sequence_length"},) * len(cached),
            },
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    file = folder / ONNX_FILE
    file.parent.mkdir()
    is_large = sum(parameter.nbytes for parameter in model.parameters()) > LARGEST_FILE_BYTES
    onnx_ir.save(program.model, file, external_data=f"{file.name}_data" if is_large else None)
    config.architectures = [type(model).__name__]
    config.to_json_file(folder / "config.json")
    model.generation_config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, tokenizer.model_max_length)
    return _onnx_runtime(folder)


def _onnx_runtime(folder: Path) -> Runtime:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cache_inputs = session.get_inputs()[3:]

    def begin() -> NextLogits:
        # (B, G, S, K), still without a position
        past = [np.zeros((1, cached.shape[1], 0, cached.shape[3]), np.float32) for cached in cache_inputs]

        def step(token_ids: Sequence[int]) -> np.ndarray:
            past_length = past[0].shape[2]
            length = past_length + len(token_ids)
            feeds = {
                "input_ids": np.array([token_ids]),
                "attention_mask": np.ones((1, length), np.int64),
                "position_ids": np.arange(past_length, length)[None],
            }
            feeds |= {cached.name: tensor for cached, tensor in zip(cache_inputs, past, strict=True)}
            logits, *past[:] = session.run(None, feeds)
            return logits[0]

        return step

    return Runtime(("onnxruntime",), lambda text: encode_ordinary(tokenizer, [text])[0], begin)
