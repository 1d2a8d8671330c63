"""Maps of words: vectors as promised, groups that are there are found, labels that never overlap."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from picture_models import KINDS, STORY, WORDS, gpt2

from smallm_hf.base.errors import UserError
from smallm_hf.pictures import embeddings
from smallm_hf.pictures.configuration import EmbeddingPictures
from smallm_hf.pictures.embeddings import (
    Words,
    draw_embeddings,
    frequent_words,
    given_words,
    map_words,
    neighbours,
    vocabulary_words,
    word_figure,
    word_pictures,
)

HOSTILE = ["</script><script>alert(1)</script>", "<b>", "$x$", "{{x}}", "&", "\"'"]


def groups(sizes: tuple[int, ...], spread: float = 0.05) -> Words:
    """Words around axes that are at right angles, named after their group."""
    draw = np.random.default_rng(0)
    vectors = np.concatenate([np.eye(8)[g] + spread * draw.normal(size=(size, 8)) for g, size in enumerate(sizes)])
    texts = [f"word{g}.{n}" for g, size in enumerate(sizes) for n in range(size)]
    return Words(texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 0, "invented words")


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_has_the_vector_of_its_token_or_the_mean_of_its_tokens_scaled_to_one(kind, bpe):
    model = KINDS[kind]()
    texts = ["cat", "the", "Lily", "mat", "dogcat"]
    found = given_words(model, bpe, texts)
    table = model.get_input_embeddings().weight.detach().double().numpy()
    several = 0
    for text, vector in zip(texts, found.vectors, strict=True):
        ids = bpe(f" {text}", add_special_tokens=False)["input_ids"]
        several += len(ids) > 1
        np.testing.assert_allclose(vector, unit(table[ids].mean(axis=0)))
    assert found.several == several > 0
    assert found.origin == "5 given words"


def test_the_most_frequent_words_that_are_known_come_first(words):
    model = gpt2(len(WORDS))
    texts = ["cat cat cat zebra zebra dog dog he", "she ran sat, 7 a cat"]
    found = frequent_words(model, words, texts, top=5)
    assert found.texts == ["cat", "dog", "he", "she", "ran"]
    assert found.origin == "the 5 most frequent of 8 different words of the text, 1 unknown ones left out"


def test_words_of_the_vocabulary_are_the_tokens_that_begin_one(model, bpe, words):
    found = vocabulary_words(model, bpe, top=6)
    tokens = [
        token[1:] for token in bpe.convert_ids_to_tokens(list(range(300))) if re.fullmatch("Ġ[A-Za-z]{2,}", token)
    ]
    assert found.texts == tokens[:6]
    assert vocabulary_words(gpt2(len(WORDS)), words, top=20).texts == ["he", "she", "cat", "dog", "ran", "sat"]


def test_neighbours_are_the_words_of_the_largest_cosine():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]])
    found = neighbours(Words(list("abcd"), vectors, 0, ""))
    assert [other for other, _ in found[0]] == [1, 2, 3]
    assert [cosine for _, cosine in found[0]] == pytest.approx([0.8, 0.0, -1.0])
    assert [other for other, _ in found[3]] == [2, 1, 0]


def test_groups_that_are_there_are_found_kept_together_and_named_after_their_own_words():
    words = groups((9, 12, 7))
    found = map_words(words, clusters=3)
    assert found.clusters.tolist() == [1] * 9 + [0] * 12 + [2] * 7  # the largest first
    for cluster, group in enumerate((1, 0, 2)):
        assert all(name.startswith(f"word{group}.") for name in found.names[cluster].split(", "))
    for places in (found.tsne, found.pca):
        centres = np.array([places[found.clusters == cluster].mean(axis=0) for cluster in range(3)])
        nearest = np.linalg.norm(places[:, None] - centres, axis=-1).argmin(axis=1)
        assert nearest.tolist() == found.clusters.tolist()


def test_the_pca_is_the_one_of_the_singular_values():
    words = groups((10, 10), spread=0.3)
    found = map_words(words, clusters=2)
    centred = words.vectors - words.vectors.mean(axis=0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    assert found.explained == pytest.approx(variances[:2] / variances.sum())
    np.testing.assert_allclose((found.pca**2).sum(axis=0), variances[:2])


def test_the_perplexity_follows_the_number_of_words_unless_it_is_given():
    assert map_words(groups((5, 5)), clusters=2).perplexity == 3
    assert map_words(groups((5, 5)), clusters=2, perplexity=4.5).perplexity == 4.5
    assert map_words(groups((60, 60)), clusters=2).perplexity == 30


def test_labels_overlap_neither_each_other_nor_the_border_and_the_missing_are_counted():
    words = groups((60, 60, 60))
    found = map_words(words, clusters=3)
    for places in (found.tsne, found.pca):
        figure = word_figure(found, places, "title", "caption")
        axes = figure.axes[0]
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts]
        border = axes.get_window_extent()
        for number, box in enumerate(boxes):
            assert border.x0 <= box.x0 < box.x1 <= border.x1
            assert border.y0 <= box.y0 < box.y1 <= border.y1
            assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        missing = 180 - len(boxes)
        assert axes.get_title(loc="right") == (f"{missing} of 180 words without room for a label" if missing else " ")
        legend, below = axes.get_legend().get_window_extent(), figure._supxlabel.get_window_extent()
        assert not legend.overlaps(below)


def test_captions_say_how_many_words_by_what_and_how_much_is_seen():
    near, wide, page = word_pictures(map_words(groups((10, 10)), clusters=2, seed=3), "my model")
    for picture in (near, wide, page):
        assert "my model: input embeddings of invented words" in picture.caption
        assert "2 clusters (k-means on all 8 dimensions, seed 3)" in picture.caption
    assert "perplexity 6.33, seed 3" in near.caption
    assert re.search(r"they hold \d+\.\d% \(across\) and \d+\.\d% \(upwards\) of the variance", wide.caption)


def test_the_page_holds_all_words_and_nothing_of_them_is_run():
    words = groups((4, 4))
    words = Words(HOSTILE + words.texts[len(HOSTILE) :], words.vectors, 2, "invented words")
    page = word_pictures(map_words(words, clusters=2), "<i>model</i>")[-1].shown
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert data["words"] == words.texts
    assert page.count("<script") == 2
    assert "<i>model" not in page
    assert not re.search(r"src=|href=|@import|url\(", page)
    assert re.findall(r"https?://[^\"]*", page) == ["http://www.w3.org/2000/svg"]  # a name and no address
    for view in data["places"]:
        assert np.abs(view).max() == pytest.approx(0.5)


def test_the_same_seed_gives_the_same_files_also_with_words_that_look_like_formulas(bpe, model, tmp_path):
    (tmp_path / "words.txt").write_text("cat the $x$ Lily\nmat </script> cat 猫")
    options = {"words": tmp_path / "words.txt", "clusters": 2}
    first = draw_embeddings(model, bpe, EmbeddingPictures(**options, output_dir=tmp_path / "first"))
    second = draw_embeddings(model, bpe, EmbeddingPictures(**options, output_dir=tmp_path / "second"))
    named = [f"embeddings_{way}.{suffix}" for way in ("tsne", "pca") for suffix in ("png", "svg")]
    assert [file.name for file in first] == [*named, "embeddings.html"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert "7 given words" in first[-1].read_text()


def test_a_page_shows_neighbours_in_a_browser(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium here to run the script of the page")
    words = groups((9, 5))
    pictures = word_pictures(map_words(words, clusters=2), "a model")
    (page,) = embeddings.write_pictures(pictures[-1:], tmp_path, "embeddings")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    finished = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    listed = re.findall(r"<li><button type=\"button\"><span>([^<]*)</span>", finished.stdout)
    assert listed == [words.texts[other] for other, _ in neighbours(words)[0]]
    assert len(re.findall(r"<text[^>]*>word", finished.stdout)) == 14


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"words": "cat the mat"}, "3 words make no readable picture; give 5 to 500"),
        (
            {"words": "cat the mat Lily The", "clusters": 6},
            "clusters=6 does not fit 5 different words and 10 colours; give 1 to 5",
        ),
        ({"words": "cat the mat Lily The", "clusters": 0}, "clusters=0 does not fit"),
        (
            {"words": "cat the mat Lily The", "clusters": 2, "perplexity": 5},
            "perplexity=5 needs more than 5 words and there are 5; give 1 to 4, or more words",
        ),
        ({"top": 3}, "3 words make no readable picture; give 5 to 500"),
        ({"top": -3}, "-3 words make no readable picture"),
        ({"seed": -1, "clusters": 2}, "seed=-1 is out of range; give 0 to 4294967295"),
        ({"max_documents": 0}, "max_documents=0 reads nothing"),
        ({"words": "cat", "data": "x"}, "both --words and --data are given; give one of them"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_of_one_line(model, bpe, tmp_path, asked, message):
    if "words" in asked:
        (tmp_path / "words.txt").write_text(asked["words"])
        asked = asked | {"words": tmp_path / "words.txt"}
    with pytest.raises(UserError, match=re.escape(message)) as error:
        draw_embeddings(model, bpe, EmbeddingPictures(**asked, output_dir=tmp_path / "figures"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "figures").exists()


def test_words_models_and_files_that_do_not_fit_are_refused(model, bpe, words, tmp_path):
    with pytest.raises(UserError, match=r"the tokenizer does not know 2 of the 5 words: owl, fox; leave them out"):
        given_words(gpt2(len(WORDS)), words, ["cat", "owl", "fox", "dog", "he"])
    with pytest.raises(UserError, match="0 words make no readable picture"):
        frequent_words(model, bpe, ["1 2 3", ""], top=5)
    with pytest.raises(UserError, match=r"--words .*nowhere.txt: cannot be read \(.*\); give a text file of words"):
        draw_embeddings(model, bpe, EmbeddingPictures(words=tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match="is outside the model's vocabulary of 9"):
        given_words(gpt2(9), bpe, STORY.split())
    with pytest.raises(UserError, match="the 6 words have one and the same vector"):
        map_words(Words(list("abcdef"), np.ones((6, 4)) / 2, 0, ""), clusters=1)
    damaged = gpt2()
    damaged.transformer.wte.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="the model's embeddings are NaN"):
        given_words(damaged, bpe, STORY.split())
