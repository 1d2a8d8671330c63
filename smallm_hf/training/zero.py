"""Training with DeepSpeed's ZeRO, stage 2: processes share gradients and AdamW's state; each has all weights.

Rajbhandari et al. 2020, "ZeRO". DeepSpeed clips and updates in one, which here happens where the loop clips.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, broadcast_object_list
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper, DeepSpeedOptimizerWrapper

from smallm_hf.errors import UserError
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.loss import TrainingLoss

# The folder of a checkpoint that DeepSpeed writes, and what it calls the one state in there.
FOLDER, TAG = "deepspeed", "state"


class _Engine(DeepSpeedEngineWrapper):
    """What Accelerate hands backward passes and clipping to: its own would update in each backward pass."""

    def backward(self, loss: torch.Tensor, **options: Any) -> None:
        self.engine.backward(loss)

    def get_global_grad_norm(self) -> torch.Tensor:
        """Clips and updates; the norm before that, infinite where DeepSpeed has left the update out."""
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm(), device=self.engine.device)


class _Optimizer(DeepSpeedOptimizerWrapper):
    """Has nothing left to do in a step, and forgets the gradients that compiling has made."""

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        self.optimizer.zero_grad()
        self.optimizer.all_grad_tensors.clear()  # the sums so far, of which DeepSpeed lets go in a step alone


def zero_plugin() -> DeepSpeedPlugin:
    """How DeepSpeed trains: in float32, beside which precision is autocast's, and told by the loop when to update."""
    plugin = DeepSpeedPlugin(gradient_accumulation_steps=1, zero_stage=2)
    # The first is asked for, and nothing here reads it.
    plugin.deepspeed_config.update(train_micro_batch_size_per_gpu=1, managed_gradient_accumulation=False)
    return plugin


def check_zero(training: TrainingConfig) -> None:
    """Refuses what DeepSpeed would do otherwise than the recipe says.

    Raises:
        UserError: Muon, spikes to leave out, float16.
    """
    if training.optimizer != "adamw":
        raise UserError(
            f"training.optimizer={training.optimizer} orthogonalises matrices, and DeepSpeed hands it pieces of them; "
            "set it to adamw, or launch with --config_file configs/accelerate/fsdp2.yaml"
        )
    if training.skip_spikes is not None:
        raise UserError(
            f"training.skip_spikes={training.skip_spikes:g} judges an update before it is made, and DeepSpeed makes it "
            "at once; set it to null, or launch with --config_file configs/accelerate/fsdp2.yaml"
        )
    if training.precision == "fp16":
        raise UserError("training.precision=fp16 was not written for DeepSpeed; set it to bf16 or fp32")


def prepare_zero(
    accelerator: Accelerator, step_loss: TrainingLoss, optimizer: torch.optim.Optimizer, training: TrainingConfig
) -> tuple[Any, torch.optim.Optimizer]:
    """The two as DeepSpeed prepares them, such that the loop goes on as it does elsewhere."""
    check_zero(training)
    if training.precision == "bf16":
        step_loss.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(step_loss.forward)
    accelerator.deepspeed_plugin.deepspeed_config["gradient_clipping"] = training.max_gradient_norm
    engine, optimizer = accelerator.prepare(step_loss, optimizer)
    accelerator.deepspeed_engine_wrapped = _Engine(engine)
    return engine, _Optimizer(optimizer.optimizer)


def zero_engine(accelerator: Accelerator) -> Any:
    """DeepSpeed's engine; None where another one trains."""
    return getattr(getattr(accelerator, "deepspeed_engine_wrapped", None), "engine", None)


def save_zero(folder: Path | None, engine: Any) -> None:
    """Writes DeepSpeed's own checkpoint into a folder that the main process names, each process its share."""
    (folder,) = broadcast_object_list([folder])
    engine.save_checkpoint(str(folder / FOLDER), tag=TAG)


def load_zero(checkpoint: Path, accelerator: Accelerator) -> None:
    """Restores what `save_zero` wrote.

    Raises:
        UserError: another engine wrote the checkpoint, or another number of processes.
    """
    shares = len(list((checkpoint / FOLDER / TAG).glob("zero_pp_rank_*")))
    if shares != accelerator.num_processes:
        raise UserError(
            f"{checkpoint} holds the states of {shares} processes of DeepSpeed, which are {accelerator.num_processes} "
            "now and cannot share them anew; resume on as many, or give another --output_dir"
        )
    zero_engine(accelerator).load_checkpoint(str(checkpoint / FOLDER), tag=TAG)
