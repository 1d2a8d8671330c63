"""Configuration of the feed-forward language model of Bengio et al. 2003."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

ACTIVATIONS = ("relu", "gelu", "leaky_relu", "tanh", "sigmoid", "silu")
SIZES = ("vocab_size", "context_size", "embedding_size", "hidden_size", "num_hidden_layers", "trained_context_length")


@strict
class FeedForwardConfig(PreTrainedConfig):
    """Shape and initialisation of a model that predicts a token from the last few before it.

    Linear weights start normal with standard deviation 1 / sqrt(inputs) (LeCun et al. 1998, "Efficient BackProp",
    section 4.6) and biases zero; embeddings with 1, so that the first layer neither saturates nor sleeps.

    Args:
        vocab_size: Number of tokens V, equal to `len(tokenizer)`.
        context_size: Number of tokens n that a prediction reads; what lies before them cannot matter.
        embedding_size: Width E of the vector of a token.
        hidden_size: Width D of the hidden layers.
        num_hidden_layers: Hidden layers; the first reads n E numbers, each other D.
        hidden_act: Activation of the hidden layers: relu, gelu, leaky_relu, tanh, sigmoid or silu.
        dropout: Probability of dropping an entry of the embeddings and of each hidden layer.
        tie_word_embeddings: Whether the output head is the embedding matrix (Press and Wolf 2017), for which
            `embedding_size` has to equal `hidden_size`.
        initializer_range: Standard deviation of the output head, and so of embeddings that are tied to it.
        trained_context_length: Tokens of the windows it was trained on; the model computes nothing otherwise for it.
        use_cache: Without effect: there is no state beside the tokens.
        bos_token_id: Token that begins a text.
        eos_token_id: Token that ends a text.
        pad_token_id: Token that fills a batch.

    Raises:
        ValueError: a field has no valid value, or two contradict each other; one line that names both and the fix.
    """

    model_type = "feedforward"

    vocab_size: int = 4096
    context_size: int = 8
    embedding_size: int = 64
    hidden_size: int = 256
    num_hidden_layers: int = 1
    hidden_act: str = "tanh"
    dropout: float | int = 0.0
    tie_word_embeddings: bool = False
    initializer_range: float | int = 0.02
    trained_context_length: int | None = None
    use_cache: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def validate_architecture(self):
        """Raise a `ValueError` where the fields contradict each other; `transformers` calls it before saving too."""
        for name in SIZES:
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} is not a size; set it to 1 or more")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act!r} is unknown; choose from {', '.join(ACTIVATIONS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not a probability; set it to 0 or more and below 1")
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"tie_word_embeddings=true needs equal widths, and embedding_size={self.embedding_size} differs from "
                f"hidden_size={self.hidden_size}; make them equal, or set tie_word_embeddings to false"
            )
