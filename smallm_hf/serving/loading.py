"""A model as it is loaded to be served, and what it is called."""

from dataclasses import asdict
from pathlib import Path

from smallm_hf.base.allocation import keep_freed_memory
from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import RUN_MODELS, Loading
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.steps import lay_out_for_decoding
from smallm_hf.inspection import refuse_lookahead
from smallm_hf.pretrained import find_kind, load_causal_lm
from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.observing import LOG, MeasuredWriter, Metrics
from smallm_hf.training.devices import COMPILE_PAYS_TOKENS, resolve_decoding_compile

# Why a model that is not causal has no place behind an API that continues prompts.
OTHERS = {
    "masked": "fills in masks and continues no text; serve a causal model",
    "seq2seq": "is an encoder-decoder: it answers a source, and the API continues prompts; use smallm generate",
}


def load_to_serve(model: str, loading: Loading, serving: Serving, limits: Limits, metrics: Metrics) -> MeasuredWriter:
    """A writer whose model is loaded, compiled and has written.

    Raises:
        UserError: the model cannot be loaded, or is not causal.
    """
    kind = find_kind(model)
    if kind in OTHERS:
        raise UserError(f"{model} {OTHERS[kind]}")
    compiled = resolve_decoding_compile(serving.compile, COMPILE_PAYS_TOKENS, LOG.info)  # a server writes many
    keep_freed_memory()
    loaded, tokenizer = load_causal_lm(model, **asdict(loading))
    refuse_lookahead(loaded)
    engine = Engine(lay_out_for_decoding(loaded), tokenizer)
    writer = MeasuredWriter(engine, metrics, slots=serving.slots, waiting=limits.max_waiting, compile=compiled)
    writer.warm()
    return writer


def served_name(model: str) -> str:
    """What clients call a model: its Hub id, or the name of its folder or run, and not where that lies."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    folder = folder.resolve()
    return folder.parent.name if folder.name in RUN_MODELS and folder.parent.name else folder.name
