"""All that score.py says of models: the score of a text, how certain it is, what they write, how fast they are."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.allocation import keep_freed_memory
from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import expand_models
from smallm_hf.data.selection.splitting import TRAIN
from smallm_hf.data.token_files import open_token_files
from smallm_hf.evaluation.certainty import over_models, paired_bootstrap
from smallm_hf.evaluation.configuration import ScoringQuestions
from smallm_hf.evaluation.generated import TOKENS_AT_A_TIME, continue_documents, judge
from smallm_hf.evaluation.page import shorten
from smallm_hf.evaluation.results_page import report_results, require_reportable
from smallm_hf.evaluation.scoring import Scored, score_corpus
from smallm_hf.evaluation.sharing import join_launch, own_device
from smallm_hf.evaluation.speed import in_own_process, load_and_measure
from smallm_hf.evaluation.sums import Sums
from smallm_hf.evaluation.texts import Example, ScoredTexts, decode_documents, require_texts
from smallm_hf.evaluation.word_loss import count_words
from smallm_hf.families import require_writer
from smallm_hf.inspection import ngram_count
from smallm_hf.pretrained import find_kind, load_scorable

# Documents shown as the hardest and as the easiest, and how much of each; a shorter one says little about a model.
SHOWN, SHOWN_CHARACTERS, SHORTEST_SHOWN_BYTES = 5, 240, 40
Row = dict[str, Any]
# From a model and its tokenizer to pictures: title, and HTML or the bytes of a PNG.
Draw = Callable[[PreTrainedModel, PreTrainedTokenizerBase], list[tuple[str, str | bytes]]]


def evaluate_and_report(
    questions: ScoringQuestions,
    loading: Mapping[str, Any],
    hardware: Callable[[], dict[str, Any]],
    draw: Callable[..., list[tuple[str, str | bytes]]] | None = None,
    *,
    model: Sequence[str],
    data: str,
    against: str | None = None,
    output: str | None = None,
    report: str | None = None,
) -> None:
    """Calls `evaluate_models`, whose arguments and errors these are, and reports the result from one process.

    Args:
        hardware: describes this machine, for the result.
        draw: `gallery` or the like, called with the data too.
        output: a JSON file for the result; like `report` it is an error before any work if it cannot be written.
        report: an HTML page that shows all of it.
    """
    require_reportable(output, report)
    if draw:
        draw = functools.partial(draw, data=data, text_column=questions.text_column)
    keep_freed_memory()
    results = evaluate_models(model, data, questions, loading, against, draw)
    if is_main_process():
        report_results(results | {"hardware": hardware()} | environment(), output, report)


def evaluate_models(
    models: Sequence[str],
    data: str,
    questions: ScoringQuestions | None = None,
    loading: Mapping[str, Any] | None = None,
    against: str | None = None,
    draw: Draw | None = None,
) -> dict[str, Any]:
    """Asks every model the same questions; all processes of a launch share the scoring.

    Args:
        models: folders or Hub ids; folders also as patterns, such as `runs/x-seed*/best`.
        data: the text, as `require_texts` takes it.
        questions: by default only the score.
        loading: arguments of `load_causal_lm` beside the model, such as `device`.
        against: a model that each of the others is compared with, on the same documents.
        draw: draws pictures of the first model.

    Returns:
        `models`, a row for each: the figures of `score_corpus`, tables, documents, and what else was asked for;
        `over_seeds`, for each figure its mean and interval over several models of one size, else None; `no_spread`, why
        a pattern of models has none; `against`;
        `frequencies_of`, the text whose tokens and words were counted; `pictures`; `data`; `questions`; and
        `validation_sha256`, of the tokens where the text is what a run was validated on, else None.

    Raises:
        UserError: no model of such a name, a question that a model cannot answer, or what loading and scoring raise.
    """
    questions, loading = questions or ScoringQuestions(), dict(loading or {})
    texts = require_texts(data, questions.columns)
    named, models = len(models), expand_models(models)
    if against and questions.protocol == "packed":
        raise UserError("--against compares documents, which protocol packed joins; take documents or sliding")
    _require_comparable([*models, *([against] if against else [])])
    shard = join_launch()
    loading["device"] = loading.get("device") or own_device()
    other = _score_model(*load_scorable(against, **loading), texts, questions, shard).documents if against else None
    rows, pictures = [], []
    for model in models:
        rows.append(_evaluate(model, texts, questions, loading, shard, other, draw if not rows else None))
        pictures += rows[-1].pop("pictures", [])
    numbers = [name for name, value in rows[0].items() if isinstance(value, float) and name != "seconds"]
    shared = [name for name in numbers if all(math.isfinite(row.get(name, math.nan)) for row in rows)]
    return {
        "models": rows,
        "over_seeds": (over := over_models(rows, shared)),
        "no_spread": None if over or len(models) == named else _sizes(rows),
        "against": against,
        "frequencies_of": "the training text" if questions.training_tokens else "the scored text",
        "pictures": pictures,
        "data": data,
        "validation_sha256": texts.files and texts.files.meta.validation.sha256,
        "questions": asdict(questions) | {"training_tokens": str(questions.training_tokens or "") or None},
    }


def _sizes(rows: Sequence[Row]) -> str | None:
    """Why there is no mean over the models that a pattern matches; None for one model."""
    sizes = sorted({row["parameters"] for row in rows})
    if len(rows) < 2:
        return None
    return (
        f"no mean and interval: the {len(rows)} models have {sizes[0]:,} to {sizes[-1]:,} parameters, and so are not "
        "seeds of one setting; narrow the pattern of --model"
    )


def _require_comparable(models: Sequence[str]) -> None:
    """Refuses to show a pseudo-likelihood beside a probability, as if they were the same."""
    kinds = {find_kind(model): model for model in models}
    if "masked" in kinds and len(kinds) > 1:
        one, other = kinds.pop("masked"), kinds.popitem()[1]
        raise UserError(
            f"{one} is masked and {other} is not: a pseudo-likelihood is not a probability of the text; score them "
            "separately"
        )


def _evaluate(
    model: str,
    texts: ScoredTexts,
    questions: ScoringQuestions,
    loading: Mapping[str, Any],
    shard: tuple[int, int],
    other: Sequence[Sums] | None,
    draw: Draw | None,
) -> Row:
    """All that is said of one model; the first process alone does what is not scoring."""
    first = shard[0] == 0
    row: Row = {}
    if questions.speed and first:
        names = ("batch_size", "prompt_tokens", "new_tokens", "repetitions")
        asked = {name: getattr(questions, f"speed_{name}") for name in names}
        row["speed"] = in_own_process(load_and_measure, model, loading, **asked)
    loaded, tokenizer = load_scorable(model, **loading)
    row["parameters"], row["ngrams"] = loaded.num_parameters(), ngram_count(loaded)
    training = None
    if questions.training_tokens:
        training = open_token_files(questions.training_tokens)
        training.check_tokenizer(tokenizer)
    if questions.generate:
        require_writer(loaded)
    scored = _score_model(loaded, tokenizer, texts, questions, shard)
    if questions.generate and first:
        documents = itertools.islice(_read(texts, questions), questions.generate)
        settings = {name: getattr(questions, name) for name in ("max_new_tokens", "temperature", "seed", "beams")}
        continued, row["left_out"] = continue_documents(loaded, tokenizer, documents, **settings)
        if continued:
            row["generated"] = judge(continued, tokenizer, training.train if training else None)
    counts = ()
    if training is not None and first:
        counts = _count_tokens(training.train, len(scored.profile.by_token[0])), _count_words(questions.training_tokens)
    row["tables"] = scored.profile.tables(*counts)
    row["documents_by_difficulty"] = _extremes(scored.documents, _read(texts, questions))
    if draw and first:
        row["pictures"] = draw(loaded, tokenizer)
    if other is not None:
        row["against"] = paired_bootstrap(scored.documents, other, questions.seed)
    return scored.figures | row


def _score_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: ScoredTexts,
    questions: ScoringQuestions,
    shard: tuple[int, int],
) -> Scored:
    return score_corpus(
        model,
        tokenizer,
        (example.text for example in _read(texts, questions)),
        sources=(example.source for example in _read(texts, questions)) if texts.is_pairs else None,
        top_k=questions.top_k,
        shard=shard,
        show_progress=shard[0] == 0,
        **questions.rules,
    )


def _read(texts: ScoredTexts, questions: ScoringQuestions) -> Iterator[Example]:
    how = {"text_column": questions.text_column, "documents": questions.documents}
    return itertools.islice(texts.read_examples(**how), questions.max_documents)


def _count_tokens(token_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Occurrences of each entry of the vocabulary in a stream, which is read a part at a time."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for begin in range(0, len(token_ids), TOKENS_AT_A_TIME):
        counts += np.bincount(token_ids[begin : begin + TOKENS_AT_A_TIME], minlength=vocab_size)
    return counts


@functools.lru_cache(maxsize=1)  # runs of several seeds share it
def _count_words(training_tokens: Path) -> Mapping[str, int]:
    files = open_token_files(training_tokens)
    return count_words(decode_documents(files.train, files.tokenizer, files.hidden_pieces(TRAIN)))


def _extremes(documents: Sequence[Sums], examples: Iterable[Example]) -> dict[str, list[Row]]:
    """The documents with the most and with the fewest bits per byte, the most extreme first, and how they begin."""
    bits = {
        number: sums.text_nats / math.log(2) / sums.bytes
        for number, sums in enumerate(documents)
        if sums.tokens and sums.bytes >= SHORTEST_SHOWN_BYTES
    }
    ranked = sorted(bits, key=bits.__getitem__)
    shown = min(SHOWN, len(ranked) // 2)
    chosen = {"hardest": ranked[::-1][:shown], "easiest": ranked[:shown]}
    wanted = set(itertools.chain(*chosen.values()))
    texts = {number: one.text.strip() for number, one in enumerate(examples) if number in wanted} if wanted else {}
    return {
        name: [
            {
                "document": number + 1,
                "bits_per_byte": bits[number],
                "bytes": documents[number].bytes,
                "text": shorten(" ".join(texts[number].split()), SHOWN_CHARACTERS),
            }
            for number in numbers
        ]
        for name, numbers in chosen.items()
    }
