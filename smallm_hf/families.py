"""What kinds of language models there are, and how each is loaded."""

from typing import Any, Literal

from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import Loading
from smallm_hf.pretrained import existing_device, find_model, load_causal_lm, load_for_use

Kind = Literal["causal", "seq2seq", "masked"]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
MASKED_CLASS = "ForMaskedLM"


def find_kind(model: str) -> Kind:
    """The family of a folder or Hub id, by its config.

    Raises:
        UserError: it cannot be found.
    """
    written = find_model(model, lambda **options: PreTrainedConfig.get_config_dict(model, **options)[0])
    if written.get("is_encoder_decoder"):
        return "seq2seq"
    return "masked" if any(name.endswith(MASKED_CLASS) for name in written.get("architectures") or ()) else "causal"


def kind_of(model: PreTrainedModel) -> Kind:
    """The family of a loaded model."""
    if model.config.is_encoder_decoder:
        return "seq2seq"
    return "masked" if type(model).__name__.endswith(MASKED_CLASS) else "causal"


def require_writer(model: PreTrainedModel) -> None:
    """Refuses a model that cannot write a text.

    Raises:
        UserError: it is masked.
    """
    if kind_of(model) == "masked":
        raise UserError(f"{type(model).__name__} fills in masks and writes no text; leave out --generate and --speed")


def load_scorable(model: str, **loading: Any) -> Loaded:
    """Loads a model of any family and its tokenizer; arguments and errors are those of `load_causal_lm`."""
    kind = find_kind(model)
    if kind == "causal":
        return load_causal_lm(model, **loading)
    asked = Loading(**loading)
    found_device = existing_device(asked.device)
    model_class = {"masked": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}[kind]

    def load(**options: bool) -> Loaded:
        options["trust_remote_code"] = asked.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
        return load_for_use(model_class, model, asked.dtype, found_device, **options), tokenizer

    return find_model(model, load)
