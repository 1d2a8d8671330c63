"""What a model expects along a text: the same numbers as scoring, the same letters as the text, clear refusals."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from picture_models import STORY, WORDS, gpt2
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.pictures import tokens
from smallm_hf.pictures.configuration import TokenPictures
from smallm_hf.pictures.tokens import draw_tokens, heat_map, probability_figure, read_along

HOSTILE = "The cat </script><script>alert(1)</script> & <b>ran</b> {{ 7 * 7 }} $x$ “\"'"


class Spans(HTMLParser):
    """The text of the heat map without the signs for line breaks, and the tags that are open at the end."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.text, self.tags, self.signs = [], "", [], 0
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append((tag, dict(attributes).get("class")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if ("p", "text") in self.open and self.open[-1][0] == "span":
            self.text += data


def rows_of(page: str) -> list:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize("positions", [64, 7])
def test_the_nats_add_up_to_what_scoring_says_of_the_text_in_one_window_or_many(bpe, positions):
    model = gpt2(positions=positions)
    reading, scores = read_along(model, bpe, STORY), score_documents(model, bpe, [STORY])
    nats = [-math.log(token.probability) for token in reading.tokens]
    assert len(nats) == scores["tokens"] > 7
    assert sum(nats) / len(nats) == pytest.approx(scores["loss"], rel=1e-6)
    assert np.mean([token.rank == 1 for token in reading.tokens]) == pytest.approx(scores["top1_accuracy"])
    assert f"{scores['bits_per_byte']:.3f} bits per byte, {scores['loss']:.3f} nats per token" in heat_map(reading)


def test_every_kind_of_model_is_read(any_model, bpe):
    tokens_read = read_along(any_model, bpe, STORY).tokens
    assert "".join(token.piece for token in tokens_read) == STORY
    assert all(0 < token.probability <= 1 for token in tokens_read)


@pytest.mark.parametrize("text", [STORY, " \n spaces   around\t \n", "🐱🐱", "ï", HOSTILE])
def test_the_pieces_are_the_text(model, bpe, text):
    assert "".join(token.piece for token in read_along(model, bpe, text).tokens) == text.strip()


def test_a_model_that_knows_nothing_gives_all_tokens_the_same_and_the_lower_id_comes_first(words):
    model = gpt2(len(WORDS))
    for parameter in model.parameters():
        parameter.zero_()
    first, second = read_along(model, words, "cat a", top_k=3).tokens
    assert (first.label, first.probability, first.rank) == ("␣cat", pytest.approx(1 / 9), 1 + WORDS.index("cat"))
    assert second.rank == 1 + WORDS.index("a")
    assert (second.entropy_bits, second.bits) == pytest.approx((math.log2(9), math.log2(9)))
    assert first.choices == [(label, pytest.approx(1 / 9)) for label in ("</s>", "<unk>", "␣a")]


def test_the_choices_are_those_of_the_softmax(model, bpe):
    ids = bpe(STORY, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([[bpe.eos_token_id, *ids]])).logits[0]
    reading = read_along(model, bpe, STORY, top_k=4).tokens
    for row, token, id in zip(logits.double().softmax(-1), reading, ids, strict=False):
        assert token.probability == pytest.approx(row[id].item())
        assert [share for _, share in token.choices] == pytest.approx(row.topk(4).values.tolist())
        assert token.rank == 1 + (row > row[id]).sum().item()


def test_the_heat_map_holds_the_text_and_nothing_of_it_is_run(model, bpe):
    for text in (STORY, HOSTILE):
        page = heat_map(read_along(model, bpe, text))
        spans = Spans(page)
        assert spans.open == []
        assert spans.text == text
        scripts = [attributes for tag, attributes in spans.tags if tag == "script"]
        assert scripts == [{"type": "application/json"}, {}]
        assert not re.search(r"https?:|src=|href=|@import|url\(", page)
        assert len(rows_of(page)) == len(read_along(model, bpe, text).tokens)


def test_the_heat_is_the_surprise_and_full_from_ten_bits_on(words):
    model = gpt2(len(WORDS), initializer_range=3.0)
    reading = read_along(model, words, "cat dog she he ran a sat")
    heats = [float(heat) for heat in re.findall(r"--heat: ([\d.]+)", heat_map(reading))]
    assert heats == pytest.approx([min(1, token.bits / 10) for token in reading.tokens], abs=1e-3)
    assert max(heats) == 1 > min(heats)


def test_the_drawing_shows_each_probability_and_says_what_it_leaves_out(model, bpe, monkeypatch):
    reading = read_along(model, bpe, STORY)
    figure = probability_figure(reading, "a title")
    came = [bar.get_width() for bar in figure.axes[0].patches]
    assert came == [token.probability for token in reading.tokens]
    entropy = [bar.get_width() for bar in figure.axes[2].patches]
    assert entropy == [token.entropy_bits for token in reading.tokens]
    assert "are drawn" not in figure.get_supxlabel()
    monkeypatch.setattr(tokens, "DRAWN_TOKENS", 5)
    cut = probability_figure(reading, "a title")
    assert len(cut.axes[0].patches) == 5
    assert "The first 5 of them are drawn." in cut.get_supxlabel().replace("\n", " ")


def test_what_exceeds_a_page_is_left_out_and_counted(model, bpe, monkeypatch):
    whole = read_along(model, bpe, STORY)
    monkeypatch.setattr(tokens, "MOST_TOKENS", 6)
    cut = read_along(model, bpe, STORY)
    assert (whole.left_out, cut.left_out) == (0, len(whole.tokens) - 6)
    assert [token.rank for token in cut.tokens] == [token.rank for token in whole.tokens[:6]]
    assert f"{cut.left_out} more tokens of the text are left out." in tokens.caption_of(cut)
    assert "left out" not in tokens.caption_of(whole)


def test_drawing_twice_gives_the_same_files(model, bpe, tmp_path):
    first = draw_tokens(model, bpe, TokenPictures(text=HOSTILE, output_dir=tmp_path / "first"))
    second = draw_tokens(model, bpe, TokenPictures(text=HOSTILE, output_dir=tmp_path / "second"))
    assert [file.name for file in first] == ["tokens.png", "tokens.svg", "tokens.html"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_documents_of_a_file_are_numbered_and_share_a_page(model, bpe, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"The cat {n}"}) + "\n" for n in "abc"))
    options = {"data": str(tmp_path / "texts.jsonl"), "output_dir": tmp_path}
    files = draw_tokens(model, bpe, TokenPictures(max_documents=2, **options))
    assert [file.name for file in files] == [
        "tokens_1.png",
        "tokens_1.svg",
        "tokens_2.png",
        "tokens_2.svg",
        "tokens.html",
    ]
    assert files[-1].read_text().count('<figure class="heat-map">') == 2
    files = draw_tokens(model, bpe, TokenPictures(**options))
    assert [file.name for file in files] == ["tokens.png", "tokens.svg", "tokens.html"]


def test_a_page_fills_its_panel_in_a_browser(model, bpe, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium here to run the script of the page")
    *_, page = draw_tokens(model, bpe, TokenPictures(text=HOSTILE, output_dir=tmp_path))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    finished = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    hottest = max(read_along(model, bpe, HOSTILE).tokens, key=lambda token: token.bits)
    assert f"choice {hottest.rank}, surprise {hottest.bits:.2f} bits" in finished.stdout


TEXT = {"text": "The cat"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"text": " \n "}, "the text is empty; give a text of at least one token"),
        ({}, "neither --text nor --data is given; give one of them"),
        ({**TEXT, "data": "x.txt"}, "both --text and --data are given; give one of them"),
        ({**TEXT, "top_k": 301}, "top_k=301 does not fit the vocabulary of 300 tokens; give 1 to 300"),
        ({**TEXT, "top_k": 0}, "top_k=0 does not fit"),
        ({**TEXT, "max_documents": 0}, "max_documents=0 reads nothing; give 1 or more"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_one_line(model, bpe, tmp_path, asked, message):
    with pytest.raises(UserError, match=message) as error:
        draw_tokens(model, bpe, TokenPictures(**asked, output_dir=tmp_path / "figures"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "figures").exists()


def test_models_and_tokenizers_that_cannot_answer_are_refused(model, bpe, words, tmp_path):
    sizes = {"vocab_size": 300, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(intermediate_size=16, max_position_embeddings=64, **sizes)
    with pytest.raises(UserError, match="BertForMaskedLM is masked and does not read along a text; give a causal"):
        read_along(BertForMaskedLM(config).eval(), bpe, "The cat")
    with pytest.raises(UserError, match="BertLMHeadModel is not causal"):
        read_along(BertLMHeadModel(config).eval(), bpe, "The cat")
    with pytest.raises(UserError, match=r"token id \d+ is outside the model's vocabulary of 9; take the tokenizer of"):
        read_along(gpt2(9), bpe, "The cat")
    damaged = gpt2()
    damaged.lm_head.weight.fill_(math.nan)
    with pytest.raises(UserError, match="logits are not numbers"):
        read_along(damaged, bpe, "The cat")
    (tmp_path / "tokens.png").mkdir()
    with pytest.raises(UserError, match=r"tokens.png cannot be written: .*; give another --output_dir"):
        draw_tokens(model, bpe, TokenPictures(**TEXT, output_dir=tmp_path))
