"""Attention maps: laws of attention on every kind of model, what a head is named after, clear refusals."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from picture_models import STORY, gpt2
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from smallm_hf.base.errors import UserError
from smallm_hf.pictures import attention
from smallm_hf.pictures.attention import draw_attention, habit, read_attention
from smallm_hf.pictures.configuration import AttentionPictures


def test_each_row_is_a_share_of_what_came_before(any_model, bpe):
    read = read_attention(any_model, bpe, "The cat sat")
    assert read.maps.shape == (2, 2, len(read.tokens), len(read.tokens))
    np.testing.assert_allclose(read.maps.sum(-1), 1, rtol=1e-5)
    assert not np.triu(read.maps, k=1).any()
    assert read.tokens[0] == bpe.eos_token
    assert "".join(read.tokens[1:]) == "The␣cat␣sat"


def test_the_maps_are_those_of_the_library_and_the_model_is_left_as_it_was(any_model, bpe):
    assert any_model.config._attn_implementation == "sdpa"
    any_model.train()
    maps = read_attention(any_model, bpe, "The cat sat").maps
    assert any_model.config._attn_implementation == "sdpa"
    assert any_model.training
    ids = torch.tensor([[bpe.eos_token_id, *bpe("The cat sat", add_special_tokens=False)["input_ids"]]])
    any_model.eval().set_attn_implementation("eager")
    with torch.inference_mode():
        expected = torch.cat(any_model(ids, output_attentions=True).attentions)
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("positions", [64, 8])
def test_a_longer_text_is_cut_which_changes_no_map_and_is_said(bpe, positions, tmp_path):
    model = gpt2(positions=positions)
    short, long = read_attention(model, bpe, "The cat"), read_attention(model, bpe, STORY)
    shown = min(positions, attention.SHOWN_TOKENS)
    assert (len(long.tokens), short.left_out) == (shown, 0)
    assert long.left_out == 1 + len(bpe(STORY, add_special_tokens=False)["input_ids"]) - shown
    length = len(short.tokens)
    np.testing.assert_allclose(long.maps[:, :, :length, :length], short.maps, atol=1e-6)
    picture, page = attention.attention_pictures(model, bpe, STORY)
    assert f"{long.left_out} more tokens of the text are not shown." in picture.caption
    assert f"{long.left_out} more tokens of the text are not shown." in page.html
    picture, page = attention.attention_pictures(model, bpe, "The cat")
    assert "not shown" not in picture.caption + page.html


def test_a_head_is_named_after_the_place_it_mostly_looks_at():
    own = np.eye(4)
    previous = np.eye(4, k=-1)
    first = np.zeros((4, 4))
    first[:, 0] = 1
    assert [habit(head) for head in (own, previous, first)] == ["own 100%", "previous 100%", "first 100%"]
    assert habit(0.6 * previous + 0.4 * own) == "previous 60%"
    assert habit(0.5 * previous + 0.5 * own) == ""
    assert habit(np.eye(2)) == ""


def test_the_grid_has_a_row_for_each_layer_and_a_column_for_each_head_and_can_be_narrowed(model, bpe):
    maps = read_attention(model, bpe, "The cat sat").maps
    for asked, shape in (
        ({}, (2, 2)),
        ({"layer": 1}, (1, 2)),
        ({"head": 1}, (2, 1)),
        ({"layer": 1, "head": 0}, (1, 1)),
    ):
        picture, _ = attention.attention_pictures(model, bpe, "The cat sat", **asked)
        *grid, _ = picture.figure.axes  # the last is the scale
        layers = [asked["layer"]] if "layer" in asked else [0, 1]
        heads = [asked["head"]] if "head" in asked else [0, 1]
        assert len(grid) == shape[0] * shape[1]
        for axes, (layer, head) in zip(grid, [(layer, head) for layer in layers for head in heads], strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), maps[layer, head])
            name = f"layer {layer}, head {head}" if shape == (1, 1) else f"{layer}·{head}"
            assert axes.get_title().startswith(name)
    numbers = [text.get_text() for text in grid[0].texts]
    assert numbers[0] == "100"


def test_files_are_named_after_what_was_asked_and_the_same_each_time(model, bpe, tmp_path):
    first = draw_attention(
        model, bpe, AttentionPictures(text="The $cat$ 🐱", layer=1, head=0, output_dir=tmp_path / "first")
    )
    second = draw_attention(
        model, bpe, AttentionPictures(text="The $cat$ 🐱", layer=1, head=0, output_dir=tmp_path / "second")
    )
    assert [file.name for file in first] == [f"attention_layer1_head0.{suffix}" for suffix in ("png", "svg", "html")]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert draw_attention(model, bpe, AttentionPictures(text="The", output_dir=tmp_path))[0].name == "attention.png"


def content(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_the_maps_and_needs_nothing_else(model, bpe):
    text = "</script><b>The cat"
    read = read_attention(model, bpe, text)
    _, page = attention.attention_pictures(model, bpe, text)
    assert page.html.count("<script") == 2
    assert not re.search(r"src=|href=|@import|url\(|https?:", page.html)
    held = content(page.html)
    assert "".join(held["tokens"][1:]) == text
    mean, *heads = held["heads"]
    assert (mean["name"], [head["name"] for head in heads]) == ("mean of all", ["0·0", "0·1", "1·0", "1·1"])
    np.testing.assert_allclose(np.array(mean["shares"]) / 1000, read.maps.mean((0, 1)), atol=5e-4)
    for head, shares in zip(heads, read.maps.reshape(4, *read.maps.shape[2:]), strict=True):
        np.testing.assert_allclose(np.array(head["shares"]) / 1000, shares, atol=5e-4)
        assert head["does"] == habit(shares)


def test_the_page_of_one_head_has_one_card(model, bpe):
    _, page = attention.attention_pictures(model, bpe, "The cat", layer=1, head=0)
    assert [head["name"] for head in content(page.html)["heads"]] == ["1·0"]
    _, page = attention.attention_pictures(model, bpe, "The cat", layer=1)
    assert [head["name"] for head in content(page.html)["heads"]] == ["mean of all", "1·0", "1·1"]


def test_a_token_that_is_touched_shows_where_each_head_looks_from_it(model, bpe, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium here to run the script of the page")
    *_, page = draw_attention(model, bpe, AttentionPictures(text="The cat sat", output_dir=tmp_path))
    touch = "<script>document.querySelectorAll('.attention .heads p')[1].children[2].click()</script>"
    page.write_text(page.read_text() + touch)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    finished = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    read = read_attention(model, bpe, "The cat sat")
    shown = re.findall(r"<span>→ (\S+) (\d+)%</span>", finished.stdout)
    assert finished.stdout.count("aria-current") - finished.stdout.count("[aria-current]") >= 1 + len(shown) == 6
    for (token, share), row in zip(shown[1:], read.maps[:, :, 2].reshape(4, -1), strict=True):
        assert html.unescape(token) == read.tokens[row.argmax()].strip("␣")
        assert int(share) == pytest.approx(100 * row.max(), abs=0.6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"text": ""}, "the text is empty; give a text of at least one token"),
        ({"text": "The", "layer": 2}, "layer 2 is not there; the model has layers 0 to 1"),
        ({"text": "The", "head": -1}, "head -1 is not there; the model has heads 0 to 1"),
    ],
)
def test_what_is_not_there_is_an_error_of_one_line(model, bpe, asked, message, tmp_path):
    with pytest.raises(UserError, match=message):
        draw_attention(model, bpe, AttentionPictures(**asked, output_dir=tmp_path))


def test_a_masked_model_reads_the_text_between_the_tokens_it_was_trained_with():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]
    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name.strip('[]').lower()}_token": name for name in words[:5]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    sizes = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(intermediate_size=16, max_position_embeddings=32, **sizes)).eval()
    read = read_attention(model, tokenizer, "the cat " * 20)
    assert len(read.tokens) == attention.SHOWN_TOKENS
    assert (read.tokens[0], read.tokens[-1], read.left_out) == ("[CLS]", "[SEP]", 40 - attention.SHOWN_TOKENS + 2)
    assert np.triu(read.maps, k=1).any()  # it looks ahead too
    picture, _ = attention.attention_pictures(model, tokenizer, "the cat")
    assert "The first token precedes the text. The last one follows it." in picture.caption


def test_models_without_maps_are_refused(bpe):
    with pytest.raises(UserError, match="is seq2seq; attention is drawn for causal and masked"):
        read_attention(T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=8, num_layers=1)), bpe, "The cat")
    config = MambaConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, state_size=4)
    with pytest.raises(UserError, match="MambaForCausalLM returns no attention maps"):
        read_attention(MambaForCausalLM(config).eval(), bpe, "The cat")
    damaged = gpt2()
    damaged.transformer.wte.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="the model's attention is NaN"):
        read_attention(damaged, bpe, "The cat")
    with pytest.raises(UserError, match=r"token id \d+ is outside the model's vocabulary of 9"):
        read_attention(gpt2(9), bpe, "The cat")
