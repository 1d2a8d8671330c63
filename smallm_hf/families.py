"""What the rest of the package must know about a family of models: an entry for each of ours, one rule for all others.

A new family is two files in `models/` and one call of `register` here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto
from transformers.pytorch_utils import Conv1D

from smallm_hf.base.errors import UserError
from smallm_hf.models.configuration_feedforward import FeedForwardConfig
from smallm_hf.models.configuration_ngram import NgramConfig
from smallm_hf.models.configuration_recurrent import RecurrentConfig
from smallm_hf.models.configuration_smallm import NATIVE_SWITCHES, SmaLLMConfig, native_type
from smallm_hf.models.modeling_feedforward import FeedForwardForCausalLM, FeedForwardModel
from smallm_hf.models.modeling_ngram import NgramForCausalLM
from smallm_hf.models.modeling_recurrent import RecurrentForCausalLM, RecurrentModel
from smallm_hf.models.modeling_smallm import SmaLLMForCausalLM, SmaLLMModel

Kind = Literal["causal", "seq2seq", "masked"]
AUTO_CLASSES: dict[Kind, type] = {
    "causal": auto.AutoModelForCausalLM,
    "seq2seq": auto.AutoModelForSeq2SeqLM,
    "masked": auto.AutoModelForMaskedLM,
}
TRAINABLE = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
}
# What scripts/export.py writes.
TARGETS = frozenset({"native", "gguf", "onnx"})


def linear_weights(model: PreTrainedModel) -> Iterable[nn.Parameter]:
    """The weights of all linear layers; the output head among them counts as a table all the same."""
    return (module.weight for module in model.modules() if isinstance(module, nn.Linear | Conv1D))


def transformer_flops(model: PreTrainedModel, context_length: int) -> int:
    """6 for each weight that multiplies, and 12 x layers x width x context for attention where there is any.

    What multiplies is every matrix but the tables, whose look-up is free, and the output head, tied or not (Kaplan et
    al. 2020, section 2.1; Chowdhery et al. 2022, appendix B). Causal kernels skip up to half of the second term, which
    is counted in full; so is every expert of a mixture. Of an encoder-decoder a token is one of the target, with one
    of the source.
    """
    groups = parameter_groups(model)
    multiplying = sum(parameter.numel() for parameter in groups["hidden"] + groups["other"])
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        multiplying += head.weight.numel()
    config = model.config.get_text_config()
    attends = getattr(config, "num_attention_heads", 0) > 0
    return 6 * multiplying + 12 * attends * _layers(config)[1] * config.hidden_size * context_length


def _layers(config: PreTrainedConfig) -> tuple[int, int]:
    """Layers, and the attentions in them: a layer of a decoder that looks at a source has two."""
    layers = decoder = config.num_hidden_layers
    if not config.is_encoder_decoder:
        return layers, layers
    decoder = getattr(config, "decoder_layers", None) or getattr(config, "num_decoder_layers", None) or layers
    return layers + decoder, layers + 2 * decoder


def transformer_activations(config: PreTrainedConfig, context_length: int) -> tuple[int, int]:
    """A vector of the residual stream for each layer, and a row of attention weights for each head."""
    (layers, attentions), heads = _layers(config), getattr(config, "num_attention_heads", 0)
    return layers * config.hidden_size, attentions * heads * context_length


def feedforward_activations(config: PreTrainedConfig, context_length: int) -> tuple[int, int]:
    """The window of embeddings and the hidden layers, each a fifth of what a block of a transformer keeps.

    A layer keeps what goes in, before and behind its activation, where a block has about twenty such vectors.
    """
    read = config.context_size * config.embedding_size
    return (read + config.num_hidden_layers * config.hidden_size) // 5, 0


@dataclass(frozen=True)
class Family:
    """A family of models; the defaults are those of a causal transformer.

    Attributes:
        config_class: the class of its configs; `AutoConfig` for families of transformers.
        model_class: the class that is trained; an Auto class for families of transformers.
        base_class: the model without its head, for `AutoModel`; None for families of transformers, and where there is
            no such thing.
        kind: `causal` predicts each token from those before it, `seq2seq` also from another text, `masked` from both
            sides of it.
        native: of a config, `(model type, None)` of the class in transformers that computes the same function, or
            `(None, reason)` where there is none.
        muon_matrices: the parameters that Muon may take: matrices that each map one vector to another.
        flops_per_token: of a model and a context length, floating-point operations of one training token, forward and
            backward.
        activations: of a text config and a context length, how many channels and attention weights a training step
            keeps for each token; `training/plan.py` knows the bytes of each.
        exports: targets that can hold this class itself; those of its native twin come on top.
        recurrent: whether its cache is a state of one size, which training can carry on and padding does not move.
        counted: whether it is counted in one pass over the text, see `training/counting.py`: it has no parameters.
    """

    config_class: type
    model_class: type
    base_class: type | None = None
    kind: Kind = "causal"
    native: Callable[[PreTrainedConfig], tuple[str | None, str | None]] = lambda config: (config.model_type, None)
    muon_matrices: Callable[[PreTrainedModel], Iterable[nn.Parameter]] = linear_weights
    flops_per_token: Callable[[PreTrainedModel, int], int] = transformer_flops
    activations: Callable[[PreTrainedConfig, int], tuple[int, int]] = transformer_activations
    exports: frozenset[str] = frozenset()
    recurrent: bool = False
    counted: bool = False


# By model type.
FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Adds a family of ours, also to the Auto classes of transformers."""
    config_class, auto_class = family.config_class, AUTO_CLASSES[family.kind]
    FAMILIES[config_class.model_type] = family
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    auto_class.register(config_class, family.model_class, exist_ok=True)
    # `save_pretrained` copies the files of a class that is registered here into the folder.
    config_class.register_for_auto_class()
    if family.base_class:
        auto.AutoModel.register(config_class, family.base_class, exist_ok=True)
        family.base_class.register_for_auto_class("AutoModel")
    family.model_class.register_for_auto_class(auto_class.__name__)


register(Family(SmaLLMConfig, SmaLLMForCausalLM, SmaLLMModel, native=native_type, exports=frozenset({"onnx"})))
register(
    Family(
        RecurrentConfig,
        RecurrentForCausalLM,
        RecurrentModel,
        native=lambda config: (None, "transformers has no language model of RNN, GRU or LSTM cells"),
        muon_matrices=lambda model: (),  # a layer's gates are stacked in one matrix, each of which is a map of its own
        recurrent=True,
    )
)
register(
    Family(
        FeedForwardConfig,
        FeedForwardForCausalLM,
        FeedForwardModel,
        native=lambda config: (None, "transformers has no feed-forward language model"),
        activations=feedforward_activations,
    )
)
register(
    Family(
        NgramConfig,
        NgramForCausalLM,
        native=lambda config: (None, "transformers has no n-gram model"),
        flops_per_token=lambda model, context_length: 0,
        activations=lambda config, context_length: (0, 0),
        counted=True,
    )
)


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a config: ours, or what the one rule for all others makes of an architecture of transformers."""
    return FAMILIES.get(config.model_type) or _family_of_transformers(config.to_dict())


def family_of_file(written: Mapping[str, Any]) -> Family:
    """The family of the contents of a `config.json`, which for a model of ours may name its native twin."""
    own_config = written.get("auto_map", {}).get("AutoConfig", "").split(".")[-1]
    for model_type, family in FAMILIES.items():
        if own_config == family.config_class.__name__ or written.get("model_type") == model_type:
            return family
    return _family_of_transformers(written)


def _family_of_transformers(written: Mapping[str, Any]) -> Family:
    kind = _kind(written)
    exports = TARGETS if written.get("model_type") in NATIVE_SWITCHES else frozenset()
    return Family(AutoConfig, AUTO_CLASSES[kind], kind=kind, exports=exports)


def _kind(written: Mapping[str, Any]) -> Kind:
    """The kind of an architecture of transformers, by its config: BERT is masked, and causal with `is_decoder`."""
    if written.get("is_encoder_decoder"):
        return "seq2seq"
    if written.get("is_decoder") or written.get("causal"):
        return "causal"
    if names := written.get("architectures"):
        return "masked" if any(name.endswith("ForMaskedLM") for name in names) else "causal"
    # An encoder-decoder whose config says it is none, such as BART's, is the decoder alone.
    masked = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys() - auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.keys()
    return "masked" if written.get("model_type") in masked else "causal"


def kind_of(model: PreTrainedModel) -> Kind:
    """The kind of a loaded model, by its class."""
    if own := FAMILIES.get(model.config.model_type):
        return own.kind
    return _kind(model.config.to_dict() | {"architectures": [type(model).__name__]})


def require_writer(model: PreTrainedModel) -> None:
    """Refuses a model that cannot write a text.

    Raises:
        UserError: it is masked.
    """
    if kind_of(model) == "masked":
        raise UserError(f"{type(model).__name__} fills in masks and writes no text; leave out --generate and --speed")


def require_trainable(config: PreTrainedConfig, name: str) -> None:
    """Refuses a model that is trained neither on the next tokens of a text nor on pairs.

    Args:
        config: the model's.
        name: how the user named it, for the error.

    Raises:
        UserError: it is masked, or predicts no token at all.
    """
    kind = family_of(config).kind
    fix = "take one of smallm, llama, gpt2 ..."
    if kind == "masked" and hasattr(config, "is_decoder"):
        fix += ", or set model.is_decoder=true"
    if kind == "masked":
        raise UserError(f"{name} is {kind}, and only causal and seq2seq models can be trained; {fix}")
    if type(config) not in TRAINABLE[kind]:
        raise UserError(f"{name} does not predict the next token; {fix}")


def parameter_groups(model: PreTrainedModel) -> dict[str, list[nn.Parameter]]:
    """Sorts the trainable parameters by what they are.

    Returns four lists: `hidden`, the matrices that Muon may take; `embedding`, the tables of tokens and positions and
    the output head (one entry where tied); `other`, all other tensors of two dimensions or more, such as the stacked
    gates of a recurrent layer; `vector`, biases and norms, which take no weight decay.
    """
    head = model.get_output_embeddings()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if head is not None:
        tables.add(id(head.weight))
    hidden = {id(parameter) for parameter in family_of(model.config).muon_matrices(model)}
    groups: dict[str, list[nn.Parameter]] = {"hidden": [], "embedding": [], "other": [], "vector": []}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            groups["embedding"].append(parameter)
        elif id(parameter) in hidden:
            groups["hidden"].append(parameter)
        else:  # a vector may be stored with dimensions of one entry
            groups["other" if sum(size > 1 for size in parameter.shape) > 1 else "vector"].append(parameter)
    return groups
