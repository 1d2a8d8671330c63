"""Training split by FSDP2: each process holds its share of weights, gradients and optimizer state.

Rajbhandari et al. 2020, "ZeRO"; Zhao et al. 2023, "PyTorch FSDP". Accelerate splits the model; here is what the loop
and its checkpoints need beside that. A model that is not split is handed on as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from smallm_hf.base.errors import DiskFull, is_disk_full, one_line
from smallm_hf.pretrained import fresh_model
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.objectives import Objective, compiled
from smallm_hf.training.optimization import parts_of, shared_out, whole_tensor

# The folder of a checkpoint that holds the optimizer's state, a safetensors file from each process.
SHARDS = "optimizer"


def sharding_plugin() -> FullyShardedDataParallelPlugin:
    """How Accelerate splits a model: as its launcher was configured, but for two things.

    Precision is autocast's, as in every other run: weights travel and gradients are summed in float32. And every
    process reads all weights, which transformers would otherwise leave empty on all but the first.
    """
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, mixed_precision_policy=MixedPrecisionPolicy(), cpu_ram_efficient_loading=False
    )


def prepare_step(
    accelerator: Accelerator, objective: Objective, optimizer: torch.optim.Optimizer, training: TrainingConfig
) -> tuple[Objective, torch.optim.Optimizer]:
    """The two as Accelerate prepares them, and where it splits a model with what it leaves out: autocast, compiling.

    A model that is split is compiled block by block, inside of what gathers a block's weights and lets go of them.
    """
    objective, optimizer = accelerator.prepare(objective, optimizer)
    if accelerator.is_fsdp2:
        objective.forward = accelerator.autocast()(objective.forward)
        for block in objective.modules() if training.compile else ():
            if isinstance(block, FSDPModule) and block is not objective:
                block.forward = compiled(block.forward, objective.model)
    return objective, optimizer


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether this process holds only a share of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def whole(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model with all its weights: itself or, where it is split, a copy that is let go of after the block.

    Every process must enter, and holds the copy: 4 bytes a parameter.
    """
    if not is_sharded(model):
        yield model
        return
    copy = fresh_model(model.config, "meta")
    weights = {name: whole_tensor(parameter).detach() for name, parameter in model.named_parameters()}
    copy.load_state_dict(weights, strict=False, assign=True)
    copy.tie_weights()
    for name, buffer in model.named_buffers():  # also those that no state dictionary holds
        owner, _, own_name = name.rpartition(".")
        setattr(copy.get_submodule(owner), own_name, buffer)
    copy.generation_config = model.generation_config
    yield copy


def save_shards(folder: Path | None, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Writes the optimizer's state into a folder that the main process names, each process its share.

    Raises:
        DiskFull: no space was left on one of them; on every process.
    """
    (folder,) = broadcast_object_list([folder])
    with _plain_errors(folder):
        writer = distributed_checkpoint.HuggingFaceStorageWriter(str(folder / SHARDS), save_distributed=True)
        distributed_checkpoint.save(_states(model, optimizer), storage_writer=writer)


def load_shards(checkpoint: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Restores what `save_shards` wrote, however many processes it was and is split among."""
    with _plain_errors(checkpoint):
        reader = distributed_checkpoint.HuggingFaceStorageReader(str(checkpoint / SHARDS))
        distributed_checkpoint.load(_states(model, optimizer), storage_reader=reader)  # in place


def share_out_states(optimizer: torch.optim.Optimizer) -> None:
    """Splits an optimizer's state as its parameters are, after each process has loaded all of it."""
    for part in parts_of(optimizer):
        for parameter, state in part.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = shared_out(value, parameter)


def _states(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of an optimizer's state themselves, by the name of their parameter; made where there are none yet."""
    return get_optimizer_state_dict(model, parts_of(optimizer))["state"]


@contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    """Raises on every process what one of them met."""
    try:
        yield
    except CheckpointException as error:
        met, _ = next(iter(error.failures.values()))
        if is_disk_full(met):
            raise DiskFull(f"no space left to write {folder} ({one_line(met)}); free some and run again") from error
        raise met from error
