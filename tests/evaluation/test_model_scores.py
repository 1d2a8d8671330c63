"""Models asked for everything, the files that come of it, and the mistakes that are errors."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from small_models import bert, gpt2, letter_tokenizer, mask_tokenizer, save, t5

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation import model_scores
from smallm_hf.evaluation.certainty import over_seeds, paired_bootstrap
from smallm_hf.evaluation.configuration import ScoringQuestions
from smallm_hf.evaluation.generated import continue_documents, judge
from smallm_hf.evaluation.model_scores import evaluate_models
from smallm_hf.evaluation.page import NONE, labels
from smallm_hf.evaluation.results_page import (
    charts,
    left_out_of,
    print_results,
    render,
    report_results,
    tables,
    to_json,
)
from smallm_hf.evaluation.scoring import score_corpus, score_documents
from smallm_hf.evaluation.texts import Example
from smallm_hf.pretrained import load_causal_lm
from smallm_hf.tokenizing.encoding import encode_ordinary
from smallm_hf.tokenizing.schemes import train_bpe, train_word

STORIES = [
    "abc cab <b>fed</b>",
    "fed, a bed.",
    "a cab\nbad cafe bed abc cab bed fed abc deaf cafe bead",
    "bad bed " * 12,
]
ON_CPU = {"device": "cpu"}
EVERYTHING = {"generate": 2, "max_new_tokens": 5, "speed": True, "speed_prompt_tokens": 4, "speed_new_tokens": 3}


@pytest.fixture
def data(tmp_path) -> str:
    rows = [json.dumps({"text": story, "source": "cab"[number % 3]}) for number, story in enumerate(STORIES)]
    (tmp_path / "text.jsonl").write_text("\n".join(rows))
    return str(tmp_path / "text.jsonl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("runs")
    made = {f"seed{seed}": save(root / f"x-seed{seed}" / "best", gpt2(seed, n_positions=128)) for seed in range(3)}
    made["bert"] = save(root / "bert", bert(), mask_tokenizer())
    made["t5"] = save(root / "t5", t5(), letter_tokenizer("$A </s>", eos_token="</s>", pad_token="</s>"))
    return {"all": str(root / "x-seed*" / "best")} | {name: str(folder) for name, folder in made.items()}


@pytest.fixture(autouse=True, scope="module")
def here():
    """Models are measured in this process: a fresh one has to import everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_scores, "in_own_process", lambda measure, *given, **options: measure(*given, **options))
        yield


def ask(models, data, against=None, **questions):
    return evaluate_models(models, data, ScoringQuestions(**questions), ON_CPU, against)


def test_a_row_says_what_the_parts_say(folders, data):
    results = ask([folders["seed0"]], data, context_length=16, top_k=[1, 5], max_documents=3, **EVERYTHING)
    (row,) = results["models"]
    loaded = load_causal_lm(folders["seed0"], device="cpu")
    scored = score_corpus(*loaded, STORIES[:3], context_length=16, top_k=[1, 5])
    assert {name: row[name] for name in scored.figures if name != "seconds"} == {
        name: value for name, value in scored.figures.items() if name != "seconds"
    }
    assert row["tables"] == scored.profile.tables()
    settings = {"max_new_tokens": 5, "temperature": 0.8, "seed": 42}
    continued, _ = continue_documents(*loaded, [*map(Example, STORIES[:2])], **settings)
    assert row["generated"] == judge(continued, loaded[1])
    assert row["speed"]["decode_tokens_per_second"]["median"] > 0
    assert row["speed"]["peak_memory_bytes"] > 0
    assert row["parameters"] == loaded[0].num_parameters()
    assert results["over_seeds"] is None


def test_the_hardest_and_the_easiest_document_are_those_with_the_most_and_fewest_bits_per_byte(folders, data):
    (row,) = ask([folders["seed0"]], data)["models"]
    loaded = load_causal_lm(folders["seed0"], device="cpu")
    alone = {number: score_documents(*loaded, [STORIES[number - 1]])["bits_per_byte"] for number in (3, 4)}
    hardest, easiest = max(alone, key=alone.get), min(alone, key=alone.get)  # the others are too short to say
    found = row["documents_by_difficulty"]
    assert [part["document"] for part in found["hardest"]] == [hardest]
    assert [part["document"] for part in found["easiest"]] == [easiest]
    assert found["easiest"][0]["bits_per_byte"] == pytest.approx(alone[easiest], rel=1e-5)
    assert found["hardest"][0]["text"] == " ".join(STORIES[hardest - 1].split())


def test_several_seeds_have_a_mean_and_an_interval_for_every_figure(folders, data):
    results = ask([folders["all"]], data)
    rows = results["models"]
    assert [labels([row["model"] for row in rows])] == [[f"x-seed{seed}/best" for seed in range(3)]]
    assert results["over_seeds"]["bits_per_byte"] == over_seeds([row["bits_per_byte"] for row in rows])
    assert "top1_accuracy" in results["over_seeds"]
    assert not {"seconds", "model"} & results["over_seeds"].keys()


def test_models_of_different_sizes_are_not_runs_of_one(folders, data, tmp_path):
    other = str(save(tmp_path, gpt2(n_positions=64)))
    results = ask([folders["seed0"], other], data)
    assert results["over_seeds"] is None and results["no_spread"] is None  # each was named
    assert "<h2>Over" not in render(results)


def test_a_pattern_that_matches_models_of_other_sizes_says_why_there_is_no_interval(folders, data, tmp_path, capsys):
    for name in ("a", "b"):
        save(tmp_path / "runs" / name / "best", gpt2(n_positions=64 if name == "a" else 128))
    results = ask([str(tmp_path / "runs" / "*" / "best")], data)
    assert results["over_seeds"] is None
    assert results["no_spread"].startswith("no mean and interval: the 2 models have ")
    print_results(results)
    assert "narrow the pattern of --model" in capsys.readouterr().out and "narrow the pattern" in render(results)


def test_models_of_other_tokens_are_compared_by_figures_of_the_text_alone(folders, data, tmp_path, capsys):
    words = str(save(tmp_path / "words", tokenizer=train_word([" b bed bad bed"], 16)))
    in_bytes = str(save(tmp_path / "bytes", gpt2(vocab_size=257, n_positions=128), train_bpe(["a"], 257)))
    rows = ask([words, folders["seed0"], in_bytes], data)["models"]
    scores = tables(rows)["scores"]
    assert {"bits per byte ↓", "word perplexity ↓", "unknown tokens"} <= set(scores)
    assert not [name for name in scores if "loss" in name or "perplexity (tokens)" in name or "accuracy" in name]
    assert "these models have different ones: compare bits per byte" in left_out_of(rows)[0]
    assert [name == NONE for name in scores["unknown tokens"]] == [False, False, True]
    for alike in ([row] for row in rows):
        assert "perplexity (tokens)" in tables(alike)["scores"]
        assert left_out_of(alike) == []


def test_a_model_is_compared_with_another_on_the_same_documents(folders, data):
    results = ask([folders["seed0"], folders["seed1"]], data, against=folders["seed1"])
    documents = [
        score_corpus(*load_causal_lm(folders[name], device="cpu"), STORIES).documents for name in ("seed0", "seed1")
    ]
    first, second = (row["against"] for row in results["models"])
    assert first == paired_bootstrap(*documents)
    assert first["difference"] == pytest.approx(
        results["models"][0]["bits_per_byte"] - results["models"][1]["bits_per_byte"], rel=1e-5
    )
    assert (second["difference"], second["probability_better"]) == (0, 0.5)


def test_seq2seq_and_masked_models_come_through_the_same_door(folders, data):
    (row,) = ask([folders["t5"]], data, source_column="source", generate=1, max_new_tokens=3)["models"]
    tokenizer = letter_tokenizer("$A </s>", eos_token="</s>", pad_token="</s>")
    expected = score_documents(t5(), tokenizer, STORIES, sources=["c", "a", "b", "c"])
    assert row["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)
    assert row["generated"]["continuations"][0]["prompt"] == "c"
    (row,) = ask([folders["bert"]], data, max_documents=2)["models"]
    assert row["kind"] == "masked"
    assert "pseudo-likelihood" in render({**ask([folders["bert"]], data, max_documents=2)})


def test_with_the_training_text_copies_are_counted_and_frequencies_are_its_own(folders, data, monkeypatch):
    ids = encode_ordinary(letter_tokenizer(), ["bad bed bad bed bad bed abc"])[0]
    training = np.array([*ids, letter_tokenizer().eos_token_id] * 20, dtype="<u2")
    checked = []
    files = SimpleNamespace(train=training, check_tokenizer=checked.append, tokenizer=letter_tokenizer())
    files.hidden_pieces = lambda side: iter(())
    monkeypatch.setattr(model_scores, "open_token_files", lambda folder: files)
    options = {"generate": 4, "max_new_tokens": 12, "training_tokens": Path("tokens")}
    (row,) = ask([folders["seed0"]], data, **options)["models"]
    assert len(checked) == 1
    assert row["generated"]["reference_copy_rate"] > 0.3  # the last story is of the training text
    assert 0 <= row["generated"]["copy_rate"] <= 1
    scored = score_corpus(*load_causal_lm(folders["seed0"], device="cpu"), STORIES)
    expected = scored.profile.tables(np.bincount(training, minlength=16), {"bad": 60, "bed": 60, "abc": 20})
    assert row["tables"] == expected
    assert row["tables"]["by_frequency"][0]["from"] == 0  # f is not in it


# --- what is shown ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags that are open, the text, and what would have to be fetched."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.fetched, self.text, self.tags = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def results(folders, here, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in STORIES))
    return ask([folders["all"]], str(path), against=folders["seed1"], context_length=16, **EVERYTHING)


def test_the_page_needs_nothing_else_and_shows_all_of_it(results):
    pictures = [("Attention", "<p class='own'>drawn</p>"), ("Words", b"PNG")]
    page = Page(render({**results, "pictures": pictures}))
    assert (page.open, page.fetched) == ([], [])
    for row in results["models"]:
        assert f"{row['bits_per_byte']:.4f}" in page.text
        assert f"{row['against']['difference']:+.4f}" in page.text
        assert f"{row['generated']['bleu']:.2f}" in page.text
        for part in row["documents_by_difficulty"]["hardest"]:
            assert part["text"] in page.text
    for heading in ("Over 3 runs", "Where the loss lies", "What it writes", "Speed and memory", "Pictures"):
        assert heading in page.text
    assert "<b>fed</b>" in page.text  # as it stands in the text, and not bold
    assert "drawn" in page.text
    assert page.tags.count("img") == 1


def test_every_point_of_the_charts_is_inside_them(results):
    drawn = charts(results["models"])
    titles = ["Reliability", "Loss by position", "Loss by token frequency", "Loss by word frequency"]
    assert [chart["title"] for chart in drawn] == titles
    for chart in drawn:
        assert len(chart["lines"]) == 3
        for x, y in (point for line in chart["lines"] for point in line):
            assert chart["plot"]["left"] <= x <= chart["plot"]["right"]
            assert chart["plot"]["top"] <= y <= chart["plot"]["bottom"]


def test_the_loss_of_words_is_stated_on_the_page_on_the_terminal_and_in_the_json(results, tmp_path):
    bins = results["models"][0]["tables"]["by_word_frequency"]
    assert sum(bin["words"] for bin in bins) == results["models"][0]["words"]
    console = Console(record=True, width=200)
    print_results(results, console)
    shown = console.export_text()
    for bin in bins:
        assert f"{bin['loss']:.2f} ({bin['words']})" in shown
    assert "words by how often they occur in the scored text" in shown
    report_results(results, str(tmp_path / "all.json"))
    written = json.loads((tmp_path / "all.json").read_text())
    assert written["frequencies_of"] == "the scored text"
    assert written["models"][0]["tables"]["by_word_frequency"] == bins
    assert "Loss by word frequency" in render(results)


def test_the_first_model_is_drawn_while_it_is_loaded(folders, data):
    drawn = []

    def draw(model, tokenizer):
        drawn.append(model.config.name_or_path)
        return [("A picture", "<p>drawn</p>")]

    results = evaluate_models([folders["seed0"], folders["seed1"]], data, loading=ON_CPU, draw=draw)
    assert drawn == [folders["seed0"]]
    assert results["pictures"] == [("A picture", "<p>drawn</p>")]
    assert "pictures" not in results["models"][0]


def test_a_page_of_few_answers_shows_only_those(folders, data):
    page = render(ask([folders["seed0"]], data, protocol="packed"))
    assert Page(page).open == []
    for heading in ("Hardest", "Over", "What it writes", "Speed and memory", "Pictures", "Against"):
        assert f"<h2>{heading}" not in page


def test_the_tables_leave_out_what_nobody_asked_for(folders, data):
    shown = tables(ask([folders["seed0"]], data, top_k=[1, 2])["models"])
    assert shown["written"] == shown["speed"] == {}
    assert {"top-1 accuracy ↑", "top-2 accuracy ↑", "top-3 accuracy ↑"} < shown["scores"].keys()
    assert "stride (tokens)" not in shown["scores"]


def test_the_json_of_one_model_has_its_figures_at_the_top_and_that_of_several_all_of_them(results, tmp_path, capsys):
    report_results(results, str(tmp_path / "new" / "all.json"))
    assert len(json.loads((tmp_path / "new" / "all.json").read_text())["models"]) == 3
    one = {**results, "models": results["models"][:1], "over_seeds": None}
    report_results(one, str(tmp_path / "one.json"), str(tmp_path / "page.html"))
    written = json.loads((tmp_path / "one.json").read_text())
    assert written["bits_per_byte"] == results["models"][0]["bits_per_byte"]
    assert written["questions"]["context_length"] == 16
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    said = capsys.readouterr().out
    assert "over 3 runs" in said
    assert all(f"written to {tmp_path / name}\n" in said for name in ("new/all.json", "one.json", "page.html"))


def test_what_is_infinite_is_null_in_the_json_and_said_where_it_was(results, tmp_path):
    row = {**results["models"][0], "word_perplexity": math.inf, "calibration_error": math.nan}
    report_results({**results, "models": [row, row]}, str(tmp_path / "all.json"), str(tmp_path / "page.html"))
    written = json.loads((tmp_path / "all.json").read_text(), parse_constant=pytest.fail)
    assert written["models"][0]["word_perplexity"] is None
    assert written["not_finite"]["models.1.word_perplexity"] == "inf"
    assert written["not_finite"]["models.0.calibration_error"] == "nan"
    assert "not_finite" not in json.loads(to_json(results))


def test_charts_leave_out_a_loss_that_is_infinite(results):
    (row, *_) = results["models"]
    bins = [{"from": 1, "to": 1, "tokens": 1, "loss": math.inf}, {"from": 2, "to": 2, "tokens": 1, "loss": 3.0}]
    _, by_position, *_ = charts([{**row, "tables": {**row["tables"], "by_position": bins}}])
    assert len(by_position["lines"][0]) == 1
    assert len(by_position["x_ticks"]) == 2


def test_seeds_of_a_text_without_spaces_leave_out_the_infinite_word_perplexity(folders, tmp_path):
    (tmp_path / "one_word.txt").write_text("bad" * 400)
    results = ask([folders["all"]], str(tmp_path / "one_word.txt"))
    assert results["models"][0]["word_perplexity"] == math.inf
    assert "word_perplexity" not in results["over_seeds"]
    assert "bits_per_byte" in results["over_seeds"]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "questions", "message"),
    [
        ("bert", {"generate": 1}, "BertForMaskedLM fills in masks and writes no text; leave out --generate"),
        ("bert", {"speed": True}, "BertForMaskedLM fills in masks and writes no text"),
        ("seed0", {"top_k": [17]}, "top_k=17 is out of range; give 1 to 16, the size of the vocabulary"),
        ("seed0", {"source_column": "source"}, "GPT2LMHeadModel is causal and reads no source text"),
        ("seed0", {"training_tokens": "nowhere"}, "nowhere holds no token files"),
        ("seed0", {"speed": True, "speed_prompt_tokens": 128}, "exceed the model's 128 positions"),
        ("seed0", {"text_column": "story"}, "story"),
    ],
)
def test_what_a_model_cannot_answer_is_an_error_of_one_line(folders, data, model, questions, message):
    with pytest.raises(UserError, match=message) as error:
        ask([folders[model]], data, **questions)
    assert "\n" not in str(error.value)


def test_scores_stay_where_a_document_is_too_long_to_be_continued_and_that_is_said(folders, tmp_path):
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"text": "bad " * size}) + "\n" for size in (200, 9)))
    said = "of {} documents, the first of them number 1: the prompt takes 400 tokens and the model's context holds 128"
    for generate in (1, 2):
        results = ask([folders["seed0"]], str(tmp_path / "long.jsonl"), generate=generate, max_new_tokens=5)
        (row,) = results["models"]
        assert row["bits_per_byte"] > 0 and row["documents"] == 2
        assert [part["prompt"] for part in row.get("generated", {"continuations": []})["continuations"]] == [
            "bad bad bad bad"
        ] * (generate - 1)
        console = Console(record=True, width=100)
        print_results(results, console)
        (line,) = [line for line in console.export_text().splitlines() if line.startswith("not continued: 1 ")]
        assert said.format(generate) in line
        assert said.format(generate) in Page(render(results)).text


def test_a_tokenizer_of_another_model_is_an_error(folders, data, tmp_path):
    save(tmp_path / "small", gpt2(vocab_size=6))
    with pytest.raises(UserError, match="token id .* is outside the model's vocabulary of 6; take the tokenizer of"):
        ask([str(tmp_path / "small")], data)


def test_a_pattern_that_fits_no_folder_is_an_error(folders, data):
    with pytest.raises(UserError, match=r"--model .*y-seed\*/best: matches no folder"):
        ask([folders["all"].replace("x-seed", "y-seed")], data)


def test_a_masked_model_is_not_laid_beside_another_family(folders, data):
    with pytest.raises(UserError, match="bert is masked and .*best is not: a pseudo-likelihood is not a probability"):
        ask([folders["seed0"]], data, against=folders["bert"])


def test_logits_that_are_nan_are_an_error_before_anything_is_drawn_from_them(data, tmp_path):
    save(
        tmp_path,
        gpt2(n_positions=128).apply(
            lambda module: module.weight.fill_(math.nan) if hasattr(module, "weight") else None
        ),
    )
    with pytest.raises(UserError, match="logits are NaN"):
        ask([str(tmp_path)], data, generate=1)


def test_documents_of_a_stream_cannot_be_compared(folders, data):
    with pytest.raises(UserError, match="protocol packed joins; take documents or sliding"):
        ask([folders["seed0"]], data, against=folders["seed1"], protocol="packed")


def test_a_file_that_cannot_be_written_is_an_error(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/page.html cannot be written: .*; give another file"):
        report_results(results, page=str(tmp_path / "file" / "page.html"))


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ({"max_documents": 0}, "max_documents=0 is out of range; give 1 or more"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"generate": -1}, "generate=-1 is out of range; give 0 or more"),
        ({"temperature": -1}, "temperature=-1 is out of range; give 0 or more"),
        ({"protocol": "paged"}, "protocol 'paged' is unknown"),
        ({"within_documents": True}, "within_documents=true is for protocol packed"),
    ],
)
def test_questions_out_of_range_are_an_error(questions, message):
    with pytest.raises(UserError, match=message):
        ScoringQuestions(**questions)


def test_the_terminal_shows_the_markup_of_a_name_as_it_is(results):
    console = Console(record=True, width=200)
    named = {**results, "models": [{**row, "model": f"{row['model']}/[red]"} for row in results["models"]]}
    print_results(named, console)
    assert "x-seed0/best/[red]" in console.export_text()
