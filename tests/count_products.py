"""Does everything that multiplies, and prints how many matrix products of 16 bits each took.

A program of its own, because what a CPU can do is decided when torch begins.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from running import train, write_recipe, write_stories
from torch.utils._python_dispatch import TorchDispatchMode

from smallm_hf.benchmarks.generate import compare_decoding
from smallm_hf.comparison.configuration import SideBySide
from smallm_hf.comparison.measuring import measure_model
from smallm_hf.evaluation.model_scores import evaluate_models
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.pretrained import load_causal_lm

PRODUCTS = ("mm", "linear", "dot_product", "conv")  # parts of the names of operations that multiply matrices


class Counting(TorchDispatchMode):
    """Counts matrix products by the bits of what they multiply."""

    def __init__(self):
        super().__init__()
        self.bits = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(part in function.name() for part in PRODUCTS):
            multiplied = [arg.dtype.itemsize for arg in args if isinstance(arg, torch.Tensor)]
            self.bits[8 * min(multiplied)] += 1
        return function(*args, **kwargs or {})


def main(folder: Path) -> None:
    stories, counts = write_stories(folder), {}

    def counted(name: str, work):
        with Counting() as counting:
            result = work()
        counts[name] = [counting.bits[16], counting.bits[32]]
        return result

    words = ["--training.precision", "auto", "--training.max_steps", 2]
    counted("training", lambda: train(write_recipe(folder, stories), folder / "run", *words))
    model, tokenizer = load_causal_lm(str(folder / "run" / "best"))
    stored = str(folder / "stored")
    model.bfloat16().save_pretrained(stored)
    tokenizer.save_pretrained(stored)
    counted("scoring", lambda: evaluate_models([stored], str(stories)))
    counted("writing", lambda: Engine(*load_causal_lm(stored)).write([Request("the cat", max_new_tokens=4)]))
    questions = SideBySide(max_new_tokens=4, num_samples=1, speed_tokens=4, repetitions=1)
    counted("comparing", lambda: measure_model(stored, ["the cat"], str(stories), questions, {}))
    counted("benchmark", lambda: compare_decoding(*load_causal_lm(stored), quick=True))
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
