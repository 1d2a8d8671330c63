"""What models can be asked, and by which rules they are scored: the options of `scripts/score.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import Loading

Protocol = Literal["documents", "packed", "sliding"]


def require_at_least(options: Any, **least: int) -> None:
    """Raises UserError if a field of the options is below its number here; None passes."""
    for name, smallest in least.items():
        if (number := getattr(options, name)) is not None and number < smallest:
            raise UserError(f"{name}={number} is out of range; give {smallest} or more")


@dataclass(frozen=True)
class Rules:
    """How texts are scored. Figures can be compared only where all of these but the batch size are equal.

    Args:
        protocol: `documents` scores each text on its own, `sliding` too, but in windows that overlap, `packed` all
            texts in one stream with eos between them, as in training.
        stride: tokens from one window to the next under `sliding`; by default half a window.
        within_documents: under `packed`, whether attention stops at the eos between documents, for a model that was
            trained with batching.within_documents.
        ends: under `documents` and `sliding`, whether the eos behind each text is scored too, as one byte and one
            character, as batching.document_rows trains.
        context_length: tokens per window; by default the length each model was trained at where its config says so,
            else all its positions, 2,048 at most. Longer texts go on in the next window.
        batch_size: windows per forward pass at most; changes speed and memory, not the result.
    """

    protocol: Protocol = "documents"
    stride: int | None = None
    within_documents: bool = False
    ends: bool = False
    context_length: int | None = None
    batch_size: int = 16

    @property
    def rules(self) -> dict[str, Any]:
        """These fields, without those that a subclass adds."""
        return {rule.name: getattr(self, rule.name) for rule in fields(Rules)}

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise UserError(f"protocol {self.protocol!r} is unknown; choose from {', '.join(get_args(Protocol))}")
        if self.within_documents and self.protocol != "packed":
            raise UserError(
                f"within_documents=true is for protocol packed and not for {self.protocol}, whose windows hold one "
                "document; leave out one"
            )
        if self.ends and self.protocol == "packed":
            raise UserError("ends=true is for protocols documents and sliding; packed scores each eos: leave it out")
        require_at_least(self, batch_size=1)


@dataclass(frozen=True)
class ScoringQuestions(Rules):
    """What every model is asked, beside the rules by which its text is scored.

    Args:
        text_column: column of the data that holds the text, in all but text files; of pairs the target.
        documents: whether each `line` or each `paragraph` of a text file is a document, as `data.documents`.
        source_column: column that the encoder of a seq2seq model reads, as `data.source_column` of a run; by default it
            reads nothing.
        max_documents: score only this many, from the beginning.
        top_k: how many first choices count as right, for each accuracy; 1 and 3 are always among the figures.
        training_tokens: folder of the token files of the training: copies from them are counted, and the loss is
            binned by how frequent a token or a word is there instead of in the scored text.
        generate: number of documents whose second half is generated from the first, or whose text from the source, and
            compared with the original; those that exceed the context are left out.
        max_new_tokens: tokens of each generated text at most.
        temperature: of the generated texts; 0 always takes the most probable token.
        beams: of a seq2seq model, the width of a search for the likeliest texts, in place of drawing them; 1 is greedy.
        seed: of the generated texts, together with each prompt, and of the resampling of documents for --against.
        speed: whether reading and writing are timed.
        speed_batch_size: texts at a time.
        speed_prompt_tokens: tokens of each prompt.
        speed_new_tokens: tokens generated for each prompt.
        speed_repetitions: repetitions that count, after a warm-up.
    """

    text_column: str = "text"
    documents: Literal["line", "paragraph"] | None = None
    source_column: str | None = None
    max_documents: int | None = None
    top_k: Sequence[int] = (1, 3)
    training_tokens: Path | None = None
    generate: int = 0
    max_new_tokens: int = 200
    temperature: float = 0.8
    beams: int | None = None
    seed: int = 42
    speed: bool = False
    speed_batch_size: int = 1
    speed_prompt_tokens: int = 32
    speed_new_tokens: int = 32
    speed_repetitions: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, max_documents=1, generate=0, max_new_tokens=1, temperature=0, beams=1)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of source and target, where pairs are scored."""
        return (self.source_column, self.text_column) if self.source_column else ()


@dataclass(frozen=True)
class MinimalPairs:
    """Minimal pairs to judge in place of a text to score.

    Args:
        minimal_pairs: judge pairs of an acceptable and an unacceptable sentence, in place of --data: BLiMP.zip, a
            folder, or a .jsonl file, in the form of BLiMP.
        max_pairs: only the first so many pairs of each paradigm, for a quick look.
        sentence_prefix: text before each sentence; the task `blimp` of lm_eval puts a space there.
    """

    minimal_pairs: str | None = None
    max_pairs: int | None = None
    sentence_prefix: str = ""

    def __post_init__(self) -> None:
        require_at_least(self, max_pairs=1)

    def require_alone(self, data: str | None, against: str | None, asked: ScoringQuestions, loading: Loading) -> None:
        """Refuses both pairs and a text, neither of them, and an option that the one given does not know.

        Args:
            data: the text, if any.
            against: a model to compare with, if any.
            asked: the options of a text, of which pairs know `context_length` and `batch_size`.
            loading: whose dtype may not be another than float32 for pairs.

        Raises:
            UserError: what was given does not go together.
        """
        if data is None and self.minimal_pairs is None:
            raise UserError("nothing to score; give --data, a text, or --minimal_pairs, sentences in pairs")
        wrong = [name for name in ("max_pairs", "sentence_prefix") if getattr(self, name)]
        kind, other = "--data", "--minimal_pairs"
        if self.minimal_pairs is not None:
            kind, other = other, kind
            wrong = [name for name, value in (("data", data), ("against", against)) if value is not None]
            wrong += [
                field.name
                for field in fields(asked)
                if field.name not in ("context_length", "batch_size")
                and _frozen(getattr(asked, field.name)) != field.default
            ]
            if loading.dtype not in ("auto", "float32"):
                raise UserError(f"dtype={loading.dtype}, but minimal pairs are always scored in float32; leave it out")
        if wrong:
            raise UserError(f"--{wrong[0]} does not go with {kind}, only with {other}; leave one of them out")


def _frozen(value: Any) -> Any:
    """A value of a command line as a default is written: a list as a tuple."""
    return tuple(value) if isinstance(value, list) else value
