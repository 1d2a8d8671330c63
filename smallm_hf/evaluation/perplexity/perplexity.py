"""Perplexity as a metric of the `evaluate` library, of texts or of sums that a scorer counted."""

import datasets
import evaluate

# Relative, so that `evaluate` copies the file along: sums need not our package. (It takes a comment behind for a URL.)
from .figures import of_sums

DESCRIPTION = """
Perplexity of a corpus: exp of the mean negative log-likelihood per token, over all tokens of all texts. Long texts are
scored to their end, no text is padded, and the batch size does not change the result.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (list of str): texts to score, with the arguments below; or
    predictions (list of dict): sums counted elsewhere, `{"nats": float, "tokens": int, "bytes": int}`: negative
        log-likelihood in nats, scored tokens, UTF-8 bytes of the text. No other argument is needed then.
    model_id (str): folder or Hub id of a causal language model and its tokenizer.
    model, tokenizer: a loaded pair instead of `model_id`.
    protocol (str): `documents` (default), each text stripped and on its own, `sliding`, the same in windows that
        overlap by half, or `packed`, all in one stream; defined in smallm_hf/evaluation/scoring.py.
    batch_size (int): windows per forward pass, 16 by default; changes speed and memory only.
    context_length (int): tokens per window; by default the length the model was trained at where its config says so,
        else all its positions. Longer texts go on in the next window.
    max_length (int): another name of `context_length`, for calls written for the stock metric, which cut texts there.
    add_start_token (bool): bos (eos where there is none) precedes each text. Only True: without it the first
        token of a text would go unscored.
    device (str): `cpu`, `cuda` or `gpu`, `mps`; by default the accelerator where there is one. Only with `model_id`.
    trust_remote_code (bool): run modeling code that comes with `model_id`.
Returns:
    perplexity (float): exp(loss), of the corpus.
    loss (float): nats per token.
    bits_per_byte (float): comparable between tokenizers.
    tokens (int), bytes (int): what was scored.
    context_length (int): tokens per window; None of sums.
    perplexities (list of float): exp of each prediction's own mean; one number for the stream under `packed`.
    mean_perplexity (float): the mean of those, as the stock metric reports it. It gives a short text the weight of a
        long one and is ruled by the worst text: do not compare models by it.
Examples:
    >>> perplexity = evaluate.load("smallm_hf/evaluation/perplexity")
    >>> perplexity.compute(predictions=["Once upon a time"], model_id="runs/quickstart/best")  # doctest: +SKIP
    >>> perplexity.add_batch(predictions=[{"nats": 6.0, "tokens": 3, "bytes": 12}])
    >>> round(perplexity.compute()["perplexity"], 3)
    7.389
"""

CITATION = """
@article{jelinek1977perplexity,
    title={Perplexity -- a measure of the difficulty of speech recognition tasks},
    author={Jelinek, Fred and Mercer, Robert L and Bahl, Lalit R and Baker, James K},
    journal={The Journal of the Acoustical Society of America}, volume={62}, number={S1}, pages={S63}, year={1977}}
"""

SUMS = {"nats": datasets.Value("float64"), "tokens": datasets.Value("int64"), "bytes": datasets.Value("int64")}


class Perplexity(evaluate.Metric):
    """Corpus perplexity, loss and bits per byte; `compute` describes its arguments."""

    def _info(self) -> evaluate.EvaluationModuleInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            # One column that takes either form: evaluate picks the first that fits.
            features=[
                datasets.Features({"predictions": datasets.Value("string")}),
                datasets.Features({"predictions": SUMS}),
            ],
        )

    def _compute(self, predictions: list, **options) -> dict:
        texts = isinstance(predictions[0], str)
        if options and not texts:
            raise ValueError(f"{', '.join(options)}: sums are counted already; give texts to have them scored")
        parts, context_length = _score_texts(predictions, **options) if texts else (predictions, None)
        return of_sums(parts) | {"context_length": context_length}


def _score_texts(
    texts: list[str],
    model_id: str | None = None,
    model=None,
    tokenizer=None,
    protocol: str = "documents",
    batch_size: int = 16,
    context_length: int | None = None,
    max_length: int | None = None,
    add_start_token: bool = True,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[list[dict], int]:
    # Imported here: sums need neither torch nor our package, so the metric also works without them.
    from dataclasses import asdict

    from smallm_hf.base.errors import UserError
    from smallm_hf.evaluation.scoring import Rules, ScoringPlan
    from smallm_hf.pretrained import load_causal_lm

    if not add_start_token:
        raise UserError("add_start_token=False would leave the first token of each text unscored; leave it out")
    if (model_id is None) == (model is None) or (model is None) != (tokenizer is None):
        raise UserError("give either model_id, or model and tokenizer")
    if None not in (context_length, max_length) and context_length != max_length:
        raise UserError(f"context_length={context_length} and max_length={max_length} differ; give one of them")
    if model is None:
        device = "cuda" if device == "gpu" else device
        model, tokenizer = load_causal_lm(model_id, device=device, trust_remote_code=trust_remote_code)
    rules = Rules(protocol, context_length=context_length or max_length, batch_size=batch_size)
    plan = ScoringPlan.make(model, tokenizer, rules)
    return [asdict(part) for part in plan.score(texts)], plan.rules.context_length
