"""Configuration of the n-gram language model."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

HIGHEST_ORDER = 5


@strict
class NgramConfig(PreTrainedConfig):
    """Order and table sizes of a model that predicts a token from how often it followed the last few.

    Args:
        vocab_size: Number of tokens V, equal to `len(tokenizer)`.
        order: Number of tokens n in the longest n-gram, 1 to 5; a prediction reads n - 1 tokens.
        ngrams: How many n-grams of 2, 3 ... `order` tokens the tables hold; counting writes it, and a recipe leaves it
            out. Of single tokens all V are held.
        trained_context_length: Tokens of the windows it is scored in by default.
        tie_word_embeddings: Without effect: there are no embeddings.
        use_cache: Without effect: there is no state beside the tokens.
        bos_token_id: Token that begins a text.
        eos_token_id: Token that ends a text.
        pad_token_id: Token that fills a batch.

    Raises:
        ValueError: a field has no valid value; one line that names it and the fix.
    """

    model_type = "ngram"

    vocab_size: int = 4096
    order: int = 5
    ngrams: list[int] | None = None
    trained_context_length: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.ngrams is None and 1 <= self.order <= HIGHEST_ORDER:
            self.ngrams = [0] * (self.order - 1)
        super().__post_init__(**kwargs)

    @property
    def context_size(self) -> int:
        """Number of tokens that a prediction reads."""
        return self.order - 1

    @property
    def num_ngrams(self) -> int:
        """How many n-grams the tables hold, of all lengths."""
        return self.vocab_size + sum(self.ngrams)

    def validate_architecture(self):
        """Raise a `ValueError` where the fields contradict each other; `transformers` calls it before saving too."""
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size} is not a size; set it to 1 or more")
        if not 1 <= self.order <= HIGHEST_ORDER:
            raise ValueError(f"order={self.order} is out of range; set it to a number from 1 to {HIGHEST_ORDER}")
        if len(self.ngrams) != self.order - 1 or min(self.ngrams, default=0) < 0:
            raise ValueError(
                f"ngrams={self.ngrams} are no sizes for n-grams of 2 to order={self.order} tokens; leave them out, "
                "counting writes them"
            )
