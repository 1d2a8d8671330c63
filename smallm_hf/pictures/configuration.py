"""What can be drawn of a model: the options of `scripts/plot.py`."""

from dataclasses import dataclass
from pathlib import Path

from smallm_hf.base.errors import UserError


@dataclass(frozen=True)
class AttentionPictures:
    """Draws what each head of a model attends to while it reads a text.

    Args:
        text: the text; its first 24 tokens are read and drawn.
        layer: only this one, from 0.
        head: only this one, from 0; together with a layer it is drawn alone, larger and with numbers.
        output_dir: for attention.png, attention.svg and the page attention.html, on which a token shows where each head
            looks from it; layer and head are in the names if they are chosen.
    """

    text: str
    layer: int | None = None
    head: int | None = None
    output_dir: Path = Path("figures")


@dataclass(frozen=True)
class EmbeddingPictures:
    """Draws where the words of a model lie, as t-SNE and PCA, and a page to search with the neighbours of each word.

    Args:
        words: a text file of the words to draw, separated by white space.
        data: text whose most frequent words are drawn: .txt, .jsonl, .json, .csv or .parquet, a folder of them, or a
            Hub data set. Without words and data, the first words of the tokenizer's vocabulary are drawn.
        text_column: column of the data that holds the text, in all but text files.
        max_documents: documents of the data that are counted, from the beginning.
        top: number of words drawn, of data or vocabulary.
        clusters: number of colours, 10 at most.
        perplexity: of the t-SNE, about the number of neighbours that count; by default 30, less for few words.
        seed: the same seed gives the same pictures.
        output_dir: for embeddings_tsne and embeddings_pca as .png and .svg, and the page embeddings.html.
    """

    words: Path | None = None
    data: str | None = None
    text_column: str = "text"
    max_documents: int = 10_000
    top: int = 150
    clusters: int = 8
    perplexity: float | None = None
    seed: int = 42
    output_dir: Path = Path("figures")

    def __post_init__(self) -> None:
        if self.words is not None and self.data is not None:
            raise UserError("both --words and --data are given; give one of them")
        _require_documents(self.max_documents)


@dataclass(frozen=True)
class TokenPictures:
    """Draws what a model expects along texts, and the texts as heat maps of the loss of each token.

    Args:
        text: the text itself, instead of data.
        data: .txt, .jsonl, .json, .csv or .parquet, a folder of them, or a Hub data set.
        text_column: column of the data that holds the text, in all but text files.
        max_documents: documents of the data, from the beginning.
        top_k: the model's first choices shown at each token.
        output_dir: for tokens.png, tokens.svg and the page tokens.html; several documents are numbered.
    """

    text: str | None = None
    data: str | None = None
    text_column: str = "text"
    max_documents: int = 1
    top_k: int = 5
    output_dir: Path = Path("figures")

    def __post_init__(self) -> None:
        if (self.text is None) == (self.data is None):
            found = "neither --text nor --data is" if self.text is None else "both --text and --data are"
            raise UserError(f"{found} given; give one of them")
        _require_documents(self.max_documents)


OF_MODELS = {"attention": AttentionPictures, "embeddings": EmbeddingPictures, "tokens": TokenPictures}


def _require_documents(max_documents: int) -> None:
    if max_documents < 1:
        raise UserError(f"max_documents={max_documents} reads nothing; give 1 or more")
