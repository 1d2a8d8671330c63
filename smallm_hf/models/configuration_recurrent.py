"""Configuration of the recurrent family: Elman's RNN, GRU and LSTM language models."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

CELL_TYPES = ("rnn", "gru", "lstm")
ACTIVATIONS = ("tanh", "relu")
SIZES = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers")
PROBABILITIES = ("embedding_dropout", "hidden_dropout", "recurrent_dropout")


@strict
class RecurrentConfig(PreTrainedConfig):
    """Shape, dropout and initialisation of a recurrent language model.

    Its three kinds of dropout are those of the AWD-LSTM (Merity et al. 2017, "Regularizing and Optimizing LSTM Language
    Models", sections 2 and 4): entries are dropped at all positions of a row alike ("variational", Gal and Ghahramani
    2016), and so are weights that map a state to the next ("DropConnect", Wan et al. 2013).

    Args:
        vocab_size: Number of tokens V, equal to `len(tokenizer)`.
        embedding_size: Width E of the embeddings; default `hidden_size`.
        hidden_size: Width D of the layers. Where the head is tied, the last one is `embedding_size` wide.
        num_hidden_layers: Number of layers.
        cell_type: `rnn` (Elman 1990), `gru` (Cho et al. 2014) or `lstm` (Hochreiter and Schmidhuber 1997, with forget
            gates).
        hidden_act: `tanh` or, for `cell_type: rnn` only, `relu` (Le et al. 2015).
        embedding_dropout: Probability of dropping an entry of the embeddings, for all positions of a row.
        hidden_dropout: The same for what one layer gives the next, and the last one the head.
        recurrent_dropout: Probability of dropping a weight that maps a state to the next, for all rows and positions.
        tie_word_embeddings: Whether the output head is the embedding matrix (Press and Wolf 2017).
        initializer_range: Embeddings and head begin uniformly within plus and minus this; the weights of a layer within
            `1 / sqrt(width)`, as torch's do.
        trained_context_length: Tokens of the windows it was trained on; `None` where nobody has said, or where the
            state was carried from one to the next.
        use_cache: Whether `forward` returns the state for the next call.
        bos_token_id: Token that begins a text.
        eos_token_id: Token that ends a text.
        pad_token_id: Token that fills a batch.

    Raises:
        ValueError: a field has no valid value, or two contradict each other; one line that names both and the fix.
    """

    model_type = "recurrent"
    # A list, which `Trainer` adds to. One entry has another name from transformers 5.24 on.
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012

    vocab_size: int = 4096
    embedding_size: int | None = None
    hidden_size: int = 256
    num_hidden_layers: int = 2
    cell_type: str = "lstm"
    hidden_act: str = "tanh"
    embedding_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    recurrent_dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    initializer_range: float | int = 0.1
    trained_context_length: int | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        super().__post_init__(**kwargs)
        self.validate_architecture()

    @property
    def layer_widths(self) -> list[int]:
        """Entries of the state of each layer."""
        last = self.embedding_size if self.tie_word_embeddings else self.hidden_size
        return [self.hidden_size] * (self.num_hidden_layers - 1) + [last]

    def validate_architecture(self):
        """Raise a `ValueError` where the fields contradict each other; `transformers` calls it before saving too."""
        for name, choices in (("cell_type", CELL_TYPES), ("hidden_act", ACTIVATIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; set it to one of {', '.join(choices)}")
        if self.hidden_act != "tanh" and self.cell_type != "rnn":
            raise ValueError(
                f"hidden_act={self.hidden_act!r} is for cell_type='rnn', and cell_type={self.cell_type!r} has tanh; "
                "change one of them"
            )
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a size; set it to 1 or more")
        for name in PROBABILITIES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a probability; set it to 0 or more and below 1")
        if self.num_hidden_layers == 1 and self.layer_widths != [self.hidden_size]:
            raise ValueError(
                f"the only layer has a tied head and so is embedding_size={self.embedding_size} wide, not hidden_size="
                f"{self.hidden_size}; make them equal, add a layer or set tie_word_embeddings to false"
            )
