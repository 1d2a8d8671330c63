"""What the scripts do, for a notebook or another program: prepare, train, score, generate and load.

A mistake raises `UserError` with the line that a script would print, before torch is imported where that can be.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallm_hf.base.settings import Dtype, Loading, Sampling, require_models
from smallm_hf.config import CommandOptions, keys_of, read_config, read_run
from smallm_hf.evaluation.configuration import Rules
from smallm_hf.evaluation.pair_files import read_paradigms

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

Recipe = str | Path | Mapping[str, Any]


def prepare(config: Recipe, output_dir: str | Path | None = None, **sections: Mapping[str, Any]) -> Path:
    """Makes the token files of a recipe, or finds them made.

    Args:
        config: a recipe's file, the name of one that comes with this package, or its sections as a dict:
            `{"data": {"source": "my.txt"}, "training": {...}}`.
        output_dir: where they go; by default `data.folder` of the recipe, or a name below `data/`.
        sections: keys that win over the recipe's, by section: `data={"source": "my.txt"}`.

    Returns:
        Their folder.
    """
    run = read_config([config], keys_of(sections, whole_model=False))
    from smallm_hf.runs import prepare_run

    return prepare_run(run, CommandOptions(Path(output_dir) if output_dir else None)).folder


def train(
    config: Recipe | None = None,
    output_dir: str | Path | None = None,
    *,
    resume: bool = False,
    **sections: Mapping[str, Any],
) -> dict[str, Any]:
    """Trains a model and leaves a run folder, as scripts/train.py does. Runs may follow each other in one process.

    Args:
        config: as for `prepare`; None with `resume` takes the config of the run.
        output_dir: the run folder; by default `runs/NAME` after the recipe's file.
        resume: continue the newest checkpoint of `output_dir`.
        sections: as for `prepare`: `training={"max_steps": 20, "precision": "bf16"}`.

    Returns:
        What `results.json` of the run holds; the model is in its folders `best` and `final`.

    Raises:
        UserError: a mistake, before the run folder exists.
        Interrupted: the run was asked to stop (Ctrl-C, SIGTERM) and has saved a checkpoint.
    """
    run, folder = read_run([] if config is None else [config], keys_of(sections, whole_model=False), output_dir, resume)
    from smallm_hf.runs import train_run

    return train_run(run, CommandOptions(folder, resume))


def score(
    model: "str | Path | Loaded",
    texts: str | Path | Iterable[str],
    *,
    top_k: Sequence[int] = (1, 3),
    text_column: str = "text",
    **rules: Any,
) -> dict[str, Any]:
    """Scores a causal, seq2seq or masked model on texts.

    Args:
        model: a folder, a Hub id, or what `load` returns.
        texts: the texts themselves; or, as one string or path, what `score.py --data` takes: a file, a folder, a Hub
            data set, or a run: its validation text.
        top_k: how many first choices count as right, for each accuracy.
        text_column: column that holds the text, where a file has columns.
        rules: `protocol` (documents, sliding or packed), `stride`, `within_documents`, `context_length`, `batch_size`.

    Returns:
        The figures of `score.py --output`: `loss`, `perplexity`, `bits_per_byte`, `top1_accuracy`, `tokens`, `bytes`
        and others, with the protocol they hold for.
    """
    Rules(**rules)
    require_models([] if isinstance(model, tuple) else [str(model)])
    from smallm_hf.evaluation.scoring import score_documents
    from smallm_hf.evaluation.texts import require_texts
    from smallm_hf.pretrained import load_scorable

    if isinstance(texts, str | Path):
        texts = require_texts(str(texts)).read(text_column=text_column)
    loaded, tokenizer = model if isinstance(model, tuple) else load_scorable(str(model))
    return score_documents(loaded, tokenizer, texts, top_k=top_k, **rules)


def score_minimal_pairs(
    model: "str | Path | Loaded", source: str | Path, *, max_pairs: int | None = None, **reading: Any
) -> dict[str, Any]:
    """How often a causal model finds the acceptable one of two sentences more probable, as BLiMP asks.

    Args:
        model: a folder, a Hub id, or what `load` returns, which is best asked for in float32.
        source: what `score.py --minimal_pairs` takes: BLiMP.zip, a folder or a .jsonl file.
        max_pairs: the first so many of each paradigm; None takes all.
        reading: `context_length`, `batch_size`, `sentence_prefix`.

    Returns:
        The figures of `score.py --output`: `accuracy`, the mean over the paradigms, `paradigms`, `fields`, `ties`.
    """
    require_models([] if isinstance(model, tuple) else [str(model)])
    paradigms = read_paradigms(str(source), max_pairs)
    from smallm_hf.evaluation.minimal_pairs import judge_pairs

    loaded = model if isinstance(model, tuple) else load(model, dtype="float32")
    return judge_pairs(*loaded, paradigms, **reading).figures


def generate(
    model: "str | Path | Loaded", prompt: str | Sequence[str], *, stop: str | Sequence[str] = (), **sampling: Any
) -> str | list[str]:
    """Continues a prompt, or several in one batch.

    Args:
        model: a folder or Hub id of a causal model, or what `load` returns.
        prompt: the beginning of a text; "" lets the model begin by itself.
        stop: a string that ends a text before it, or several.
        sampling: `max_new_tokens`, `min_new_tokens`, `temperature`, `top_k`, `top_p`, `repetition_penalty`, `seed`.

    Returns:
        What the model writes after the prompt; for a list of prompts a list. The same arguments give the same text as
        scripts/generate.py, but for rounding: see `smallm_hf.generation.engine.Engine`.
    """
    Sampling(**sampling)
    require_models([] if isinstance(model, tuple) else [str(model)])
    from smallm_hf.generation.engine import Engine
    from smallm_hf.generation.request import Request
    from smallm_hf.generation.steps import lay_out_for_decoding

    if not isinstance(model, tuple):
        loaded, tokenizer = load(model)
        model = lay_out_for_decoding(loaded), tokenizer
    prompts = [prompt] if isinstance(prompt, str) else prompt
    ends = (stop,) if isinstance(stop, str) else tuple(stop)
    written = Engine(*model).write([Request(one, stop=ends, **sampling) for one in prompts])
    return written[0].text if isinstance(prompt, str) else [one.text for one in written]


def load(
    model: str | Path, device: str | None = None, dtype: Dtype = "auto", trust_remote_code: bool = False
) -> "Loaded":
    """Loads a causal model and its tokenizer, to be used and not trained.

    Args:
        model: a folder that `save_pretrained` wrote, such as `runs/quickstart/best`, or a Hub id.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; by default the accelerator where there is one.
        dtype: `auto` keeps the dtype of the weights where the device multiplies it well, and else takes float32.
        trust_remote_code: whether to run the modeling code that comes with the model.
    """
    Loading(dtype, device, trust_remote_code)
    require_models([str(model)])
    from smallm_hf.pretrained import load_causal_lm

    return load_causal_lm(str(model), device=device, dtype=dtype, trust_remote_code=trust_remote_code)
