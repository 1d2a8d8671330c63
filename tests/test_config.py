import dataclasses
from pathlib import Path

import pytest
import yaml

from smallm_hf.base.errors import UserError
from smallm_hf.config import RunConfig, model_config, parse_command_line
from smallm_hf.pretrained import fresh_model

SMALL = {
    "data": {"source": "text.txt"},
    "model": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "training": {"max_steps": 5, "context_length": 16},
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def parse(*words) -> RunConfig:
    return parse_command_line("test", [str(word) for word in words], training=True)[0]


def test_the_line_wins_over_the_file_wherever_the_file_stands(recipe):
    before = parse("--training.max_steps", 7, "--config", recipe)
    behind = parse("--config", recipe, "--training.max_steps", 7)
    assert before == behind
    assert before.training.max_steps == 7


def test_a_later_file_wins_over_an_earlier_one(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("training:\n  max_steps: 9\n")
    assert parse("--config", recipe, "--config", other).training.max_steps == 9


def test_numbers_with_exponents_are_numbers(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("training:\n  learning_rate: 6e-4\n")
    assert parse("--config", recipe, "--config", other).training.learning_rate == 6e-4


def test_a_model_field_on_the_line_joins_those_of_the_file(recipe):
    model = parse("--config", recipe, "--model.hidden_size", 64, "--model.tie_word_embeddings", "false").model
    assert (model["hidden_size"], model["num_hidden_layers"], model["tie_word_embeddings"]) == (64, 1, False)


def test_a_written_config_reads_back_as_itself(recipe, tmp_path):
    config = parse("--config", recipe, "--training.sample_prompts", '["a: b", "Zoë\\n"]')
    config.save(tmp_path / "config.yaml")
    assert parse("--config", tmp_path / "config.yaml") == config
    assert config.training.sample_prompts == ["a: b", "Zoë\n"]


def test_print_config_prints_what_a_run_would_use_as_a_recipe(recipe, tmp_path, capsys):
    words = ["--config", recipe, "--training.batch_size", "auto", "--model.preset", "classic"]
    with pytest.raises(SystemExit) as end:
        parse(*words, "--print_config")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert end.value.code == 0
    assert parse("--config", tmp_path / "printed.yaml") == parse(*words)


def test_a_whole_section_stands_in_one_word_or_in_a_file(recipe, tmp_path):
    (tmp_path / "training.yaml").write_text("max_steps: 8\n")
    for word in ("{max_steps: 8}", '{"max_steps": 8}', tmp_path / "training.yaml"):
        training = parse("--config", recipe, "--training", word).training
        assert (training.max_steps, training.context_length) == (8, 16)


def test_the_model_of_a_later_recipe_takes_the_place_of_an_earlier_one(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("model: {model_type: gpt2, n_embd: 32, n_head: 2}\n")
    assert "hidden_size" not in parse("--config", recipe, "--config", other, "--model.n_layer", 1).model
    word = "{model_type: gpt2, n_embd: 32, n_head: 2}"
    assert "hidden_size" not in parse("--config", recipe, "--model", word, "--model.n_layer", 1).model


def test_resume_alone_takes_the_config_of_the_run(recipe, tmp_path):
    config = parse("--config", recipe)
    config.save(tmp_path / "config.yaml")
    assert parse("--resume", "--output_dir", tmp_path) == config
    assert parse("--resume", f"--output_dir={tmp_path}", "--training.max_steps", 8).training.max_steps == 8


def test_the_run_folder_is_named_after_the_recipe(recipe):
    options = parse_command_line("test", ["--config", str(recipe)], training=True)[1]
    assert options.output_dir == Path("runs/small")


def test_tokenizer_and_model_share_one_vocabulary_size(recipe, tmp_path):
    assert parse("--config", recipe).vocab_size == 300
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"tokenizer": {"vocab_size": 400}, "training": {"max_steps": 1}}))
    assert parse("--config", other).vocab_size == 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.max_step", "7"], r"unknown option --training.max_step; did you mean --training.max_steps\?"),
        (["--trainin.max_steps", "7"], r"unknown option --trainin.max_steps; did you mean --training.max_steps\?"),
        (["--model.hiden_size", "7"], r"unknown key model.hiden_size .*did you mean model.hidden_size\?"),
        (["--training.max_steps", "many"], r"training.max_steps=many is not of type int \| null"),
        (["--training.learning_rate", "fast"], r"training.learning_rate=fast is not of type float"),
        (["--training.optimizer", "sgd"], r"training.optimizer=sgd is not of type .*adamw.*muon"),
        (["--model.hidden_size", "wide"], r"model: .*hidden_size.*int.*wide"),
        (["--model.model_type", "smalm"], r"model.model_type=smalm is unknown; did you mean smallm\?"),
        (["--model.num_attention_heads", "3"], r"num_attention_heads=3 does not divide hidden_size=32"),
        (["--model.hidden_act", "swish2"], r"hidden_act"),
        (["--training.context_length", "5000"], r"context_length=5000 exceeds model.max_position_embeddings=1024"),
        (["--tokenizer.vocab_size", "500"], r"tokenizer.vocab_size=500 differs from model.vocab_size=300"),
        (["--training.batch_size", "0"], r"training.batch_size=0 is out of range; set it to a number above 0"),
        (["--training.label_smoothing", "1"], r"label_smoothing=1.0 is out of range; set it to a number from 0 to"),
        (["--training.label_smoothing", "-0.1"], r"label_smoothing=-0.1 is out of range; set it to a number from 0 to"),
        (["--training.scheduled_sampling", "1"], r"scheduled_sampling=1.0 is out of range; set it to a number from 0"),
        (["--training.log_every", "-1"], r"training.log_every=-1 is out of range; set it to a number above 0"),
        (
            ["--training.decay_fraction", "2"],
            r"decay_fraction=2.0 is out of range; set it to a number from 0 to 1",
        ),
        (
            ["--training.warmup_steps", "-5"],
            r"warmup_steps=-5 is out of range; set it to a number of 0 or more",
        ),
        (["--training.beta2", "1.0"], r"training.beta2=1.0 is out of range; set it to a number from 0 to below 1"),
        (["--training.seed", "-1"], r"training.seed=-1 is out of range"),
        (["--training.sample_prompts", "[]"], r"training.sample_prompts=\[\] leaves nothing to continue"),
        (["--training.max_steps", "null"], r"the run has no end; set training.max_steps"),
        (["--training.max_steps", "1e3"], r"training.max_steps=1e3 is not of type int \| null"),
        (["--training.max_steps"], r"--training.max_steps has no value; give one"),
        (["--training.max_steps", "--resume"], r"--training.max_steps has no value; give one"),
        (["--training", "5"], r"section training holds 5, not keys with values"),
        (["--config"], r"--config names no file; give one"),
        (["--config", "nowhere.yaml"], r"--config nowhere.yaml: cannot be read"),
    ],
)
def test_a_wrong_word_is_one_line_that_names_the_fix(recipe, words, message):
    with pytest.raises(UserError, match=message) as error:
        parse("--config", recipe, *words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("training:\n  max_stepz: 3\n", r"unknown key training.max_stepz; did you mean training.max_steps\?"),
        ("trainin:\n  max_steps: 3\n", r"unknown key trainin.max_steps; did you mean training.max_steps\?"),
        ("training:\n  max_steps: 3\n bad", r"not YAML"),
        ("- a\n- b\n", r"holds no sections"),
        ("model:\n", r"section model holds None, not keys with values"),
        ("data: [a]\n", r"section data holds \['a'\], not keys with values"),
        ("1: {a: b}\n", r"unknown key 1.a"),
        ("training:\n  epochs: soon\n", r"training.epochs=soon is not of type float \| null"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_fix(tmp_path, content, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        parse("--config", path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("training:\n  max_steps: 5\n\ntraining:\n  seed: 1\n", r"training stands twice, in line 1 and in line 4"),
        ("data:\n  source: a\n  source: b\n", r"data.source stands twice, in line 2 and in line 3"),
        ("data: {sources: [{source: a, weight: 1, 'source': b}]}", r"data.sources.source stands twice, in line 1 and"),
        ("model:\n  hidden_size: 8\n  hidden_size: 16\n", r"model.hidden_size stands twice, in line 2 and in line 3"),
        ("training:\n  seed: 1\ntraining.seed: 2\n", r"training.seed stands twice, inside of its section and outside"),
        ("cleaning:\n  languages: [no, en]\n", r'line 2: .*reads no as false, .*quote it: languages: \["no", "en"\]'),
        ("cleaning:\n  languages:\n  - en\n  - off\n", r'off as false, .*quote it: languages: \["en", "off"\]'),
        ("cleaning:\n  languages: [~]\n", r'reads ~ as null, not as text; quote it: languages: \["~"\]'),
        ("cleaning:\n  languages: no\n", r'languages: no is not a list; write languages: \["no"\]'),
        ("data:\n  source: 1984\n", r'data.source: .*1984 as the number 1984, not as text; quote it: source: "1984"'),
        ("data:\n  text_column: 1\n", r'quote it: text_column: "1"'),
        ("data:\n  language: yes\n", r'reads yes as true, not as text; quote it: language: "yes"'),
        ("data:\n  revision: 12345e7\n", r'the number 123450000000.0, not as text; quote it: revision: "12345e7"'),
        ("data:\n  split: 12:30\n", r'the number 750, not as text; quote it: split: "12:30"'),
        ("data:\n  sources:\n  - {source: 2001, weight: 1}\n", r'data.sources: source: .*quote it: source: "2001"'),
        ("training:\n  sample_prompts: [It's, 1.5]\n", r"""quote it: sample_prompts: \["It's", "1.5"\]"""),
        ("model:\n  init_from: 1984\n", r'quote it: init_from: "1984"'),
        ("model:\n  hidden_act: no\n", r"hidden_act.*if text is meant, quote it"),
        ("training:\n  max_seconds: 12:30\n", r"reads 12:30 as the number 750; write 750, or what is meant"),
        ("training:\n  seed: 017\n", r"reads 017 as the number 15; write 15, or what is meant"),
    ],
)
def test_what_yaml_would_lose_or_misread_is_refused_with_what_to_write(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        parse("--config", path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cleaning.languages", "[no, en]"], r"""quote it: --cleaning.languages '\["no", "en"\]'"""),
        (["--cleaning.languages=no"], r"""no is not a list; write --cleaning.languages '\["no"\]'"""),
        (["--data.sources", '[{"source": 1984}]'], r'source: .*quote it: source: "1984"'),
        (["--data.sources", '[{"source": "a", "source": "b"}]'], r"--data.sources: source stands twice"),
        (["--model.init_from", "1984"], """quote it: --model.init_from '"1984"'"""),
        (["--output_dir", "a\udcff"], r"a\\udcff is not UTF-8; rename the file or folder"),
        (["--data.source=b\udcff/*.txt"], r"b\\udcff/\*.txt is not UTF-8; rename"),
    ],
)
def test_the_line_is_read_as_carefully_as_a_recipe(recipe, words, message):
    with pytest.raises(UserError, match=message) as error:
        parse("--config", recipe, *words)
    assert str(error.value).encode()


def test_what_is_quoted_or_meant_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {source: '1984', text_column: \"1\", language: null, license: 2024-01-01}\n"
        "cleaning: {languages: ['no', en], html: off}\n"
        "training: {max_steps: 1_000, seed: 0x10, learning_rate: 1e-3, batch_size: auto, sample_prompts: ['~', no!]}\n"
    )
    config = parse("--config", path)
    assert (config.data.source, config.data.text_column, config.data.license) == ("1984", "1", "2024-01-01")
    assert (config.cleaning.languages, config.cleaning.html) == (["no", "en"], False)
    assert (config.training.max_steps, config.training.seed, config.training.learning_rate) == (1000, 16, 1e-3)
    line = parse("--config", path, "--data.source", "2001", "--data.text_column", "3", "--cleaning.languages+", "de")
    assert (line.data.source, line.data.text_column, line.cleaning.languages) == ("2001", "3", ["no", "en", "de"])


def test_every_model_field_is_checked_for_other_families_too():
    assert model_config({"model_type": "gpt2", "n_embd": 64, "n_head": 2}).hidden_size == 64
    with pytest.raises(UserError, match="did you mean model.n_embd"):
        model_config({"model_type": "gpt2", "n_embed": 64})


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"model_type": "gpt2", "activation_function": "foo"},
            "model.activation_function=foo is not a name that model",
        ),
        (
            {"model_type": "t5", "feed_forward_proj": "gated-foo"},
            "model.feed_forward_proj=gated-foo is not a name",
        ),
        (
            {"model_type": "marian", "d_model": 10, "encoder_attention_heads": 3},
            r"no model of model.model_type=marian can have these sizes \(embed_dim must be divisible by num_heads",
        ),
        ({"model_type": "gpt2", "n_head": 0}, r"no model of model.model_type=gpt2 can have these sizes \(integer div"),
        ({"model_type": "gpt2", "n_embd": -4}, r"gpt2 can have these sizes \(Trying to create tensor with negative"),
    ],
)
def test_what_a_family_of_transformers_cannot_be_is_one_line(fields, line):
    with pytest.raises(UserError, match=line):
        fresh_model(model_config(fields), "meta")


def test_token_ids_of_the_tokenizer_fill_what_the_config_leaves_open():
    config = model_config({"vocab_size": 300, "eos_token_id": 5}, eos_token_id=298, pad_token_id=299)
    assert (config.eos_token_id, config.pad_token_id) == (5, 299)


def test_sections_cannot_change_after_loading(recipe):
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("--config", recipe).training.max_steps = 3


def test_all_of_the_help_teaches_every_key(capsys):
    with pytest.raises(SystemExit):
        parse("--help_all")
    text = capsys.readouterr().out
    for phrase in (
        "optimizer updates",
        "auto takes bf16",
        "share of the run over which wsd falls",
        "python-docs",
        "--dry_run",
    ):
        assert phrase in " ".join(text.split()), phrase


def test_a_line_without_any_word_is_answered_with_what_is_missing():
    with pytest.raises(UserError, match="the run has no end"):
        parse()


def test_an_automatic_batch_on_the_line_keeps_the_update_of_the_recipe(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("training:\n  batch_size: 32\n  accumulation_steps: 8\n")
    for words in (["--training.batch_size", "auto"], ["--training.batch_size=auto"]):
        training = parse("--config", recipe, "--config", other, *words).training
        assert (training.batch_size, training.global_batch_size) == ("auto", 256)
    assert parse("--config", recipe, "--training.batch_size", "auto").training.windows_per_step == 16
    auto = tmp_path / "auto.yaml"
    auto.write_text("training:\n  batch_size: auto\n")
    words = ["--config", recipe, "--config", other, "--config", auto, "--training.accumulation_steps", 4]
    assert parse(*words).training.windows_per_step == 128


def test_three_sizes_of_one_update_must_agree(recipe):
    words = ["--training.batch_size", 4, "--training.accumulation_steps", 2, "--training.global_batch_size"]
    assert parse("--config", recipe, *words, 8).training.windows_per_step == 8
    with pytest.raises(UserError, match="batch_size=4 x training.accumulation_steps=2 is 8 .*global_batch_size=16"):
        parse("--config", recipe, *words, 16)
