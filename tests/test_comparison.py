"""Models side by side: next words against all token sequences, equal rows for equal models, reports, mistakes."""

import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from running import train
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from smallm_hf.base.errors import UserError
from smallm_hf.comparison import comparing, report
from smallm_hf.comparison.comparing import compare_models
from smallm_hf.comparison.configuration import PROMPTS, ComparisonConfig, read_benchmark, read_prompts
from smallm_hf.comparison.measuring import SideBySide, measure_model
from smallm_hf.comparison.words import (
    Word,
    ends_in_a_word,
    entropy_bits,
    first_word,
    next_words,
    predictor,
    read_vocabulary,
)
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.evaluation.variety import variety
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, prompt_ids, seed_of
from smallm_hf.pretrained import load_causal_lm

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "compare.py"
LETTERS = ["</s>", "a", "b", " ", ".", "ab", " a", "b."]
STORIES = ["ab a. b", "bab ab"]
QUICK = SideBySide(top_k=4, max_new_tokens=6, speed_tokens=4, repetitions=2)
ON_CPU = {"device": "cpu"}
MEASURED = ("load_seconds", "tokens_per_second", "bytes_per_second", "peak_memory_bytes", "seconds")


def spelling_tokenizer(tokens: list[str]) -> PreTrainedTokenizerFast:
    """Reads letter by letter, and writes tokens as they are spelled."""
    tokenizer = Tokenizer(models.WordLevel({token: id for id, token in enumerate(tokens)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def word_tokenizer(words: list[str], **special: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", **special)


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: a `##s` goes on with the word before it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", ".", "dog"]
    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": text for name, text in names.items()}
    )


def gpt2(vocab_size: int = len(LETTERS), positions: int = 32, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.6}
    config = GPT2Config(vocab_size=vocab_size, n_positions=positions, bos_token_id=0, eos_token_id=0, **sizes)
    return GPT2LMHeadModel(config).requires_grad_(False).eval()


def save(folder: Path, model, tokenizer) -> str:
    model.save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Two causal models that differ, a copy of the first, and two masked ones."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = spelling_tokenizer(LETTERS)
    made = {name: save(root / name, gpt2(seed=seed), tokenizer) for seed, name in enumerate("ab")}
    made["copy"] = shutil.copytree(made["a"], root / "copy")
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 16, "initializer_range": 0.5}
    torch.manual_seed(0)
    made["albert"] = save(
        root / "albert", AlbertForMaskedLM(AlbertConfig(embedding_size=8, **sizes)), piece_tokenizer()
    )
    made["bert"] = save(root / "bert", BertForMaskedLM(BertConfig(**sizes)), piece_tokenizer())
    made["encoder"] = save(root / "encoder", BertLMHeadModel(BertConfig(**sizes)), piece_tokenizer())
    made["misfit"] = save(root / "misfit", gpt2(vocab_size=3), tokenizer)
    no_mask = word_tokenizer(["</s>", "<unk>", "the"])
    made["no_mask"] = save(root / "no_mask", BertForMaskedLM(BertConfig(**sizes)), no_mask)
    return {name: str(folder) for name, folder in made.items()}


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    return str(tmp_path / "text.jsonl")


@pytest.fixture
def here(monkeypatch):
    """Measures in this process, which saves the seconds that a fresh one takes to import the libraries."""
    monkeypatch.setattr(comparing, "in_own_process", lambda measure, *asked: measure(*asked))


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("following", "inside", "word", "closed"),
    [
        (" there", False, Word("there"), False),
        (" there was", False, Word("there"), True),
        ("\n\nThere,", False, Word("There"), True),
        (', and"', True, Word(","), True),
        (" ,", True, Word(","), True),
        ("urday", True, Word("urday", "ending"), False),
        ("'s hat", True, Word("'s", "ending"), True),
        ("urday", False, Word("urday"), False),
        (" don't.", True, Word("don't"), True),
        (" 'don", True, Word("'"), True),
        (" \n", True, None, False),
        ("", True, None, False),
    ],
)
def test_a_word_begins_and_ends_where_a_reader_sees_it(following, inside, word, closed):
    assert first_word(following, inside) == (word, closed)


def test_a_prompt_that_stops_behind_a_letter_can_go_on_inside_its_last_word():
    assert [ends_in_a_word(prompt) for prompt in ("sat", "dog's", "sat.", '"', "1", "")] == [1, 1, 0, 0, 1, 0]


def by_hand(tokens: tuple[str, ...], inside: bool) -> Word | None:
    """The next word letter by letter; None where the tokens do not decide."""
    word, kind = "", "ending" if inside else "word"
    for token in tokens:
        if token == "</s>":
            return Word(word, kind) if word else Word(token, "special")
        for letter in token:
            if letter in "ab":
                word += letter
            elif word:
                return Word(word, kind)
            elif letter == ".":
                return Word(".")
            else:
                kind = "word"


@pytest.mark.parametrize("prompt", ["a b", "ab.", "b ab"])
def test_word_probabilities_are_the_sums_over_all_token_sequences(prompt):
    model, tokenizer = gpt2(positions=7), spelling_tokenizer(LETTERS)
    window = torch.tensor(prompt_ids(model, tokenizer, prompt))
    sequences = torch.tensor(list(itertools.product(range(len(LETTERS)), repeat=8 - len(window))))
    rows = torch.cat([window.expand(len(sequences), -1), sequences], dim=1)
    log_probabilities = model(rows[:, :-1]).logits.double().log_softmax(-1)[:, len(window) - 1 :]
    joint = log_probabilities.gather(-1, sequences[..., None]).sum((1, 2)).exp()
    expected = {}
    for sequence, probability in zip(sequences.tolist(), joint.tolist(), strict=True):
        word = by_hand(tuple(LETTERS[id] for id in sequence), prompt[-1] in "ab")
        expected[word] = expected.get(word, 0) + probability
    undecided = expected.pop(None)

    predict, longest = predictor(model, window.tolist())
    vocabulary = read_vocabulary(tokenizer, len(LETTERS))
    everything = {"max_paths": 10**6, "enough": 2.0, "negligible": 0.0}
    words = next_words(predict, vocabulary, inside=ends_in_a_word(prompt), longest=longest, **everything)
    assert words.probabilities == pytest.approx(expected, abs=1e-6)
    assert words.left_out == pytest.approx(undecided, abs=1e-6)
    assert list(words.probabilities.values()) == sorted(words.probabilities.values(), reverse=True)


@pytest.mark.parametrize("max_paths", [1, 3, 40])
def test_a_search_that_stops_early_finds_less_and_says_how_much(max_paths):
    model, tokenizer = gpt2(), spelling_tokenizer(LETTERS)
    predict, longest = predictor(model, prompt_ids(model, tokenizer, "a b"))
    vocabulary = read_vocabulary(tokenizer, len(LETTERS))
    few, many = (
        next_words(predict, vocabulary, inside=True, longest=longest, max_paths=paths, enough=0.999)
        for paths in (max_paths, 2000)
    )
    assert sum(few.probabilities.values()) <= 1 + 1e-9
    assert sum(few.probabilities.values()) + few.left_out == pytest.approx(1)
    for word, probability in many.probabilities.items():
        low = few.probabilities.get(word, 0)
        assert low - 1e-6 <= probability <= low + few.left_out + 1e-6


def test_a_word_level_model_needs_one_step_and_its_words_are_its_tokens():
    words = ["</s>", "<unk>", "the", "cat", "sat", "dog."]
    model, tokenizer = gpt2(len(words)), word_tokenizer(words)
    window = prompt_ids(model, tokenizer, "the cat")
    expected = model(torch.tensor([window])).logits[0, -1].double().softmax(-1).tolist()
    predict, longest = predictor(model, window)
    steps = []
    found = next_words(
        lambda paths: steps.append(len(paths)) or predict(paths),
        read_vocabulary(tokenizer, len(words)),
        inside=True,
        longest=longest,
        enough=2.0,
        negligible=0.0,
    )
    kinds = {"</s>": "special", "<unk>": "special"}
    wanted = {Word(word.strip("."), kinds.get(word, "word")): p for word, p in zip(words, expected, strict=True)}
    assert found.probabilities == pytest.approx(wanted, abs=1e-9)
    assert found.left_out < 1e-9
    assert steps == [1]


def sure_of(*ids: int, vocab_size: int):
    """A model that writes these tokens and no others."""

    def predict(paths):
        probabilities = np.zeros((len(paths), vocab_size))
        for row, path in zip(probabilities, paths, strict=True):
            assert path == ids[: len(path)]
            row[ids[len(path)]] = 1
        return probabilities

    return predict


@pytest.mark.parametrize(
    ("following", "word"), [(" time” she", "time"), (" time’s up", "time’s"), (" café.", "café"), (" 日本 ", "日本")]
)
def test_characters_that_are_cut_into_several_tokens_are_read_whole(gpt2_folder, following, word):
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    ids = tokenizer(following)["input_ids"]
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    assert b"".join(vocabulary.pieces[id] for id in ids).decode() == following
    found = next_words(sure_of(*ids, vocab_size=len(tokenizer)), vocabulary, inside=True)
    assert found.probabilities == {Word(word): 1}


def test_ids_that_the_tokenizer_does_not_know_are_told_apart_from_words():
    vocabulary = read_vocabulary(spelling_tokenizer(LETTERS), len(LETTERS) + 2)
    assert vocabulary.pieces[-3:] == [b"b.", None, None]
    found = next_words(sure_of(len(LETTERS), vocab_size=len(LETTERS) + 2), vocabulary, inside=False)
    assert found.probabilities == {Word("<unused>", "special"): 1}


def test_entropy_is_0_for_a_sure_choice_and_log2_v_for_a_blind_one():
    assert entropy_bits(np.array([0.0, 1.0])) == 0
    assert entropy_bits(np.full(8, 1 / 8)) == 3


def test_variety_by_hand():
    counted = variety(["a b a b a b.", "b"])  # 8 words, 6 pairs, 4 runs of four: abab baba abab bab.
    assert counted == {"words": 8, "distinct_1": 3 / 8, "distinct_2": 3 / 6, "repetition": 1 / 4}
    assert variety([""]) == {"words": 0, "distinct_1": None, "distinct_2": None, "repetition": None}


# --- one model -------------------------------------------------------------------------------------------------------


def test_the_same_prompts_are_drawn_alike_for_every_model_and_different_ones_are_not(folders):
    prompts = ["a", "b", "ab", "a b"]
    rows = [measure_model(folders[name], prompts, None, QUICK, ON_CPU)["prompts"] for name in "ab"]
    assert [answer["seed"] for answer in rows[0]] == [answer["seed"] for answer in rows[1]]
    assert len({answer["seed"] for answer in rows[0]}) == len(prompts)


def test_a_row_says_what_score_documents_and_the_engine_say(folders, text):
    row = measure_model(folders["a"], ["a b", "ab"], text, QUICK, ON_CPU)
    model, tokenizer = load_causal_lm(folders["a"], device="cpu")
    scores = score_documents(model, tokenizer, STORIES)
    assert row["scores"] | {"seconds": 0} == scores | {"seconds": 0}
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert row["weights_bytes"] == 4 * row["parameters"]
    second = row["prompts"][1]
    seed = seed_of(42, "ab")
    requests = [{"temperature": 0}, {"seed": seed}, {"seed": seed + 1}]
    written = Engine(model, tokenizer).write([Request("ab", max_new_tokens=6, **request) for request in requests])
    assert [second["greedy"], *second["samples"]] == [text.text for text in written]
    logits = model(torch.tensor([prompt_ids(model, tokenizer, "ab")])).logits[0, -1].double()
    assert second["confidence"] == pytest.approx(logits.softmax(-1).max().item())
    entropy = torch.distributions.Categorical(logits=logits).entropy().item() / np.log(2)
    assert second["entropy_bits"] == pytest.approx(entropy)
    assert len(second["next_words"]) == 4


def test_speed_is_the_median_between_the_slowest_and_the_fastest(folders):
    row = measure_model(folders["a"], ["a"], None, QUICK, ON_CPU)
    for rate in (row["tokens_per_second"], row["bytes_per_second"]):
        assert 0 <= rate["low"] <= rate["median"] <= rate["high"]
    assert row["tokens_per_second"]["low"] > 0
    assert row["scores"] is None


@pytest.mark.parametrize("name", ["albert", "bert"])
def test_a_masked_model_fills_in_the_end_of_the_prompt_and_continues_nothing(folders, name):
    row = measure_model(folders[name], ["the cat sat"], None, QUICK, ON_CPU)
    assert row["kind"] == "masked"
    assert not {"tokens_per_second", "variety"} & row.keys()
    (answer,) = row["prompts"]
    assert not {"greedy", "samples"} & answer.keys()
    model_class = {"albert": AlbertForMaskedLM, "bert": BertForMaskedLM}[name]
    logits = model_class.from_pretrained(folders[name])(torch.tensor([[2, 5, 6, 7, 4, 3]])).logits[0, 4]
    expected = logits.double().softmax(-1)
    words = {("s", "ending"): 8, ("the", "word"): 5, (".", "word"): 9, ("[SEP]", "special"): 3}
    every = measure_model(folders[name], ["the cat sat"], None, SideBySide(top_k=11), ON_CPU)["prompts"][0]
    found = {(word["text"], word["kind"]): word["probability"] for word in every["next_words"]}
    assert len(found) == 11
    for word, id in words.items():
        assert found[word] == pytest.approx(expected[id].item(), abs=1e-6)
    assert every["left_out"] == pytest.approx(0, abs=1e-9)
    assert answer["next_words"] == every["next_words"][:4]


# --- several ---------------------------------------------------------------------------------------------------------


def numbers(row: dict) -> dict:
    """A row without what names the model and what a clock or the system measured."""
    row = {key: value for key, value in row.items() if key not in (*MEASURED, "model", "label")}
    return row | {"scores": {key: value for key, value in row["scores"].items() if key not in ("seconds", "model")}}


def test_equal_models_get_equal_rows_and_the_order_changes_no_number(folders, text, here):
    names = [folders[name] for name in ("a", "copy", "b")]
    forth, back = (compare_models(order, ["a b"], text, QUICK, ON_CPU)["models"] for order in (names, names[::-1]))
    assert [row["label"] for row in forth] == ["a", "copy", "b"]
    a, copy, b = map(numbers, forth)
    assert a == copy != b
    assert [numbers(row) for row in reversed(back)] == [a, copy, b]


def test_a_model_named_twice_counts_once(folders, here):
    results = compare_models([folders["a"], folders["a"]], ["a"], None, QUICK, ON_CPU)
    assert [row["model"] for row in results["models"]] == [folders["a"]]


def test_a_missing_model_ends_it_all_or_is_named_and_left_out(folders, here):
    named = ["nowhere/run/best", folders["a"]]
    with pytest.raises(UserError, match="nowhere/run/best is not a folder.*; or leave it out with --skip_missing"):
        compare_models(named, ["a"], None, QUICK, ON_CPU)
    results = compare_models(named, ["a"], None, QUICK, ON_CPU, skip_missing=True)
    assert [row["model"] for row in results["models"]] == [folders["a"]]
    assert [left_out["model"] for left_out in results["skipped"]] == ["nowhere/run/best"]
    assert "is not a folder" in results["skipped"][0]["reason"]
    with pytest.raises(UserError, match="none of the models can be loaded: nowhere/run/best is not a folder"):
        compare_models(named[:1], ["a"], None, QUICK, ON_CPU, skip_missing=True)


def test_a_missing_model_is_told_before_any_is_measured(folders, monkeypatch):
    monkeypatch.setattr(comparing, "in_own_process", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="is not on this machine and the Hub .* cannot be reached"):
        compare_models([folders["a"], "distilgpt2"], ["a"], None, QUICK, ON_CPU)


@pytest.mark.parametrize(
    ("models", "labels"),
    [
        (["gpt2", "some/where/else"], ["gpt2", "else"]),
        (["runs/a/best", "gpt2"], ["a/best", "gpt2"]),
        (["x/a/best", "y/a/best"], ["x/a/best", "y/a/best"]),
        (["/x/m", "/y/m"], ["x/m", "y/m"]),
    ],
)
def test_labels_are_as_short_as_tells_the_models_apart(models, labels):
    assert comparing.labels(models) == labels


# --- reports ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(folders, tmp_path_factory):
    """Two causal models, a masked one and a missing one, with a prompt that would break out of a careless page."""
    (data := tmp_path_factory.mktemp("data") / "text.txt").write_text(STORIES[0])
    named, asked = [folders["a"], folders["b"], folders["albert"], "nowhere/a/best"], ["a <script>|`b", "the cat"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "in_own_process", lambda measure, *asked: measure(*asked))
        return compare_models(named, asked, str(data), QUICK, ON_CPU, skip_missing=True)


class Page(HTMLParser):
    VOID = ("meta",)

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_shows_every_model_prompt_and_word(results):
    html = report.render(results, "comparison.html")
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href", "onclick"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|url\(|@import", html)
    assert page.tags.count("svg") == len(report.CHARTS)
    assert page.tags.count("article") == 3 * 2
    assert "a &lt;script&gt;|`b" in html
    words = sum(len(answer["next_words"]) + 1 for row in results["models"] for answer in row["prompts"])
    assert html.count('<li class="word') == words
    assert html.count("<blockquote>") == 2 * 2 * 3
    assert "nowhere/a/best is not a folder" in html
    assert "cannot continue a text from left to right" in html


def test_every_table_of_the_markdown_has_as_many_cells_in_each_row(results):
    lines = report.render(results, "comparison.md").splitlines()
    tables = [list(rows) for is_row, rows in itertools.groupby(lines, lambda line: line.startswith("|")) if is_row]
    assert len(tables) == 1 + len(results["models"][0]["prompts"])
    for row in itertools.chain(*tables):
        assert len(re.findall(r"(?<!\\)\|", row)) == 1 + 1 + len(results["models"]), row
    assert f"| {results['models'][0]['scores']['bits_per_byte']:.4f} |" in "\n".join(tables[0])


def test_the_terminal_shows_figures_words_and_what_is_missing(results):
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    report.print_report(results, console)
    shown = console.export_text()
    assert f"{results['models'][1]['parameters']:,}" in shown
    assert "a <script>|`b" in shown
    assert shown.count("nowhere/a/best") == 1
    assert "left out: nowhere/a/best is not a folder" in shown
    assert "cannot continue" in shown


def test_a_masked_model_is_marked_in_every_table_and_has_no_score(results):
    assert [row["label"] for row in results["models"]] == ["a", "b", "albert (masked)"]
    figures = report.tabulate(results["models"], report.FIGURES)
    assert [values[2] for name, values in figures.items() if "bits per byte" in name or "accuracy" in name] == ["–"] * 3
    (scored,) = [chart for chart in report.charts(results["models"]) if chart["title"].startswith("bits per byte")]
    assert [bar["label"] for bar in scored["bars"]] == ["a", "b"]
    for template in report.TEMPLATES:
        page = report.render(results, template)
        assert "albert (masked)" in page.replace("\\", "")
        assert "is a pseudo-likelihood, which compares masked models only" in page
        assert page.count("nowhere/a/best") == 1


def test_masked_models_alone_are_compared_by_what_they_fill_in(folders, text, here, tmp_path):
    results = compare_models([folders["albert"], folders["bert"]], ["the cat"], text, SideBySide(top_k=3), ON_CPU)
    assert [row["scores"] for row in results["models"]] == [None, None]
    files = report.write_report(results, tmp_path)
    assert "Scored on" not in files[1].read_text(encoding="utf-8")
    assert files[2].read_text(encoding="utf-8").count('<li class="word') == 2 * (3 + 1)


def test_what_is_infinite_is_null_in_the_json(results, tmp_path):
    row = results["models"][0]
    damaged = {**results, "models": [{**row, "scores": {**row["scores"], "word_perplexity": float("inf")}}]}
    (file, *_) = report.write_report(damaged, tmp_path)
    written = json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written["models"][0]["scores"]["word_perplexity"] is None
    assert written["not_finite"] == {"models.0.scores.word_perplexity": "inf"}


def test_the_files_are_written_where_they_can_be(results, tmp_path):
    files = report.write_report(results, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["comparison.json", "comparison.md", "comparison.html"]
    written = json.loads(files[0].read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(results))
    assert {"versions", "commit", "hardware", "seed", "command", "protocol"} <= written.keys()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written: .*; give another --output_dir"):
        report.write_report(results, tmp_path / "file")


def test_numbers_are_written_with_their_units():
    assert [report.percent(p) for p in (None, 0, 0.0001, 0.4567)] == ["–", "0.0%", "<0.1%", "45.7%"]
    assert [report.size(b) for b in (None, 999, 1500, 2.5e9)] == ["–", "999 B", "1.5 kB", "2.5 GB"]
    assert report.rate({"median": 1234.5, "low": 1000, "high": 2000}) == "1,234 (1,000 to 2,000)"
    assert report.on_one_line("a\nb\n\n\nc") == "a ¶ b ¶×3 c"


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prompt", "changes", "message"),
    [
        ("a", "ab" * 20, {}, r"a: the prompt takes 41 tokens and the model's context holds 32"),
        ("a", "a", {"top_k": 9}, r"a: top_k=9 exceeds the vocabulary of 8 tokens; give 8 or less"),
        ("a", "a", {"context_length": 33}, r"context_length=33 exceeds the model's 32 positions"),
        (
            "misfit",
            "ab.",
            {"top_k": 3},
            r"token id 4 is outside the model's vocabulary of 3; take the tokenizer of",
        ),
        ("encoder", "the cat", {}, r"BertLMHeadModel is not causal: a later token changes its earlier predictions"),
        ("bert", "the cat " * 9, {}, r"the prompt takes 21 tokens with its mask and the model reads 16; shorten it"),
        ("bert", "the", {"top_k": 12}, r"top_k=12 exceeds the vocabulary of 11 tokens"),
        ("no_mask", "the", {}, r"tokenizer has no mask token; set tokenizer.mask_token"),
    ],
)
def test_a_question_that_a_model_cannot_answer_is_told_in_its_name(folders, text, name, prompt, changes, message):
    questions = SideBySide(**{"top_k": 4, "max_new_tokens": 4, "speed_tokens": 4, **changes})
    with pytest.raises(UserError, match=message) as told:
        measure_model(folders[name], [prompt], text, questions, ON_CPU)
    assert str(told.value).startswith(folders[name])
    assert "\n" not in str(told.value)


def test_logits_that_are_no_numbers_are_told(tmp_path):
    model = gpt2()
    model.transformer.ln_f.weight[:] = torch.nan
    folder = save(tmp_path, model, spelling_tokenizer(LETTERS))
    with pytest.raises(UserError, match=r"the model's logits are not numbers \(NaN\)"):
        measure_model(folder, ["a"], None, QUICK, ON_CPU)


def test_a_model_without_a_tokenizer_is_told(tmp_path, here):
    folder = save(tmp_path, gpt2(), None)
    with pytest.raises(UserError, match="holds no tokenizer"):
        compare_models([folder], ["a"], None, QUICK, ON_CPU)


def test_nothing_to_compare_is_told(folders, tmp_path):
    with pytest.raises(UserError, match="no model was given; name folders"):
        compare_models([], ["a"])
    with pytest.raises(UserError, match="no prompt was given"):
        compare_models([folders["a"]], [])
    with pytest.raises(UserError, match="data source .*nowhere.txt: no such file"):
        compare_models([folders["a"]], ["a"], str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 0}, "top_k=0 is out of range; give 1 or more"),
        ({"repetitions": 0}, "repetitions=0 is out of range"),
        ({"max_documents": -1}, "max_documents=-1 is out of range"),
        ({"temperature": 0}, "temperature=0 draws nothing; give more than 0"),
    ],
)
def test_questions_out_of_range_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        SideBySide(**changes)


def test_prompts_are_the_lines_of_a_file(tmp_path):
    assert read_prompts(None) == list(PROMPTS)
    (tmp_path / "prompts.txt").write_text("one \n\n  two\n")
    assert read_prompts(tmp_path / "prompts.txt") == ["one", "two"]
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="empty.txt: holds no prompt; write one per line"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="nowhere.txt: cannot be read"):
        read_prompts(tmp_path / "nowhere.txt")


def test_a_recipe_that_loses_or_misreads_the_model_to_compare_with_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("comparison:\n  benchmark_model: 1984\n")
    with pytest.raises(UserError, match='quote it: benchmark_model: "1984"'):
        read_benchmark(recipe)
    recipe.write_text("comparison:\n  benchmark_model: gpt2\ncomparison: {}\n")
    with pytest.raises(UserError, match="comparison stands twice, in line 1 and in line 3"):
        read_benchmark(recipe)


def test_a_recipe_names_the_model_to_compare_with(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  source: x\ncomparison:\n  benchmark_model: gpt2\n")
    assert read_benchmark(recipe) == "gpt2"
    for content in ("", "data: {}\n", "comparison:\n", "comparison:\n  benchmark_model: null\n"):
        recipe.write_text(content)
        with pytest.raises(UserError, match="names no comparison.benchmark_model; set it, gpt2 for example"):
            read_benchmark(recipe)
    recipe.write_text("comparison:\n  benchmark_model: ' '\n")
    with pytest.raises(UserError, match="comparison.benchmark_model is empty"):
        read_benchmark(recipe)
    for damaged in ("comparison: [\n", "comparison:\n  bench: gpt2\n"):
        recipe.write_text(damaged)
        with pytest.raises(UserError, match=r"recipe.yaml: "):
            read_benchmark(recipe)
    assert ComparisonConfig().benchmark_model is None


# --- as a user runs it -----------------------------------------------------------------------------------------------


def test_the_script_measures_each_model_alone_and_writes_three_files(folders, text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"comparison:\n  benchmark_model: {folders['albert']}\n")
    (tmp_path / "prompts.txt").write_text("a b\n")
    command = [sys.executable, str(SCRIPT), "--models", folders["a"], "nowhere/run/best", "--skip_missing"]
    command += ["--config", str(tmp_path / "recipe.yaml"), "--prompts", str(tmp_path / "prompts.txt")]
    command += ["--data", text, "--top_k", "3", "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=200)
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert [(row["label"], row["kind"]) for row in results["models"]] == [
        ("a", "causal"),
        ("albert (masked)", "masked"),
    ]
    here = measure_model(folders["a"], ["a b"], text, SideBySide(top_k=3), ON_CPU)
    assert numbers(results["models"][0]) == numbers(json.loads(json.dumps(here)))
    assert all(row["peak_memory_bytes"] > 0 for row in results["models"])
    for name in ("comparison.md", "comparison.html"):
        assert str(tmp_path / "out" / name) in finished.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model was given"),
        (["--models", "nowhere/run/best"], "nowhere/run/best is not a folder"),
        (["--models", "{a}", "--prompts", "{empty}"], "holds no prompt"),
        (["--models", "{a}", "--config", "{empty}"], "names no comparison.benchmark_model"),
        (["--models", "{a}", "--output_dir", "{empty}"], "is a file; give another --output_dir"),
        (["--models", "{a}", "--top_k", "0"], "top_k=0 is out of range"),
        (["--models", "{a}", "--temprature", "1"], "temprature"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folders, tmp_path, arguments, message, monkeypatch, capsys):
    (tmp_path / "empty").write_text("")
    arguments = [part.format(empty=tmp_path / "empty", **folders) for part in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_the_published_model_knows_how_a_story_begins(shared_data):
    folder, stories = (
        shared_data / name for name in ("pretrained/stories260K-hf", "tinystories/tinystories_valid.txt")
    )
    questions = SideBySide(max_documents=20, repetitions=1, speed_tokens=8, max_new_tokens=20)
    row = measure_model(str(folder), ["Once upon a time"], str(stories), questions, ON_CPU)
    (answer,) = row["prompts"]
    assert answer["next_words"][0]["text"] == ","
    assert answer["next_words"][0]["probability"] > 0.9
    assert answer["left_out"] <= 0.01
    assert "there was a little" in answer["greedy"]
    assert 0.85 < row["scores"]["bits_per_byte"] < 1


def test_a_model_that_was_just_trained_stands_beside_the_published_one(shared_data, tmp_path, here):
    stories = shared_data / "tinystories/tinystories_valid.txt"
    some = stories.read_text(encoding="utf-8").split("<|endoftext|>")[:80]
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(some), encoding="utf-8")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    recipe = {
        "data": {"source": str(tmp_path / "stories.txt"), "folder": str(tmp_path / "tokens")},
        "model": {"vocab_size": 300, **sizes},
        "training": {"max_steps": 40, "context_length": 64, "batch_size": 8, "compile": False, "precision": "fp32"}
        | {"sample_prompts": ["The dog"], "sample_tokens": 2, "evaluate_every": None},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    train(tmp_path / "recipe.yaml", tmp_path / "run")
    published = str(shared_data / "pretrained/stories260K-hf")
    questions = SideBySide(max_documents=10, repetitions=1, speed_tokens=4, max_new_tokens=10, num_samples=1)
    results = compare_models([str(tmp_path / "run" / "best"), published], PROMPTS, str(stories), questions, ON_CPU)
    ours, theirs = results["models"]
    assert (ours["label"], theirs["label"]) == ("run/best", "stories260K-hf")
    assert ours["scores"]["bytes"] == theirs["scores"]["bytes"]  # the same text, whatever the tokens
    assert theirs["scores"]["bits_per_byte"] < 1 < ours["scores"]["bits_per_byte"] < 5
    for row in (ours, theirs):
        assert [answer["prompt"] for answer in row["prompts"]] == list(PROMPTS)
    for file in report.write_report(results, tmp_path / "comparison"):
        assert "stories260K-hf" in file.read_text(encoding="utf-8")
