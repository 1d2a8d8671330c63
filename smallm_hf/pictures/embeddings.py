"""Where a model's words lie: its input embeddings by t-SNE and PCA, the neighbours of each word, and clusters.

A word is encoded as inside a text, with the space before it. Its vector is that of its token, or the mean of those of
its tokens; all vectors are scaled to length 1, so that distances follow the cosine. scikit-learn does the mathematics
(van der Maaten and Hinton 2008 for t-SNE), textalloc places the labels.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.comparison.words import read_vocabulary
from smallm_hf.evaluation.page import COLOURS, fill_template, shorten
from smallm_hf.evaluation.texts import read_scored_texts
from smallm_hf.inspection import require_known, vocabulary_size
from smallm_hf.pictures.configuration import EmbeddingPictures
from smallm_hf.pictures.picture import STYLE, Picture, legible, write_around, write_pictures
from smallm_hf.pictures.reading import model_name
from smallm_hf.tokenizing.encoding import encode_ordinary

LEAST_WORDS, MOST_WORDS = 5, 500
DRAWABLE_WORD = re.compile(r"[^\W\d_][\w'’]*")  # begins with a letter
NEIGHBOURS = 8
# t-SNE's perplexity is about the number of neighbours that count; scikit-learn's default where there are enough words.
PERPLEXITY, WORDS_PER_NEIGHBOUR = 30.0, 3
MARKERS = "osD^vP*Xp<"  # one per cluster, for those who cannot see the colours
FIGURE_INCHES = (11, 9)
NAMED = 4  # words of a cluster in the legend
LETTERS = 24  # of a label


@dataclass(frozen=True)
class Words:
    """Words to draw.

    Attributes:
        texts: N words, the most frequent first.
        vectors: float64 of shape (N, D), of length 1.
        several: how many of them consist of several tokens.
        origin: where they come from, for the caption.
    """

    texts: list[str]
    vectors: np.ndarray
    several: int
    origin: str


@dataclass(frozen=True)
class WordMap:
    """Where words lie.

    Attributes:
        words: what is drawn.
        tsne: (N, 2).
        pca: (N, 2).
        perplexity: of the t-SNE.
        explained: shares of the variance along the two directions of the PCA.
        clusters: (N,), from 0, the largest first.
        names: of the clusters, the words nearest to their centres.
        seed: of t-SNE and clusters.
    """

    words: Words
    tsne: np.ndarray
    pca: np.ndarray
    perplexity: float
    explained: tuple[float, float]
    clusters: np.ndarray
    names: list[str]
    seed: int


def given_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Words:
    """Words that the user chose.

    Raises:
        UserError: the tokenizer does not know one, or there are too few or too many.
    """
    texts = list(dict.fromkeys(texts))
    _require_readable(len(texts))
    vectors, several, unknown = _vectors(model, tokenizer, texts)
    if unknown:
        named = ", ".join(unknown[:NAMED]) + (" ..." if unknown[NAMED:] else "")
        raise UserError(
            f"the tokenizer does not know {len(unknown)} of the {len(texts)} words: {named}; leave them out"
        )
    return Words(texts, vectors, several, f"{len(texts):,} given words")


def frequent_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], top: int) -> Words:
    """The most frequent words of texts that the tokenizer knows; of equally frequent ones the first to appear.

    Raises:
        UserError: there are too few, or too many.
    """
    _require_readable(top)
    counts = Counter(word for text in texts for word in DRAWABLE_WORD.findall(text))
    ranked = [word for word, _ in counts.most_common()]
    chosen, unknown = ranked[:top], []
    while True:  # an unknown word makes room for the next
        vectors, several, left_out = _vectors(model, tokenizer, chosen)
        if not left_out:
            break
        unknown += left_out
        chosen = [word for word in ranked if word not in unknown][:top]
    origin = f"the {len(chosen):,} most frequent of {len(counts):,} different words of the text"
    origin += f", {len(unknown):,} unknown ones left out" if unknown else ""
    _require_readable(len(chosen))
    return Words(chosen, vectors, several, origin)


def vocabulary_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, top: int) -> Words:
    """The first tokens of the vocabulary that can begin a word, special ones left out.

    A trained vocabulary has its most frequent tokens first. If no token begins with a space, as in one of letters, all
    that begin with a letter are taken.

    Raises:
        UserError: there are too few, or too many.
    """
    _require_readable(top)
    vocabulary = read_vocabulary(tokenizer, vocabulary_size(model))
    texts = [(piece or b"").decode(errors="replace") for piece in vocabulary.pieces]
    ids = [
        id
        for id, text in enumerate(texts)
        if text[:1].isspace() and len(text) > 2 and DRAWABLE_WORD.fullmatch(text.strip())
    ]
    ids = ids or [id for id, text in enumerate(texts) if DRAWABLE_WORD.fullmatch(text)]
    ids = list({texts[id].strip(): id for id in reversed(ids)}.values())[::-1][:top]
    _require_readable(len(ids))
    words = [texts[id].strip() for id in ids]
    return Words(words, _unit(_table(model)[ids]), 0, f"the first {len(ids):,} tokens that begin a word")


def _require_readable(number: int) -> None:
    if not LEAST_WORDS <= number <= MOST_WORDS:
        raise UserError(f"{number} words make no readable picture; give {LEAST_WORDS} to {MOST_WORDS}")


def _table(model: PreTrainedModel) -> np.ndarray:
    """The input embeddings, float64 of shape (V, D)."""
    try:
        table = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError) as error:
        raise UserError(
            f"{type(model).__name__} has no table of input embeddings; give a model that reads tokens"
        ) from error
    table = table.detach().cpu().double().numpy()
    if not np.isfinite(table).all():
        raise UserError("the model's embeddings are NaN or infinite; its weights are damaged")
    return table


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths, lengths, 1)


def _vectors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[np.ndarray, int, list[str]]:
    """A vector for each word inside a text, how many consist of several tokens, and the words without a vector."""
    table = _table(model)
    before, *encoded = encode_ordinary(tokenizer, ["a", *(f"a {text}" for text in texts)])
    encoded = [ids[len(before) :] for ids in encoded]
    require_known(max(map(max, filter(None, encoded)), default=0), len(table))
    unknown = [text for text, ids in zip(texts, encoded, strict=True) if not ids or tokenizer.unk_token_id in ids]
    vectors = [table[ids].mean(axis=0) if ids else np.zeros(table.shape[1]) for ids in encoded]
    several = sum(len(ids) > 1 for ids in encoded)
    return _unit(np.array(vectors).reshape(len(texts), table.shape[1])), several, unknown


def map_words(words: Words, *, clusters: int = 8, perplexity: float | None = None, seed: int = 42) -> WordMap:
    """Lays words out on a plane in two ways; the same seed gives the same map.

    Args:
        words: what is drawn.
        clusters: number of clusters of k-means on all dimensions.
        perplexity: of the t-SNE; by default 30, or a third of the number of words where that is less.
        seed: of t-SNE, PCA and clusters.

    Raises:
        UserError: more clusters than words or colours, a perplexity that needs more words, a seed out of range, or
            vectors that are all the same.
    """
    from sklearn.cluster import KMeans  # half a second that other drawings do not need
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    number, vectors = len(words.texts), words.vectors
    different = len(np.unique(vectors.round(9), axis=0))
    if different == 1:
        raise UserError(f"the {number} words have one and the same vector; give a model that was trained")
    if not 1 <= clusters <= min(len(COLOURS), different):
        raise UserError(
            f"clusters={clusters} does not fit {different} different words and {len(COLOURS)} colours; give 1 to "
            f"{min(len(COLOURS), different)}"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is out of range; give 0 to {2**32 - 1}")
    perplexity = min(PERPLEXITY, (number - 1) / WORDS_PER_NEIGHBOUR) if perplexity is None else perplexity
    if not 1 <= perplexity < number:
        raise UserError(
            f"perplexity={perplexity:g} needs more than {perplexity:g} words and there are {number}; give 1 to "
            f"{number - 1}, or more words"
        )
    with threadpool_limits(1):  # enough for so few words, and the result does not depend on the number of cores
        pca = PCA(2, random_state=seed)
        places = pca.fit_transform(vectors)
        tsne = TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(vectors)
        means = KMeans(clusters, n_init=10, random_state=seed).fit(vectors)
    by_size = np.argsort(-np.bincount(means.labels_, minlength=clusters), kind="stable")
    found = np.argsort(by_size)[means.labels_]
    near = np.argsort(-(vectors @ means.cluster_centers_[by_size].T), axis=0, kind="stable")  # (N, clusters)
    own = [[words.texts[word] for word in near[:, cluster] if found[word] == cluster] for cluster in range(clusters)]
    return WordMap(
        words,
        tsne.astype(float),
        places,
        float(perplexity),
        tuple(map(float, pca.explained_variance_ratio_)),
        found,
        [", ".join(texts[:NAMED]) for texts in own],
        seed,
    )


def neighbours(words: Words) -> list[list[tuple[int, float]]]:
    """For each word its nearest others with their cosines, the nearest first; of equal ones the first."""
    cosines = words.vectors @ words.vectors.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(cosines) - 1)]
    return [[(int(other), float(cosines[word, other])) for other in row] for word, row in enumerate(nearest)]


def word_figure(word_map: WordMap, places: np.ndarray, title: str, caption: str) -> Figure:
    """Words at their `places` in the colour and shape of their cluster, labelled where nothing would overlap."""
    import textalloc

    texts = [legible(shorten(text, LETTERS)) for text in word_map.words.texts]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=FIGURE_INCHES, layout="constrained")
        axes = figure.subplots()
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set(visible=True, color="0.85")
        axes.margins(0.06)
        axes.set_title(" ", loc="right", fontsize=8.5)
        for cluster, name in enumerate(word_map.names):
            x, y = places[word_map.clusters == cluster].T
            style = {"color": COLOURS[cluster], "marker": MARKERS[cluster], "edgecolors": "white", "linewidths": 0.5}
            area = 110 if MARKERS[cluster] == "*" else 50
            axes.scatter(x, y, s=area, label=legible(shorten(name, 34)), **style)
        axes.legend(loc="upper left", bbox_to_anchor=(0, 0), ncols=4, fontsize=8.5, handletextpad=0.2)
        write_around(figure, title, caption)
        textalloc.allocate(
            axes,
            *places.T,
            texts,
            x_scatter=places[:, 0],
            y_scatter=places[:, 1],
            textsize=8.5,
            textcolor="black",
            linecolor="0.65",
            linewidth=0.6,
            min_distance=0.008,
            max_distance=0.06,
            margin=0.003,
            avoid_label_lines_overlap=True,
            avoid_crossing_label_lines=True,
            draw_all=False,
        )
        if missing := len(texts) - len(axes.texts):
            axes.set_title(f"{missing} of {len(texts)} words without room for a label", loc="right", fontsize=8.5)
    return figure


def word_pictures(word_map: WordMap, name: str) -> list[Picture]:
    """Drawings of t-SNE and PCA, and both as one interactive fragment; `name` is the model's, for the captions."""
    words, seed = word_map.words, word_map.seed
    means = f", {words.several:,} of them the mean of several tokens" if words.several else ""
    common = (
        f"{name}: input embeddings of {words.origin}{means}, each scaled to length 1. "
        f"Colours and shapes are {len(word_map.names)} clusters (k-means on all {words.vectors.shape[1]} dimensions, "
        f"seed {seed}), named after the words at their centres. "
    )
    near = (
        f"t-SNE of their cosine distances, perplexity {word_map.perplexity:.3g}, seed {seed}: near words are alike; "
        "distances between far ones, directions and the size of a group mean nothing."
    )
    first, second = word_map.explained
    wide = (
        f"PCA: the two directions in which the words differ most; they hold {first:.1%} (across) and {second:.1%} "
        "(upwards) of the variance; the rest is not shown here."
    )
    drawings = (
        ("embeddings_tsne", "Words that the model treats alike (t-SNE)", common + near, word_map.tsne),
        ("embeddings_pca", "The two widest directions of the words (PCA)", common + wide, word_map.pca),
    )
    page = word_html(word_map, common, {"t-SNE": near, "PCA": wide})
    return [
        *(
            Picture(file, title, caption, figure=word_figure(word_map, places, title, caption))
            for file, title, caption, places in drawings
        ),
        Picture("embeddings", "A map of words", common, html=page),
    ]


def word_html(word_map: WordMap, caption: str, views: dict[str, str]) -> str:
    """The map as a fragment of a page: zoom, search, and the neighbours of the word under the pointer or finger."""
    places = [_to_square(word_map.tsne), _to_square(word_map.pca)]
    return fill_template(
        "word_map.html",
        __package__,
        caption=caption,
        views=views,
        data={
            "words": word_map.words.texts,
            "clusters": word_map.clusters.tolist(),
            "names": word_map.names,
            "places": [[[round(float(x), 4), round(float(y), 4)] for x, y in view] for view in places],
            "neighbours": [[[other, round(cosine, 3)] for other, cosine in row] for row in neighbours(word_map.words)],
            "colours": COLOURS,
        },
    )


def _to_square(places: np.ndarray) -> np.ndarray:
    """Around 0, the longer direction from -0.5 to 0.5, downwards as on a screen."""
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - (low + high) / 2) / (high - low).max() * (1, -1)


def draw_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: EmbeddingPictures
) -> list[Path]:
    """Draws where the words of a model lie, and a page to search them; returns the files written.

    Raises:
        UserError: a file that cannot be read, too few or too many words, an unknown one, what `map_words` raises, or
            files that cannot be written.
    """
    if wanted.words is not None:
        try:
            found = given_words(model, tokenizer, wanted.words.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--words {wanted.words}: cannot be read ({one_line(error)}); give a text file of words"
            ) from error
    elif wanted.data is not None:
        texts = itertools.islice(read_scored_texts(wanted.data, text_column=wanted.text_column), wanted.max_documents)
        found = frequent_words(model, tokenizer, texts, wanted.top)
    else:
        found = vocabulary_words(model, tokenizer, wanted.top)
    word_map = map_words(found, clusters=wanted.clusters, perplexity=wanted.perplexity, seed=wanted.seed)
    return write_pictures(word_pictures(word_map, model_name(model)), wanted.output_dir, "embeddings")
