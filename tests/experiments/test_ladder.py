"""The ladder: one text for all rungs, sizes, words counted across tokenizers, tables by hand, resumption, mistakes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from running import write_stories
from transformers import BertConfig

from smallm_hf import plots
from smallm_hf.base.errors import UserError
from smallm_hf.comparison.words import Vocabulary
from smallm_hf.config import RunConfig
from smallm_hf.experiments import measuring
from smallm_hf.experiments.configuration import Ladder, parse_ladder, read_ladder
from smallm_hf.experiments.ladder import climb
from smallm_hf.experiments.measuring import Asked, choose_words, measure_rung, word_accuracy
from smallm_hf.experiments.running import results_of, train_here
from smallm_hf.experiments.sizing import TOLERANCE, count_parameters, with_parameters
from smallm_hf.experiments.texts import first_words, make_texts, read_documents

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALLM = {
    "model_type": "smallm",
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32},
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
LADDER = {
    "data": {"validation_ratio": 0.2, "workers": 1},
    "training": {"context_length": 32, "batch_size": 4, "sample_tokens": 5, "compile": False, "precision": "fp32"},
    "budget_seconds": 30,
    "sizes_in_words": [500],
    "prompts": ["the cat"],
    "word_positions": 5,
    "rungs": {
        "letters": {"tokenizer": {"source": "char"}, "model": SMALLM},
        "pieces": {"tokenizer": {"source": "bpe"}, "model": {**GPT2, "vocab_size": 280}},
    },
}
# Bits per byte by experiment and rung.
BITS = {
    "equal-time": {"letters": 2.0, "pieces": 1.5},
    "equal-parameters": {"letters": 1.75, "pieces": 1.875},
    "words-500": {"letters": 2.5, "pieces": 3.0},
}


def write_ladder(folder: Path, **changed) -> str:
    content = {**LADDER, **changed}
    content["data"] = {"source": str(write_stories(folder)), **content["data"]}
    path = folder / "steps.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


class Trainer:
    """Leaves the files of a run without training it."""

    def __init__(self):
        self.configs, self.failing = {}, set()

    def __call__(self, name: str, config: RunConfig, folder: Path) -> str | None:
        self.configs[name] = config
        if name in self.failing:
            return "out of luck"
        side = {"bytes": 200, "tokens": 100}
        results = {
            "data": {"train": side, "vocab_size": 50},
            **{"tokens": 1200, "training_seconds": 2.0, "epochs": 3.0, "tokens_per_second": 600.0},
        }
        folder.mkdir(parents=True)
        records = [{"tokens": tokens, "seconds": tokens, "validation_bits_per_byte": 1 / tokens} for tokens in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "memory.json").write_text("5000000")


class Measurer:
    """Answers what is asked of a model without loading it."""

    def __init__(self):
        self.asked = {}

    def __call__(self, model: str, asked: Asked) -> dict:
        experiment, rung = Path(model).parts[-3:-1] if model.endswith("best") else ("equal-time", "letters")
        self.asked[f"{experiment}/{rung}"] = asked
        found = {"bits_per_byte": BITS[experiment][rung], "word_perplexity": 1234.5, "parameters": 1000, "tokens": 77}
        if asked.word_positions:
            found["word_accuracy"] = {"top1": 0.2, "top3": 0.4, "words": 100}
        return found | ({"samples": {"the cat": f" sat on {rung} <b>"}} if asked.prompts else {})


def climbed(path: str, folder: Path, train=None, measure=None, stated=(), **options) -> dict:
    config, rungs = read_ladder(path, stated)
    ladder = Ladder(config, rungs, folder, **options)
    return climb(ladder, train or Trainer(), measure or Measurer(), lambda line: None)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_rung_has_what_all_have_and_the_budget_as_its_only_limit(tmp_path):
    ladder = parse_ladder(["--config", write_ladder(tmp_path), "--rungs", "pieces", "--max_seconds", "7"])
    (rung,) = ladder.rungs.values()
    assert (rung.model["model_type"], rung.training.max_seconds, rung.training.max_steps) == ("gpt2", 7, None)
    assert (rung.training.context_length, rung.data.validation_ratio) == (32, 0.2)
    assert "max_seconds: 7.0" in rung.as_yaml()
    assert ladder.output_dir == Path("runs/steps") and ladder.config.budget_seconds == 7


def test_the_ladder_of_this_repository_can_be_read_and_its_sizes_found():
    config, rungs = read_ladder(CONFIGS / "ladder.yaml")
    for name, rung in rungs.items():
        if rung.model["model_type"] != "ngram":
            fields = with_parameters({"vocab_size": 2048, **rung.model}, config.parameters)
            assert abs(count_parameters(fields) - config.parameters) <= TOLERANCE * config.parameters, name


def test_the_ladder_that_the_documentation_shows_can_be_read(tmp_path):
    shown = re.search(r"```yaml\n(.*?)```", (CONFIGS.parent / "docs" / "ladder.md").read_text(), flags=re.DOTALL)[1]
    (tmp_path / "own.yaml").write_text(shown)
    config, rungs = read_ladder(tmp_path / "own.yaml")
    assert [rung.model["model_type"] for rung in rungs.values()] == ["feedforward", "feedforward", "recurrent"]
    assert rungs["awd"].batching.carry_state and config.prompts == ["Once upon a time"]


@pytest.mark.parametrize(
    ("changed", "words", "message"),
    [
        ({"budget_second": 3}, [], "unknown key budget_second; a ladder has sections and rungs, budget_seconds"),
        ({"rungs": {}}, [], "rungs is empty"),
        ({"budget_seconds": "soon"}, [], "budget_seconds"),
        ({"budget_seconds": 0}, [], "budget_seconds: 0.0 is out of range"),
        ({"sizes_in_words": [0]}, [], "sizes_in_words=0: 0 is out of range"),
        ({}, ["--rungs", "letters,words"], "--rungs words: no such rung; .* has letters, pieces"),
        ({"rungs": {"a/b": {"model": SMALLM}}}, [], "rung a/b: its name is also a folder's"),
        ({"rungs": {"a": {"model": {**SMALLM, "hiden": 3}}}}, [], "rung a: unknown key model.hiden"),
        ({"rungs": {"a": {"model": SMALLM, "training": {"epochs": 3}}}}, [], "rung a: training.epochs stands beside"),
        ({"rungs": {"a": {"model": {"model_type": "bert"}}}}, [], "rung a: .*bert is masked, and "),
        ({"rungs": {"a": {"model": {"model_type": "t5"}}}}, [], "rung a: .*t5 is seq2seq, and "),
        ({}, ["--training.sed", "3"], "unknown option --training.sed; did you mean --training.seed"),
    ],
)
def test_what_is_not_a_ladder_is_refused_in_one_line(tmp_path, changed, words, message):
    with pytest.raises(UserError, match=message) as refused:
        parse_ladder(["--config", write_ladder(tmp_path, **changed), *words])
    assert "\n" not in str(refused.value)


def test_a_pretrained_model_that_is_not_causal_is_refused_before_anything_starts(tmp_path):
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").touch()
    path = write_ladder(tmp_path, models=[str(tmp_path / "bert")])
    with pytest.raises(UserError, match="bert is masked, and a ladder compares causal models; leave it out"):
        climbed(path, tmp_path / "ladder")
    assert not (tmp_path / "ladder").exists()


# --- one text --------------------------------------------------------------------------------------------------------


def test_all_rungs_train_on_the_same_documents_and_smaller_texts_are_their_beginning(tmp_path):
    _, rungs = read_ladder(write_ladder(tmp_path))
    said = []
    texts = make_texts(next(iter(rungs.values())), [50, 10**6], tmp_path / "text", said.append)
    train, validation = (list(read_documents(tmp_path / "text" / f"{side}.jsonl")) for side in ("train", "validation"))
    written = (tmp_path / "stories.txt").read_text().strip().split("\n<|endoftext|>\n")
    assert sorted(train + validation) == sorted(written) and len(validation) == 12
    small = list(read_documents(tmp_path / "text" / "train-50-words.jsonl"))
    assert small == [train[0], " ".join(train[1].split()[:10])]
    assert said[-1].startswith("sizes_in_words: 1,000,000 is left out, the training text has 1,920 words")
    assert texts.sizes["validation.jsonl"]["bytes"] == sum(len(text.encode()) for text in validation)
    recipe = texts.recipe(next(iter(rungs.values())), 50)
    assert (recipe.data.source, recipe.cleaning.enabled) == (str(tmp_path / "text" / "train-50-words.jsonl"), False)


def test_a_text_is_cut_behind_its_last_word():
    assert list(first_words(["one  two\n", "three four", "five"], 3)) == ["one  two\n", "three"]
    assert list(first_words(["one two", "three"], 2)) == ["one two"]


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {**SMALLM, "vocab_size": 300},
        {**GPT2, "vocab_size": 300},
        {
            "model_type": "llama",
            **{"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "num_key_value_heads": 4},
        },
        {"model_type": "feedforward", "vocab_size": 300, "embedding_size": 16, "hidden_size": 64},
    ],
    ids=lambda fields: fields["model_type"],
)
def test_the_width_gives_the_nearest_number_of_parameters(fields):
    found = with_parameters(fields, 200_000)
    assert abs(count_parameters(found) - 200_000) <= TOLERANCE * 200_000
    width = found["hidden_size"]
    heads = found.get("num_attention_heads", found.get("n_head", 2))
    near = [{**found, "hidden_size": width + step} for step in (-2 * heads, 2 * heads)]
    if not {"intermediate_size", "embedding_size"} & fields.keys():  # which grow with it
        assert all(abs(count_parameters(found) - 200_000) <= abs(count_parameters(one) - 200_000) for one in near)
    if "intermediate_size" in fields:
        assert found["intermediate_size"] == 2 * width


def test_a_size_that_no_width_gives_is_an_error():
    with pytest.raises(UserError, match="no width gives about parameters=500: hidden_size=\\d has"):
        with_parameters({**SMALLM, "vocab_size": 1000}, 500)


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_word_counts_by_all_paths_of_tokens_that_spell_it(monkeypatch):
    pieces = [b" cat", b" dog", b" ca", b"t", None]
    vocabulary = Vocabulary(pieces, ["cat", "dog", "ca", "t", "<eos>"], np.array([True, True, True, False, True]))
    after = {(): [0.3, 0.4, 0.25, 0.0, 0.05], (2,): [0, 0, 0, 1.0, 0]}

    def predict(paths):
        return np.array([after.get(path, [0.5, 0.5, 0, 0, 0]) for path in paths])

    monkeypatch.setattr(measuring, "read_vocabulary", lambda tokenizer, size: vocabulary)
    monkeypatch.setattr(measuring, "predictor", lambda model, ids: (predict, None))
    model, tokenizer = tiny()
    words = [("the", "cat"), ("the", "dog"), ("the", "cow"), ("the", "ca")]
    # cat 0.3 + 0.25 through "ca" and "t", dog 0.4, the end 0.05: the most probable token is not the most probable word.
    assert word_accuracy(model, tokenizer, words) == {"top1": 0.25, "top3": 0.5, "words": 4}


def test_a_model_of_letters_spells_a_long_word_to_its_end(monkeypatch):
    letters = " elphantmos"
    vocabulary = Vocabulary([letter.encode() for letter in letters], [*letters], np.arange(11) == 0)

    def predict(paths):
        rows = np.full((len(paths), 11), 0.02)
        for row, path in zip(rows, paths, strict=True):
            row[letters.index((" elephant " + " " * 30)[len(path)])] = 0.8
        return rows

    monkeypatch.setattr(measuring, "read_vocabulary", lambda tokenizer, size: vocabulary)
    monkeypatch.setattr(measuring, "predictor", lambda model, ids: (predict, None))
    assert word_accuracy(*tiny(), [("the", "elephant")])["top1"] == 1


def tiny():
    from transformers import GPT2LMHeadModel

    from smallm_hf.config import model_config
    from smallm_hf.tokenizing.schemes import train_bpe

    tokenizer = train_bpe(["the cat sat on the mat"], 258)
    return GPT2LMHeadModel(model_config({**GPT2, "vocab_size": 258})), tokenizer


def test_the_words_to_predict_are_drawn_once_and_never_begin_a_document():
    documents = ["One two, three!", "Four"]
    assert choose_words(documents, 9, seed=1) == [("One", "two"), ("One two,", "three")]
    long = [" ".join(f"w{number}" for number in range(400))]
    drawn = choose_words(long, 7, seed=1)
    assert drawn == choose_words(long, 7, seed=1) != choose_words(long, 7, seed=2)
    assert all(len(before) <= measuring.CONTEXT_CHARACTERS for before, _ in drawn)


# --- running and showing ---------------------------------------------------------------------------------------------


def test_every_rung_stands_in_every_table_with_its_curve_and_sample(tmp_path):
    train, measure = Trainer(), Measurer()
    path = write_ladder(tmp_path, parameters=100_000)
    found = climbed(path, tmp_path / "ladder", train, measure)
    assert list(train.configs) == [f"{experiment}/{rung}" for experiment in BITS for rung in ("letters", "pieces")]
    assert measure.asked["words-500/letters"].word_positions == 0
    assert measure.asked["equal-time/pieces"].prompts == ("the cat",)
    assert [row["bits_per_byte"] for row in found["experiments"]["equal-parameters"]] == [1.75, 1.875]

    written = (tmp_path / "ladder" / "ladder.md").read_text()
    letters = "letters | 1,000 | 50 | 2.000 | 1,234.5 | 20.0% | 40.0% | 1.2k | 3 | 600 | 1.2k | 5.0 MB |"
    assert f"\n| {letters}\n" in written
    assert "minimal pairs" not in written  # nothing was measured of them
    assert re.search(r"## Equal parameters: about 100,000 each", written)
    by_size = "| rung | 500 words | all 1.92k words |\n| --- | --- | --- |\n| letters | 2.500 | 2.000 |\n"
    assert by_size + "| pieces | 3.000 | 1.500 |\n| lowest | letters | pieces |\n" in written
    page = (tmp_path / "ladder" / "ladder.html").read_text()
    assert page.count("<polyline") == 4 and page.count("sat on") == 2 and "sat on pieces &lt;b&gt;" in page
    assert json.loads((tmp_path / "ladder" / "ladder.json").read_text())["models"] == []

    sized = train.configs["equal-parameters/pieces"].model
    assert abs(count_parameters(sized) - 100_000) <= TOLERANCE * 100_000 and sized["num_hidden_layers"] == 1
    small = train.configs["words-500/pieces"]
    whole = train.configs["equal-time/pieces"]
    assert small.tokenizer.source == str(Path(whole.data.folder) / "tokenizer") and small.vocab_size == 280
    assert train.configs["equal-time/letters"].data.validation_source == small.data.validation_source


def test_a_resumed_ladder_trains_and_measures_only_what_is_missing(tmp_path):
    path, train = write_ladder(tmp_path), Trainer()
    train.failing = {"equal-time/pieces"}
    found = climbed(path, tmp_path / "ladder", train)
    assert found["failed"] == {"equal-time/pieces": "out of luck"}
    assert "equal-time/pieces failed: out of luck" in (tmp_path / "ladder" / "ladder.md").read_text()
    with pytest.raises(UserError, match="holds a ladder; add --resume"):
        climbed(path, tmp_path / "ladder")
    with pytest.raises(UserError, match="holds letters with training.batch_size=4, and now it has 8"):
        climbed(path, tmp_path / "ladder", stated=[("training.batch_size", 8)], resume=True)

    again, measure = Trainer(), Measurer()
    found = climbed(path, tmp_path / "ladder", again, measure, resume=True)
    assert list(again.configs) == list(measure.asked) == ["equal-time/pieces"]
    assert [row["rung"] for row in found["experiments"]["equal-time"]] == ["letters", "pieces"]


def test_a_dry_run_states_what_each_rung_costs_and_writes_nothing(tmp_path):
    config, rungs = read_ladder(write_ladder(tmp_path))
    said = []
    climb(Ladder(config, rungs, tmp_path / "ladder", dry_run=True), say=said.append)
    assert "| pieces | gpt2 | 22," in said[0] and "2 rungs, 2 runs each: 2m00s of training" in said[0]
    assert not (tmp_path / "ladder").exists()


def test_real_rungs_and_a_pretrained_model_are_measured_on_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw_runs", lambda folders: [])
    rungs = {"letters": LADDER["rungs"]["letters"]}
    path = write_ladder(tmp_path, rungs=rungs, sizes_in_words=[])
    stated = [("training.max_steps", 2)]
    climbed(path, tmp_path / "one", train_here, measure_rung, stated)
    best = str(tmp_path / "one" / "runs" / "equal-time" / "letters" / "best")
    path = write_ladder(tmp_path, rungs=rungs, sizes_in_words=[], models=[best])
    found = climbed(path, tmp_path / "one", train_here, measure_rung, stated, resume=True)
    (rung,), (model,) = found["experiments"]["equal-time"], found["models"]
    assert model["rung"] == "letters/best (pretrained)"
    assert re.search(r"\| letters/best \(pretrained\) \|.*\| – \| – \|", (tmp_path / "one" / "ladder.md").read_text())
    assert {key: model[key] for key in ("bits_per_byte", "samples", "word_accuracy")} == {
        key: rung[key] for key in ("bits_per_byte", "samples", "word_accuracy")
    }
    assert rung["bytes"] == found["text"]["validation.jsonl"]["bytes"] and rung["word_accuracy"]["words"] == 5
    assert results_of(Path(best).parent)["steps"] == 2
