"""One trained model on a Hub of its own, and the page that a run of these tests writes (`--compatibility FILE`)."""

from pathlib import Path

import pytest
import torch
from compatibility import CompatibilityPage
from huggingface_hub import HfApi, snapshot_download
from loopback_hub import connected_hub
from outside import NEW_TOKENS, PRESETS, PROMPT, REPO
from running import train, write_recipe, write_stories

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.tokenizing.loading import load_tokenizer, save_tokenizer


def pytest_addoption(parser):
    parser.addoption("--compatibility", type=Path, metavar="FILE", help="write there which test passed, with versions")


def pytest_configure(config):
    config.addinivalue_line("markers", "matrix(what, loaded, *packages): the row of a test in docs/compatibility.md")
    page = config.getoption("--compatibility", None)
    if page and not hasattr(config, "workerinput"):
        config.pluginmanager.register(CompatibilityPage(page))


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("matrix"):
            item.user_properties.append(("row", list(mark.args)))


# --- the model under test --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A finished run of 30 steps."""
    folder = tmp_path_factory.mktemp("run")
    model = {"num_attention_heads": 4, "max_position_embeddings": 64}
    training = {
        **{"max_steps": 30, "context_length": 64, "learning_rate": 0.01},
        **{"evaluate_every": None, "checkpoint_every": None, "keep_checkpoints": 1},
        **{"sample_prompts": [PROMPT], "sample_tokens": NEW_TOKENS},
    }
    train(write_recipe(folder, write_stories(folder), model=model, training=training), folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="session")
def best(run) -> Path:
    return run / "best"


@pytest.fixture(scope="module")
def hub(best, tmp_path_factory):
    """A Hub with these weights in `REPO`; the cache of this process, and of those it starts, is empty."""
    with connected_hub(tmp_path_factory.mktemp("hub") / "home") as hub:
        HfApi().create_repo(REPO)
        HfApi().upload_folder(repo_id=REPO, folder_path=best)
        yield hub


@pytest.fixture(scope="module")
def pulled(hub) -> str:
    """The id of the repository, all of which is in the cache of this process."""
    snapshot_download(REPO)
    return REPO


@pytest.fixture(scope="session")
def token_ids(best) -> list[int]:
    return load_tokenizer(str(best))(PROMPT)["input_ids"]


@pytest.fixture(scope="session")
def expected(best, token_ids) -> torch.Tensor:
    """Logits of the class that was trained, (T, V)."""
    return SmaLLMForCausalLM.from_pretrained(best)(torch.tensor([token_ids])).logits[0].detach()


@pytest.fixture(scope="session")
def continuation(best, token_ids) -> str:
    """What the class that was trained finds most probable behind the prompt."""
    model = SmaLLMForCausalLM.from_pretrained(best)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    written = model.generate(torch.tensor([token_ids]), **length, do_sample=False)
    return load_tokenizer(str(best)).decode(written[0, len(token_ids) :])


@pytest.fixture(scope="session")
def presets(tmp_path_factory, best, token_ids) -> dict[str, tuple[Path, torch.Tensor]]:
    """A folder of each, and the logits of the class that wrote it."""
    models, tokenizer = {}, load_tokenizer(str(best))
    for name, (fields, _) in PRESETS.items():
        torch.manual_seed(0)
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = SmaLLMForCausalLM(SmaLLMConfig(**sizes, max_position_embeddings=64, **fields)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        folder = tmp_path_factory.mktemp("presets") / name.replace(" ", "-")
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, 64)
        models[name] = folder, model(torch.tensor([token_ids])).logits[0].detach()
    return models
