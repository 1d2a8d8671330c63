"""Minimal pairs: sums that can be reckoned by hand, ties, and verdicts that no batch size changes."""

import itertools
import json
import runpy
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from small_models import Table, bert, gpt2, letter_tokenizer, mask_tokenizer, save
from tokenizers import normalizers

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation import minimal_pairs
from smallm_hf.evaluation.minimal_pairs import CLOSE, judge_models, judge_pairs
from smallm_hf.evaluation.minimal_pairs_page import MEAN, print_pairs, published, tables
from smallm_hf.evaluation.pair_files import Paradigm, read_paradigms
from smallm_hf.models.configuration_feedforward import FeedForwardConfig
from smallm_hf.models.configuration_ngram import NgramConfig
from smallm_hf.models.configuration_recurrent import RecurrentConfig
from smallm_hf.pretrained import fresh_model
from smallm_hf.training.kneser_ney import count_ngrams, fill_model

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "score.py"
# Of several lengths, with a shared beginning, the same letters in another order, and a letter of no entry.
PAIRS = [("abc", "abd"), ("ab, ba", "ba, ab"), ("fed", "a fed cab bad"), ("cafe", "café"), ("a", "b"), ("dead", "deaf")]


def letters(*pairs: tuple[str, str], uid: str = "letters", field: str | None = "syntax") -> Paradigm:
    return Paradigm(uid, field, None, list(pairs))


def write(path: Path, pairs, **columns) -> Path:
    rows = ({"sentence_good": good, "sentence_bad": bad, **columns} for good, bad in pairs)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- judging ---------------------------------------------------------------------------------------------------------


def test_a_margin_is_the_difference_of_the_summed_log_probabilities_behind_the_start_token():
    logits = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    tokenizer = letter_tokenizer()
    judged = judge_pairs(Table(logits.tolist()), tokenizer, [letters(*PAIRS)])

    def log_probability(sentence: str) -> float:
        ids = [tokenizer.bos_token_id, *tokenizer(sentence, add_special_tokens=False)["input_ids"]]
        return sum(logits.double().log_softmax(-1)[before, id].item() for before, id in itertools.pairwise(ids))

    expected = [log_probability(good) - log_probability(bad) for good, bad in PAIRS]
    assert judged.margins["letters"] == pytest.approx(expected, abs=1e-5)
    assert judged.figures["accuracy"] == np.mean([margin > 0 for margin in expected])


def of_family(name: str):
    torch.manual_seed(0)
    if name == "recurrent":
        return fresh_model(
            RecurrentConfig(vocab_size=12, hidden_size=8, cell_type="lstm", initializer_range=1.0)
        ).eval()
    if name == "feedforward":
        return fresh_model(FeedForwardConfig(vocab_size=12, context_size=3, embedding_size=4, hidden_size=8)).eval()
    model = fresh_model(NgramConfig(vocab_size=12, order=3, eos_token_id=0))
    fill_model(model, count_ngrams(np.random.default_rng(0).integers(0, 12, size=500), 3, 12, 0))
    return model.eval()


@pytest.mark.parametrize("family", ["recurrent", "feedforward", "ngram"])
def test_every_causal_family_is_judged_by_its_own_log_probabilities(family):
    model, tokenizer = of_family(family), letter_tokenizer()

    @torch.inference_mode()
    def log_probability(sentence: str) -> float:
        ids = torch.tensor([1, *tokenizer(sentence, add_special_tokens=False)["input_ids"]])
        return model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).sum().item()

    expected = [log_probability(good) - log_probability(bad) for good, bad in PAIRS]
    assert len({round(margin, 3) for margin in expected}) == len(PAIRS)
    margins = judge_pairs(model, tokenizer, [letters(*PAIRS)], batch_size=4).margins["letters"]
    assert margins == pytest.approx(expected, abs=1e-4)


def test_ties_count_half_and_paradigms_count_the_same_whatever_their_size():
    logits = torch.zeros(12, 12)
    logits[:, 3 + 1] = 1  # an a is e times as probable as any other, wherever it stands
    paradigms = [
        letters(("aa", "bb"), ("ab", "ba"), ("b", "b"), ("bb", "ab"), uid="mixed"),
        letters(("a", "b"), uid="right"),
        letters(("b", "a"), uid="wrong", field="semantics"),
    ]
    figures = judge_pairs(Table(logits.tolist()), letter_tokenizer(), paradigms).figures
    found = {uid: (of["accuracy"], of["pairs"], of["ties"]) for uid, of in figures["paradigms"].items()}
    assert found == {"mixed": (0.5, 4, 2), "right": (1, 1, 0), "wrong": (0, 1, 0)}
    assert figures["accuracy"] == 0.5
    assert figures["ties"] == 2
    assert figures["fields"] == {
        "syntax": {"accuracy": 0.75, "paradigms": 2},
        "semantics": {"accuracy": 0, "paradigms": 1},
    }


def random_pairs(number: int) -> list[tuple[str, str]]:
    draw = np.random.default_rng(0)

    def sentence() -> str:
        return "".join(draw.choice(list("abcdef ,"), size=draw.integers(1, 20)))

    return [(sentence(), sentence()) for _ in range(number)]


def test_close_pairs_are_the_same_to_the_bit_for_every_batch_size():
    model = gpt2(n_embd=64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-3)  # every token is about as probable: only sentences of one length are close
    pairs = [letters(*((good, good[::-1]) for good, _ in random_pairs(60)))]
    ways = [judge_pairs(model, letter_tokenizer(), pairs, batch_size=size) for size in (1, 16)]
    assert abs(ways[0].margins["letters"]).max() < CLOSE
    for way in ways[1:]:
        assert way.margins["letters"].tolist() == ways[0].margins["letters"].tolist()
        assert way.figures["paradigms"] == ways[0].figures["paradigms"]


def test_no_verdict_depends_on_the_batch_size_or_the_number_of_processes(monkeypatch):
    model, tokenizer, paradigms = gpt2(), letter_tokenizer(), [letters(*random_pairs(60))]
    alone = judge_pairs(model, tokenizer, paradigms, batch_size=1).figures
    assert 0.2 < alone["accuracy"] < 0.8
    assert judge_pairs(model, tokenizer, paradigms, batch_size=16).figures["paradigms"] == alone["paradigms"]
    models, values, together, found = [gpt2(), gpt2()], {}, threading.Barrier(2, timeout=30), {}

    def gather(value, processes):
        values[threading.get_ident()] = value
        together.wait()
        gathered = list(values.values())
        together.wait()
        return gathered

    def process(rank: int) -> None:
        found[rank] = judge_pairs(models[rank], tokenizer, paradigms, shard=(rank, 2)).figures

    monkeypatch.setattr(minimal_pairs, "gather", gather)
    processes = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in processes:
        thread.start()
    for thread in processes:
        thread.join()
    assert found[0]["paradigms"] == found[1]["paradigms"] == alone["paradigms"]


def test_what_a_tokenizer_lacks_and_what_exceeds_the_context_is_counted_and_said():
    pairs = [letters(("dé", "bé"), ("a", "b"), ("abcdefabcdef", "a"))]
    figures = judge_pairs(gpt2(n_positions=8), letter_tokenizer(), pairs).figures
    assert (figures["unknown_tokens"], figures["pairs_with_unknown_tokens"]) == (2, 1)
    assert (figures["context_length"], figures["longer_than_context"]) == (8, 1)
    console = Console(record=True, width=120)
    print_pairs({"models": [figures], "max_pairs": 3, "sentence_prefix": "", "over_seeds": None}, console)
    printed = console.export_text()
    assert "signs that its tokenizer lacks, and reads as unknown: 1" in printed
    assert "sentences of more than 8 tokens, read in windows that overlap by half: 1" in printed
    assert "only the first 3 pairs of each paradigm" in printed


def test_a_sentence_without_tokens_is_one_clear_line():
    tokenizer = letter_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("f", "")
    with pytest.raises(UserError, match=r"'ff' has no tokens in .*; remove the pair"):
        judge_pairs(gpt2(), tokenizer, [letters(("ab", "ff"))])


def test_weights_of_16_bits_are_judged_in_float32(tmp_path):
    save(tmp_path, gpt2().bfloat16())
    (row,) = judge_models([letters(*PAIRS)], [str(tmp_path)], {"device": "cpu"})
    expected = judge_pairs(gpt2().bfloat16().float(), letter_tokenizer(), [letters(*PAIRS)]).figures
    assert row["dtype"] == "float32"
    assert row["paradigms"] == expected["paradigms"]


# --- files -----------------------------------------------------------------------------------------------------------


def test_pairs_are_read_from_a_file_a_folder_and_an_archive(tmp_path, capsys):
    columns = {"UID": "one", "field": "syntax/semantics", "linguistics_term": "binding"}
    file = write(tmp_path / "some.jsonl", PAIRS, **columns)
    paradigms = [Paradigm("one", "syntax_semantics", "binding", PAIRS)]
    assert read_paradigms(str(file)) == paradigms
    assert read_paradigms(str(file), max_pairs=2)[0].pairs == PAIRS[:2]
    folder = tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(folder / "pairs.zip", "w") as archive:
        archive.writestr("data/", "")
        archive.write(file, "data/one.jsonl")
        archive.writestr("__MACOSX/data/._one.jsonl", b"\x00\x05\x16")
        archive.writestr("data/.DS_Store", b"\x00")
    assert read_paradigms(str(folder / "pairs.zip")) == paradigms
    write(folder / "two.jsonl", PAIRS[:1])
    (folder / "results.jsonl").write_text('{"UID": "one", "gpt2": 0.9}\n')
    assert not capsys.readouterr().err
    assert read_paradigms(str(folder)) == [Paradigm("two", None, None, PAIRS[:1]), *paradigms]
    assert "passed over: " in (said := capsys.readouterr().err)
    assert "results.jsonl line 1 has no sentence_good and no sentence_bad, only UID, gpt2" in said


GOOD = '{"sentence_good": "a", "sentence_bad": "b"}\n'


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", r"pairs.jsonl is empty"),
        ('{"sentence_good": "a", "UID": "x"}\n', r"line 1 has no sentence_bad, only sentence_good, UID"),
        (GOOD + '{"text": "a"}\n', r"line 2 has no sentence_good and no sentence_bad, only text"),
        ('{"text": "a"}\n', r"line 1 has no sentence_good and no sentence_bad, only text"),
        (GOOD + "\n{broken\n", r"line 3 is not JSON"),
        ("[1]\n", r"line 1 is list, not an object"),
        (GOOD.replace('"b"', '" "'), r"line 1 has a sentence that is empty or not text"),
        (GOOD.replace('"b"', "5"), r"line 1 has a sentence that is empty or not text"),
    ],
)
def test_a_file_without_pairs_is_one_clear_line(content, match, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(UserError, match=match):
        read_paradigms(str(tmp_path / "pairs.jsonl"))


def test_a_place_without_pairs_is_one_clear_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.csv", "a,b")
    with pytest.raises(UserError, match=r"other.zip holds no .jsonl, only a.csv"):
        read_paradigms(str(tmp_path / "other.zip"))
    (tmp_path / "broken.zip").write_bytes(b"PK, but not for long")
    with pytest.raises(UserError, match=r"broken.zip cannot be unpacked \(File is not a zip file\)"):
        read_paradigms(str(tmp_path / "broken.zip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no .jsonl and no .zip"):
        read_paradigms(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"gone.jsonl cannot be read: No such file"):
        read_paradigms(str(tmp_path / "gone.jsonl"))


def test_what_was_published_is_as_its_authors_wrote_it(shared_data):
    lines = (shared_data / "blimp" / "models_summary.jsonl").read_text().splitlines()
    rows = {row["UID"]: row for row in map(json.loads, lines) if row["UID"] != "overall"}
    overall = json.loads(lines[-1])
    names = {"ngram": "5-gram", "lstm": "LSTM", "txl": "Transformer-XL", "gpt2": "GPT-2"}
    for theirs, ours in names.items():
        assert published()[ours] == {uid: row[theirs] for uid, row in rows.items()}
        assert np.mean(list(published()[ours].values())) == pytest.approx(overall[theirs], abs=1e-9)
    paradigms = read_paradigms(str(shared_data / "blimp" / "BLiMP.zip"))
    assert {paradigm.uid for paradigm in paradigms} == rows.keys() == published()["human"].keys()
    assert {len(paradigm.pairs) for paradigm in paradigms} == {1000}
    assert {paradigm.field for paradigm in paradigms} == {"morphology", "semantics", "syntax", "syntax_semantics"}


# --- showing ---------------------------------------------------------------------------------------------------------


def test_published_means_are_over_the_same_paradigms_or_missing():
    row = {
        "paradigms": {
            "causative": {"field": "syntax", "accuracy": 0.5},
            "passive_1": {"field": "syntax", "accuracy": 0.7},
            "mine": {"field": None, "accuracy": 1.0},
        }
    }
    found = tables([row])
    human = list(published()).index("human") + 1
    assert found["fields"]["syntax"][0] == pytest.approx(0.6)
    assert found["fields"]["syntax"][human] == pytest.approx((0.98 + 0.95) / 2)
    assert found["fields"][MEAN][1:] == [None] * len(published())
    assert found["other"]["mine"] == [1.0, *[None] * len(published())]


# --- the script ------------------------------------------------------------------------------------------------------


def score(arguments: list[str], monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["score.py", *arguments, "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


def test_score_writes_accuracies_beside_what_was_published(tmp_path, monkeypatch, capsys):
    models = [str(save(tmp_path / name, gpt2(seed))) for seed, name in enumerate(("<b>one", "two"))]
    file = write(tmp_path / "pairs.jsonl", PAIRS, UID="causative", field="syntax")
    output, page = tmp_path / "pairs.json", tmp_path / "pairs.html"
    arguments = ["--model", *models, "--minimal_pairs", str(file)]
    monkeypatch.setattr(sys, "argv", ["score.py", *arguments, "--output", str(output), "--report", str(page)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads(output.read_text())
    expected = [
        judge_pairs(gpt2(seed), letter_tokenizer(), [letters(*PAIRS, uid="causative")]).figures for seed in range(2)
    ]
    for row, figures in zip(results["models"], expected, strict=True):
        for name in ("accuracy", "paradigms", "fields", "ties", "pairs"):
            assert row[name] == figures[name]
    assert results["over_seeds"]["accuracy"]["mean"] == np.mean([figures["accuracy"] for figures in expected])
    assert "versions" in results
    printed, html = capsys.readouterr().out, page.read_text()
    for shown in (f"{expected[0]['accuracy']:.1%}", "78.2%", "98.0%"):  # ours, GPT-2, people
        assert shown in printed
        assert shown in html
    assert "&lt;b&gt;one" in html
    assert "<b>one" not in html


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "nothing to score; give --data, a text, or --minimal_pairs"),
        (["--data", "text.txt", "--max_pairs", "3"], "--max_pairs does not go with --data, only with --minimal_pairs"),
        (["--minimal_pairs", "x", "--data", "y"], "--data does not go with --minimal_pairs"),
        (["--minimal_pairs", "x", "--top_k", "5"], "--top_k does not go with --minimal_pairs, only with --data"),
        (["--minimal_pairs", "x", "--protocol", "packed"], "--protocol does not go with --minimal_pairs"),
        (["--minimal_pairs", "x", "--dtype", "bfloat16"], "dtype=bfloat16, but minimal pairs are always scored in"),
        (["--minimal_pairs", "x", "--max_pairs", "0"], "max_pairs=0 is out of range; give 1 or more"),
        (["--minimal_pairs", "gone.jsonl"], "gone.jsonl cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_one_clear_line(arguments, match, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert score(["--model", str(save(tmp_path / "model")), *arguments], monkeypatch) == 2
    assert f"error: {match}" in capsys.readouterr().err


def test_a_masked_model_is_refused_before_any_is_loaded(tmp_path, monkeypatch, capsys):
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    models = [str(save(tmp_path / "gpt2")), str(save(tmp_path / "bert", bert(), mask_tokenizer()))]
    monkeypatch.setattr(minimal_pairs, "load_causal_lm", None)
    assert score(["--model", *models, "--minimal_pairs", str(file)], monkeypatch) == 2
    assert "bert is masked, and minimal pairs compare the probabilities of whole sentences" in capsys.readouterr().err
