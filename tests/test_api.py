"""The functions of the package, in one process; what they do is what the scripts do."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from running import RECIPE, outcome, train, write_recipe, write_stories
from safetensors.torch import load_file

import smallm_hf
from smallm_hf import plots
from smallm_hf.config import keys_of, read_run
from smallm_hf.data.token_files import open_token_files

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a recipe, the token files it names, and two runs of it, without the figures, which take long."""
    folder = tmp_path_factory.mktemp("api")
    recipe = write_recipe(folder, write_stories(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw_runs", lambda folders: [])
        smallm_hf.prepare(recipe)
        smallm_hf.train(recipe, folder / "fp32")
        smallm_hf.train(recipe, folder / "bf16", training={"precision": "bf16", "max_steps": 4})
    return folder


@pytest.fixture
def in_place(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setattr(plots, "draw_runs", lambda folders: [])
    return place


def test_a_text_is_prepared_where_the_recipe_says_or_in_another_folder(in_place):
    assert smallm_hf.prepare("recipe.yaml") == Path(in_place, "tokens")
    elsewhere = smallm_hf.prepare("recipe.yaml", "other_tokens", data={"validation_ratio": 0.5})
    assert elsewhere == Path("other_tokens")
    assert open_token_files(elsewhere).meta.validation.documents > open_token_files("tokens").meta.validation.documents


def test_two_runs_of_one_process_differ_in_what_was_stated_alone(place):
    configs = {name: yaml.safe_load((place / name / "config.yaml").read_text()) for name in ("fp32", "bf16")}
    assert [config["training"].pop("precision") for config in configs.values()] == ["fp32", "bf16"]
    assert [config["training"].pop("max_steps") for config in configs.values()] == [6, 4]
    assert configs["fp32"] == configs["bf16"]


def test_a_run_is_the_one_of_the_script(in_place):
    train(in_place / "recipe.yaml", in_place / "script")
    assert outcome(in_place / "script") == outcome(in_place / "fp32")


def test_a_recipe_may_be_a_dict_and_its_results_are_returned(in_place):
    sections = {**RECIPE, "data": {**RECIPE["data"], "source": in_place / "stories.txt", "folder": "tokens"}}
    results = smallm_hf.train(sections, training={"max_steps": 4, "precision": "bf16"})
    assert results["steps"] == json.loads(Path("runs/run/results.json").read_text())["steps"] == 4
    weights = [load_file(run / "final/model.safetensors") for run in (Path("runs/run"), in_place / "bf16")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_model_keys_change_the_model_of_the_recipe(place):
    stated = keys_of({"model": {"dropout": 0.5}}, whole_model=False)
    model = read_run([place / "recipe.yaml"], stated, None, False)[0].model
    assert (model["dropout"], model["hidden_size"]) == (0.5, RECIPE["model"]["hidden_size"])


def test_a_run_is_resumed_with_its_own_config(in_place):
    recipe = in_place / "recipe.yaml"
    smallm_hf.train(recipe, "parts", training={"max_steps": 3, "schedule": "constant"})
    results = smallm_hf.train(output_dir="parts", resume=True, training={"max_steps": 6})
    assert results["steps"] == 6
    smallm_hf.train(recipe, "whole", training={"schedule": "constant"})
    final = [load_file(f"{run}/final/model.safetensors") for run in ("parts", "whole")]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[1])


def test_the_scores_are_those_of_the_script(in_place, warm_bin):
    command = [
        warm_bin / "python",
        SCRIPTS / "score.py",
        "--model",
        "fp32/best",
        "--data",
        "fp32",
        "--protocol",
        "packed",
    ]
    subprocess.run([*command, "--top_k", "2", "--output", "score.json"], check=True, capture_output=True)
    written = json.loads(Path("score.json").read_text())
    scored = smallm_hf.score("fp32/best", "fp32", protocol="packed", top_k=[2])
    assert {**scored, "seconds": written["seconds"]}.items() <= written.items()
    assert {"loss", "perplexity", "bits_per_byte", "top1_accuracy", "top3_accuracy", "tokens", "bytes"} <= {*scored}


def test_texts_and_a_loaded_model_are_scored_as_a_file_and_a_folder_are(in_place):
    texts = ["the cat sat on a mat.", "one red bird."]
    Path("texts.jsonl").write_text("".join(json.dumps({"story": text}) + "\n" for text in texts))
    model = smallm_hf.load("fp32/best", device="cpu")
    scores = smallm_hf.score(model, texts), smallm_hf.score("fp32/best", Path("texts.jsonl"), text_column="story")
    for figures in scores:
        figures.pop("seconds")
    assert scores[0] == scores[1] and scores[0]["documents"] == 2


def test_the_text_is_that_of_the_script_alone_and_in_a_list(in_place, warm_bin):
    asked = {"max_new_tokens": 12, "temperature": 0.7, "seed": 3}
    options = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    command = [warm_bin / "python", SCRIPTS / "generate.py", "--model", "fp32/best", "--prompt", "the cat", *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text = smallm_hf.generate("fp32/best", "the cat", **asked)
    assert printed == f"the cat{text}\n" and text
    model = smallm_hf.load("fp32/best")
    assert smallm_hf.generate(model, ["a mat", "the cat"], **asked)[1] == text
    end = text[-3:]
    assert smallm_hf.generate(model, "the cat", stop=[end], **asked) == text.partition(end)[0]


def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(in_place):
    model, tokenizer = smallm_hf.load("fp32/best", dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smallm_hf.train("recipe.yaml", trainin={"max_steps": 3}), r"unknown key trainin.max_steps; did you"),
        (lambda: smallm_hf.train("recipe.yaml", learning_rate=1), r"unknown key learning_rate; did you mean training"),
        (lambda: smallm_hf.train("recipe.yaml", training={"max_steps": "many"}), r"training.max_steps=many is not of"),
        (lambda: smallm_hf.train("recipe.yaml", training=3), r"section training holds 3, not keys with values"),
        (lambda: smallm_hf.train("recipe.yaml", model={"hiden_size": 3}), r"did you mean model.hidden_size\?"),
        (lambda: smallm_hf.train({"training": {"max_step": 3}}), r"unknown key training.max_step; did you mean"),
        (lambda: smallm_hf.train("nowhere.yaml"), r"--config nowhere.yaml: cannot be read"),
        (lambda: smallm_hf.train("recipe.yaml", "fp32"), r"fp32"),
        (lambda: smallm_hf.prepare({}), r"holds no sections; see configs/quickstart.yaml"),
        (lambda: smallm_hf.score("nowhere/at/all", "fp32"), r"nowhere/at/all is not a folder"),
        (lambda: smallm_hf.score("fp32/best", "nowhere.txt"), r"nowhere.txt: no such file or folder"),
        (lambda: smallm_hf.score("fp32/best", ["a"], protocol="pakced"), r"protocol 'pakced' is unknown"),
        (lambda: smallm_hf.generate("fp32/best", "the", top_p=2), r"top_p=2 is out of range"),
        (lambda: smallm_hf.load("fp32/best", dtype="int3"), r"dtype 'int3' is unknown"),
    ],
)
def test_a_mistake_raises_the_line_of_the_script(in_place, call, message):
    with pytest.raises(smallm_hf.UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_mistake_is_found_before_torch_is_imported():
    code = (
        "import sys, smallm_hf\n"
        "train = lambda: smallm_hf.train(training={'max_steps': 'many'})\n"
        "for call in (train, lambda: smallm_hf.generate('x', '', top_p=2)):\n"
        "    try: call()\n"
        "    except smallm_hf.UserError: assert 'torch' not in sys.modules\n"
        "    else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_minimal_pairs_are_judged_as_by_the_script(in_place, monkeypatch):
    Path("pairs.jsonl").write_text(
        '{"sentence_good": "the cat sat", "sentence_bad": "the sat cat", "UID": "order"}\n' * 3
    )
    figures = smallm_hf.score_minimal_pairs("fp32/best", "pairs.jsonl", max_pairs=2)
    arguments = ["--minimal_pairs", "pairs.jsonl", "--max_pairs", "2", "--output", "pairs.json"]
    monkeypatch.setattr(sys, "argv", ["score.py", "--model", "fp32/best", *arguments])
    runpy.run_path(str(SCRIPTS / "score.py"), run_name="__main__")
    written = json.loads(Path("pairs.json").read_text())
    assert written["paradigms"] == figures["paradigms"]
    assert figures["paradigms"]["order"]["pairs"] == 2
