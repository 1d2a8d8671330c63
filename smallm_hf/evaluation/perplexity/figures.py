"""Loss, perplexity and bits per byte, from sums. `evaluate` copies this file with the metric: it imports no package."""

import math

SUMS = ("nats", "tokens", "bytes")


def of_sums(parts: list[dict]) -> dict:
    """The figures of a corpus, as the metric returns them.

    Args:
        parts: `{"nats": float, "tokens": int, "bytes": int}` for each text; `spelling`, the nats of what unknown tokens
            hide, counts in bits per byte alone.

    Raises:
        ValueError: a part without a token.
    """
    for index, part in enumerate(parts):
        if part["tokens"] < 1:
            raise ValueError(f"predictions[{index}] has no token to score; leave it out")
    nats, tokens, num_bytes = (sum(part[name] for part in parts) for name in SUMS)
    spelling = sum(part.get("spelling", 0.0) for part in parts)
    perplexities = [perplexity_of(part["nats"] / part["tokens"]) for part in parts]
    return {
        "perplexity": perplexity_of(nats / tokens),
        "loss": nats / tokens,
        "bits_per_byte": (nats + spelling) / math.log(2) / num_bytes if num_bytes else None,
        "tokens": tokens,
        "bytes": num_bytes,
        "perplexities": perplexities,
        "mean_perplexity": sum(perplexities) / len(perplexities),
    }


def perplexity_of(mean_nats: float) -> float:
    """exp of nats per token, or per word; infinite where a float overflows."""
    return math.exp(mean_nats) if mean_nats < 709 else math.inf
