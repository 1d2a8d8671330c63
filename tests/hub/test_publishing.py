"""A finished run becomes one repository that loads everywhere, and nothing else becomes one."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, constants
from loopback_hub import connected_hub
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.base.errors import UserError
from smallm_hf.card import Statements, find_weights
from smallm_hf.evaluation.model_scores import evaluate_models
from smallm_hf.evaluation.results_page import report_results
from smallm_hf.hub import checks, publishing
from smallm_hf.hub.publishing import publish
from smallm_hf.hub.staging import CURVES, TOKENIZER_FILES, copy_files, stage
from smallm_hf.plots import PLOTS

STATED = Statements(license="mit", language="en")
TREE = {
    *("LICENSE", "README.md", "config.json", "config.yaml", "configuration_smallm.py", "modeling_smallm.py"),
    *("environment.json", "generation_config.json", "metrics.jsonl", "model.safetensors", "results.json"),
    *("samples.jsonl", "tokenizer.json", "tokenizer_config.json"),
}


@pytest.fixture(scope="module")
def tree(finished_run):
    """All that a repository of the run holds."""
    return TREE | {f"figures/{path.name}" for path in (finished_run / "figures").iterdir()}


@pytest.fixture
def unchecked(monkeypatch):
    """Leaves out the loading in other processes, which takes seconds and is tested once."""
    monkeypatch.setattr(publishing, "check_elsewhere", lambda *arguments, **options: 0.0)


@pytest.fixture(scope="module")
def published(finished_run, tmp_path_factory):
    """The run on a Hub of its own, with every check."""
    home = tmp_path_factory.mktemp("published")
    run = shutil.copytree(finished_run, home / "tiny")
    for name in ("optimizer.pt", "pytorch_model.bin", "notes.txt", ".env"):
        (run / "best" / name).write_text("not for others")
    with connected_hub(home / "home") as hub:
        publish(run, "user/tiny", STATED)
        yield hub


def test_the_repository_holds_what_is_allowed_and_nothing_else(published, tree):
    assert set(published.files("user/tiny")) == tree


def test_main_is_best_and_every_kept_checkpoint_has_a_tag(published, finished_run, tree):
    weights = {name: finished_run / name for name in ("best", "final")}
    weights |= {f"step-{step}": finished_run / "checkpoints" / f"step-{step}" for step in (3, 6)}
    refs = HfApi().list_repo_refs("user/tiny")
    assert {ref.name for ref in refs.tags} == set(weights)
    assert {ref.name for ref in refs.branches} == {"main", "checkpoints"}
    for revision, folder in {"main": weights["best"], **weights}.items():
        files = published.files("user/tiny", revision)
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes(), revision
        assert set(files) == tree


def test_nothing_of_this_machine_is_published(published, finished_run):
    for revision in ("main", "final", "step-3"):
        for name, content in published.files("user/tiny", revision).items():
            assert str(finished_run.parent).encode() not in content, name
            assert b"hf_writer" not in content
    files = published.files("user/tiny")
    config = yaml.safe_load(files["config.yaml"])
    assert config["data"]["source"] == "stories.txt"
    assert config["training"]["sample_prompts"] == ["the cat", "", "/usr"]
    assert json.loads(files["results.json"])["environment"] == json.loads(files["environment.json"])


def test_it_loads_from_an_empty_cache_where_the_package_cannot_be_imported(published, finished_run, elsewhere):
    code = """
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
ids = torch.arange(20)[None]
answer = {"text": pipeline("text-generation", model="user/tiny")("the cat", max_new_tokens=3)[0]["generated_text"]}
answer["tokens"] = AutoTokenizer.from_pretrained("user/tiny")("the cat")["input_ids"]
for revision in ("main", "step-3"):
    for flag in (False, True):
        model = AutoModelForCausalLM.from_pretrained("user/tiny", revision=revision, trust_remote_code=flag)
        answer[f"{revision} {type(model).__name__}"] = model(ids).logits[0, :, :5].tolist()
print(json.dumps(answer))
"""
    answer = json.loads(elsewhere(code).splitlines()[-1])
    assert answer.pop("text").startswith("the cat") and len(answer.pop("tokens")) > 1
    assert set(answer) == {f"{r} {c}ForCausalLM" for r in ("main", "step-3") for c in ("Qwen3", "SmaLLM")}
    for name, logits in answer.items():
        folder = finished_run / ("best" if "main" in name else "checkpoints/step-3")
        expected = SmaLLMForCausalLM.from_pretrained(folder)(torch.arange(20)[None]).logits[0, :, :5]
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-5)


def test_the_card_on_the_hub_has_metadata_that_the_hub_reads(published, finished_run):
    card = ModelCard(published.files("user/tiny")["README.md"].decode())
    best = json.loads((finished_run / "results.json").read_text())["best"]
    assert (card.data.license, card.data.language, card.data.library_name) == ("mit", ["en"], "transformers")
    assert (card.data.pipeline_tag, card.data.model_name) == ("text-generation", "tiny")
    assert card.data.widget == [{"text": "the cat"}, {"text": "/usr"}]
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores["perplexity"] == round(best["validation_perplexity"], 2)
    assert 'pipeline("text-generation", model="user/tiny")' in card.text
    assert "`step-3`, `step-6`, `final`" in card.text and "(figures/loss.png)" in card.text
    info = HfApi().model_info("user/tiny")
    assert (info.pipeline_tag, info.tags, info.private) == ("text-generation", ["smallm"], False)


def test_the_figures_of_a_run_are_those_that_its_records_give():
    assert tuple(PLOTS) == CURVES


def scored(run, data):
    """Leaves a page of scores in the run, as score.py --report does."""
    report_results(evaluate_models([f"{run}/best"], str(data), loading={"device": "cpu"}), page=f"{run}/report.html")


def test_a_page_of_scores_on_the_runs_own_validation_text_is_published_without_paths_and_the_card_links_it(
    hub, run, unchecked, capsys
):
    scored(run.resolve(), run)
    publish(run, "user/tiny", checkpoints=False)
    files = hub.files("user/tiny")
    assert str(run.parent).encode() not in files["report.html"] and b"Hardest" in files["report.html"]
    assert b"[report.html](report.html)" in files["README.md"]
    assert f"{run}/report.html is published: it quotes the validation text of this run" in capsys.readouterr().out


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_quotes_another_text_is_published_only_where_that_is_asked_for(
    hub, run, unchecked, capsys, tmp_path, dry_run
):
    secret = tmp_path / "diary.txt"
    secret.write_text(
        "\n<|endoftext|>\n".join(f"Nobody must ever read what I write here, number {n}." for n in range(9))
    )
    scored(run, secret)
    assert "Nobody must ever read" in (run / "report.html").read_text()
    (run / "figures" / "tokens.png").write_bytes(b"a picture of my text")
    for page in (None, "<html><head></head><body>written before pages said what they quote</body></html>"):
        for include in (False, True):
            if page:
                (run / "report.html").write_text(page)
            publish(run, "user/tiny", checkpoints=False, include_report=include, dry_run=dry_run)
            said = capsys.readouterr().out
            assert "not published, since they may show a text of yours: figures/tokens.png" in said
            assert (f"{run}/report.html is not published" in said) != include
            names = (
                set(re.findall(r"^ +[\d,]+  (\S+)$", said, re.MULTILINE)) if dry_run else set(hub.files("user/tiny"))
            )
            assert ("report.html" in names) == include and "figures/loss.png" in names
            assert "figures/tokens.png" not in names
    (run / "report.html").unlink()
    with pytest.raises(UserError, match=r"--include_report: there is no .*report.html; make it with smallm score"):
        publish(run, "user/tiny", include_report=True)


def test_a_second_time_nothing_is_sent(published, finished_run, unchecked, capsys):
    published.bytes_received = 0
    commits = len(published.repositories["model", "user/tiny"].commits)
    publish(finished_run, "user/tiny", STATED)
    assert published.bytes_received == 0
    assert len(published.repositories["model", "user/tiny"].commits) == commits
    assert "main and best is up to date" in capsys.readouterr().out


def test_a_dry_run_shows_all_and_needs_neither_network_nor_token(run, monkeypatch, capsys, unchecked, tree):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/dev/null/home/token")  # a home that is not a folder
    publish(run, "user/tiny", dry_run=True)
    said = capsys.readouterr().out
    assert "user/tiny, branch main, tags best, step-3, step-6, final:" in said
    for name in tree:
        assert f"  {name}\n" in said, name
    assert f"{(run / 'best' / 'model.safetensors').stat().st_size:,}  model.safetensors" in said
    assert "# tiny" in said and 'model="user/tiny"' in said
    assert re.search(r"the licence of \S*stories.txt is unknown, and the card says so: state it, --data_license", said)
    assert str(run.parent) not in said[said.index("\n---\n") :]


def test_the_name_alone_goes_to_the_namespace_of_the_token(hub, run, unchecked):
    publish(run, "tiny", checkpoints=False)
    assert ("model", "user/tiny") in hub.repositories
    assert set(hub.repositories["model", "user/tiny"].tags) == {"best", "final"}


def test_another_branch_gets_the_best_weights_and_main_and_tags_stay(hub, run, unchecked, tree):
    publish(run, "user/tiny", revision="trial", private=True)
    repository = hub.repositories["model", "user/tiny"]
    assert repository.private and set(repository.branches) == {"main", "trial"} and not repository.tags
    assert hub.files("user/tiny") == {}
    assert set(hub.files("user/tiny", "trial")) == tree


def test_another_state_moves_the_tags_and_old_files_go(hub, run, unchecked):
    publish(run, "user/tiny", checkpoints=False)
    old = dict(hub.repositories["model", "user/tiny"].tags)
    for figure in (run / "figures").iterdir():
        figure.unlink()
    publish(run, "user/tiny", checkpoints=False)
    assert all(hub.repositories["model", "user/tiny"].tags[name] != commit for name, commit in old.items())
    assert set(hub.files("user/tiny")) == TREE


def test_an_upload_that_broke_off_is_completed_and_what_arrived_is_not_sent_again(
    hub, run, unchecked, monkeypatch, tree
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    figures = {path.stat().st_size for path in (run / "figures").glob("*.png")}
    hub.cut_uploads_after = max(figures)  # the weights are larger
    with pytest.raises(UserError, match="the connection to the Hub broke off.*run the same command again") as error:
        publish(run, "user/tiny", checkpoints=False)
    assert "\n" not in str(error.value)
    assert hub.files("user/tiny") == {} and {len(content) for content in hub.objects.values()} == figures
    hub.cut_uploads_after, hub.bytes_received = None, 0
    publish(run, "user/tiny", checkpoints=False)
    weights = (run / "best" / "model.safetensors").stat().st_size
    assert set(hub.files("user/tiny")) == tree
    small = sum(len(content) for content in hub.files("user/tiny").values()) - weights - sum(figures)
    assert weights <= hub.bytes_received < weights + 2 * 1.5 * small  # base64, on main and on the other branch


@pytest.mark.parametrize("change", [lambda file: file.write_text("other"), lambda file: None])
def test_a_file_that_comes_back_changed_or_not_at_all_is_reported(hub, run, unchecked, monkeypatch, change):
    download = HfApi.snapshot_download

    def damaged(*arguments, **options):
        file = Path(download(*arguments, **options), "LICENSE")
        file.unlink()  # it is a link
        change(file)
        return file.parent

    monkeypatch.setattr(HfApi, "snapshot_download", damaged)
    with pytest.raises(UserError, match="^LICENSE came back changed from user/tiny; publish it again$"):
        publish(run, "user/tiny", checkpoints=False)


def test_the_pipeline_of_the_client_that_everybody_has_works_too(hub, run, unchecked, monkeypatch, tree):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.large_files = False  # the storage that Xet talks to is not part of this Hub
    publish(run, "user/tiny", checkpoints=False)
    assert set(hub.files("user/tiny")) == tree


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_run_that_has_not_ended_is_refused(hub, run):
    (run / "results.json").unlink()
    with pytest.raises(UserError, match=r"tiny has not ended \(no results.json\); finish it with smallm train"):
        publish(run, "user/tiny")


def test_a_folder_that_is_not_a_run_is_refused(hub, tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder \(no config.yaml\)"):
        publish(tmp_path, "user/tiny")


@pytest.mark.parametrize("missing", ["config.json", "validation.json"])
def test_a_run_without_best_is_refused(hub, run, missing):
    (run / "best" / missing).unlink()
    with pytest.raises(UserError, match=rf"tiny has no whole best/ \(no {missing}\)"):
        publish(run, "user/tiny")


@pytest.mark.parametrize("name", ["user/tiny/again", "user/ti ny", "user/a--b", "-tiny", "user/tiny.git"])
def test_a_name_the_hub_does_not_allow_is_refused(run, name):
    with pytest.raises(UserError, match="is not a name for a repository of the Hub: .*; give user/name") as error:
        publish(run, name, dry_run=True)
    assert "\n" not in str(error.value)


def test_without_a_token_nothing_is_sent(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(run / "none"))
    with pytest.raises(UserError, match="there is no token for the Hub on this machine; run hf auth login"):
        publish(run, "user/tiny")


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (
            "hf_nobody",
            "user/tiny",
            r"the Hub does not know this token \(.*Invalid.*\); run hf auth login or set HF_TOKEN",
        ),
        ("hf_reader", "user/tiny", "the token of user is read-only; create one with write permission"),
        (
            "hf_writer",
            "other/tiny",
            r"this token may not write to other/tiny \(.*under the namespace \"other\"\); create",
        ),
    ],
)
def test_a_token_that_may_not_write_is_refused(hub, run, unchecked, monkeypatch, token, repo, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message) as error:
        publish(run, repo)
    assert "\n" not in str(error.value) and not hub.repositories


def test_a_token_that_lost_its_permission_is_refused(hub, run, unchecked, monkeypatch):
    HfApi().create_repo("user/tiny")
    monkeypatch.setitem(hub.tokens, "hf_writer", ("colleague", "write"))
    with pytest.raises(UserError, match=r"this token may not write to user/tiny \(Forbidden: pass .*\); create one"):
        publish(run, "user/tiny")


def test_without_a_network_nothing_is_tried_twice(hub, run):
    hub.close()
    with pytest.raises(UserError, match=r"the Hub at .* cannot be reached .*see with --dry_run what would be sent"):
        publish(run, "user/tiny")


def test_a_repository_of_something_else_is_left_alone(hub, run, unchecked):
    api = HfApi()
    api.create_repo("user/tiny")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="user/tiny")
    with pytest.raises(
        UserError, match=r"user/tiny holds something else \(config.json; no results.json\); give another"
    ):
        publish(run, "user/tiny")
    assert set(hub.files("user/tiny")) == {"config.json"}


def test_a_public_repository_does_not_take_what_is_to_be_private(hub, run, unchecked):
    HfApi().create_repo("user/tiny")
    with pytest.raises(UserError, match="user/tiny exists and is public, not private"):
        publish(run, "user/tiny", private=True)


def test_metadata_the_hub_refuses_is_reported(hub, run, unchecked):
    with pytest.raises(UserError, match=r"the Hub refuses the card of user/tiny: .*\"datasets\" with value"):
        publish(run, "user/tiny", Statements(data_set="not a data set"))


@pytest.mark.parametrize("name", ["best", "final"])
def test_a_card_whose_number_was_edited_is_refused(hub, run, name):
    path = run / name / "README.md"
    card = path.read_text()
    loss = re.search(r"^\| (\d\.\d{4}) \|", card, re.MULTILINE)[1]
    path.write_text(card.replace(f"| {loss} |", "| 1.2345 |"))
    with pytest.raises(
        UserError, match=rf"{name}/README.md line \d+ says '\| 1.2345 \|.*, the run's records say '\| {loss}"
    ):
        publish(run, "user/tiny")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("parameters", r"results.json says parameters=1 of best/, best/ says 39904"),
        ("embedding_parameters", r"results.json says embedding_parameters=1 of best/, best/ says 8960"),
        ("tokens", r"results.json says tokens=1 of best/, metrics.jsonl says 768"),
        ("flops", r"results.json says flops=1 of best/, the formula says \d+"),
    ],
)
def test_a_record_that_was_edited_is_refused(hub, run, field, message):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {field: 1}))
    with pytest.raises(UserError, match=message):
        publish(run, "user/tiny")


def test_a_run_that_went_on_after_its_results_is_refused(hub, run):
    validation = json.loads((run / "best" / "validation.json").read_text())
    (run / "best" / "validation.json").write_text(json.dumps(validation | {"validation_loss": 0.5}))
    with pytest.raises(
        UserError, match=r"results.json says validation_loss=.* of best/, best/validation.json says 0.5"
    ):
        publish(run, "user/tiny")


def test_damaged_weights_are_refused(hub, run):
    path = run / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"best cannot be loaded \(.*\); restore the files of the run") as error:
        publish(run, "user/tiny")
    assert "\n" not in str(error.value)


def test_a_token_in_a_record_is_never_published(hub, run, unchecked):
    for secret in ("hf_writer", "hf_" + "aB3" * 11):
        (run / "samples.jsonl").write_text(json.dumps({"step": 6, "prompt": "", "text": f" {secret} "}) + "\n")
        (run / "best" / "README.md").unlink(missing_ok=True)
        (run / "final" / "README.md").unlink(missing_ok=True)
        with pytest.raises(UserError, match=r"\w of the run holds an access token; revoke it, and remove it"):
            publish(run, "user/tiny")
    assert hub.bytes_received == 0


# --- loading elsewhere -----------------------------------------------------------------------------------------------


@pytest.fixture
def staged(run, tmp_path):
    """Stages the best weights of the run and loads them where the package cannot be imported."""

    def load():
        folder, home = tmp_path / "staged", tmp_path / "cache"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        home.mkdir(exist_ok=True)
        weights = find_weights(run, "best")
        stage(run, weights, folder, Statements(), "user/tiny")
        return folder, lambda: checks.check_elsewhere([checks.Check(str(folder), folder, run / "best")], home)

    return load


def test_every_kind_of_model_loads_elsewhere_the_ways_it_promises(run, tmp_path, staged):
    """GPT-2's layout is transposed on the way; what no native class can express needs the flag; and a folder that the
    native class has saved again, without our code but with an `auto_map` that names it, gets the code back."""
    AutoModelForCausalLM.from_pretrained(run / "best").save_pretrained(run / "again")
    for path in (run / "best").glob("*.py"):
        path.unlink()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / "again" / name, run / "best")
    assert "auto_map" in json.loads((run / "best" / "config.json").read_text())
    again, _ = staged()
    assert (again / "modeling_smallm.py").is_file()
    names = [checks.Check(str(again), again, run / "best")]
    shape = {"vocab_size": 280, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for model_type, fields in (("gpt2", {"preset": "classic"}), ("smallm", {"gated_mlp": False})):
        folder = tmp_path / model_type
        SmaLLMForCausalLM(SmaLLMConfig(**shape, **fields, max_position_embeddings=32)).save_pretrained(folder)
        copy_files(run / "best", folder, TOKENIZER_FILES)
        assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
        names.append(checks.Check(str(folder), folder, folder))
    assert checks.check_elsewhere(names, tmp_path / "cache") < 1e-5


def test_an_auto_map_whose_files_nobody_has_is_dropped(run, staged):
    config = json.loads((run / "best" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "other/repo--modeling_other.OtherForCausalLM"}
    (run / "best" / "config.json").write_text(json.dumps(config))
    folder, _ = staged()
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert "auto_map" in json.loads((run / "best" / "config.json").read_text())


def test_weights_that_answer_otherwise_elsewhere_are_refused(run, staged):
    folder, check = staged()
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
    (folder / "model.safetensors").unlink()  # it is a link
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the logits of .*staged differ from those of .*best by 1.\de-02"):
        check()


def test_a_folder_that_needs_the_package_is_refused(run, staged):
    folder, check = staged()
    code = (folder / "modeling_smallm.py").read_text()
    (folder / "modeling_smallm.py").write_text(code + "\nimport smallm_hf\n")
    with pytest.raises(UserError, match="does not load where smallm_hf is not installed: .*smallm_hf") as error:
        check()
    assert "\n" not in str(error.value)
