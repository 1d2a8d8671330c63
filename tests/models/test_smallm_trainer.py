"""The whole life of our class in `transformers.Trainer`: train, evaluate, save, resume, the best model at the end."""

import pytest
import torch
from datasets import Dataset
from smallm_kinds import make_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from smallm_hf import SmaLLMForCausalLM

STEPS = 6


@pytest.fixture(scope="module")
def texts() -> Dataset:
    """Rows of tokens that can be learned: counting upwards from anywhere."""
    first = torch.randint(3, 40, (16, 1), generator=torch.Generator().manual_seed(1))
    rows = (first + torch.arange(12)).tolist()
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def trainer(kind: str, folder, texts: Dataset) -> Trainer:
    half = STEPS // 2
    every_half = {"save_strategy": "steps", "save_steps": half, "eval_strategy": "steps", "eval_steps": half}
    arguments = TrainingArguments(
        **{"output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 0.01},
        **{"use_cpu": True, "report_to": [], "logging_steps": 1, "disable_tqdm": True, "lr_scheduler_type": "constant"},
        **{"load_best_model_at_end": True, **every_half},
    )
    model = make_model(kind, dropout=0.0).train()
    return Trainer(model, arguments, train_dataset=texts, eval_dataset=texts.select(range(8)))


def losses(trained: Trainer) -> list[float]:
    return [record["loss"] for record in trained.state.log_history if "loss" in record]


@pytest.mark.parametrize("kind", ["modern", "classic", "classic-rms"])
def test_a_resumed_training_goes_on_as_if_it_had_not_stopped_and_keeps_the_best_model(kind, texts, tmp_path):
    whole = trainer(kind, tmp_path / "whole", texts)
    whole.train()
    resumed = trainer(kind, tmp_path / "resumed", texts)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{STEPS // 2}"))
    assert losses(resumed)[-STEPS // 2 :] == pytest.approx(losses(whole)[-STEPS // 2 :], rel=1e-5)
    assert losses(whole)[-1] < losses(whole)[0] - 0.05

    evaluated = [record["eval_loss"] for record in whole.state.log_history if "eval_loss" in record]
    assert whole.evaluate()["eval_loss"] == pytest.approx(min(evaluated), rel=1e-5)
    predicted = whole.predict(texts.select(range(2)))
    assert predicted.predictions.shape == (2, 12, 64)

    whole.save_model(tmp_path / "saved")
    batch = torch.tensor(texts[:4]["input_ids"])
    expected = whole.model.eval()(batch).logits
    for model_class in (SmaLLMForCausalLM, AutoModelForCausalLM):
        loaded = model_class.from_pretrained(tmp_path / "saved").eval()
        assert (loaded(batch).logits - expected).abs().max() < 1e-5
