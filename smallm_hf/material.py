"""What a run trains on and is validated on, by the kind of its model: the one place that a new kind is added to."""

from collections.abc import Callable
from typing import Protocol

from accelerate import Accelerator
from transformers import PreTrainedConfig, PreTrainedModel

from smallm_hf.config import RunConfig
from smallm_hf.data.batches.base import Batches
from smallm_hf.data.batches.packed import PackedWindows, refuse_mixing
from smallm_hf.data.batches.windows import WindowOrder
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.generation.request import prompt_ids
from smallm_hf.inspection import evaluation_mode, refuse_lookahead
from smallm_hf.tokenizing.loading import lowers
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.objectives import LanguageModelling, Objective
from smallm_hf.training.validation import ValidationSet


class Material(Protocol):
    """The examples of a run, and what is to be made of them.

    Attributes:
        files: hold the examples.
        examples_per_epoch: counted as `TrainingConfig.batch_size` counts them.
        protocol: how its validations are scored, as `results.json` says it.
    """

    files: TokenFiles
    examples_per_epoch: int
    protocol: str

    def check(self, model: PreTrainedModel) -> None:
        """Refuses a model that cannot be trained on it; what only its weights tell.

        Raises:
            UserError: naming the fix.
        """

    def batches(self, accelerator: Accelerator, say: Callable[[str], None]) -> Batches:
        """The examples in the order in which they train."""

    def objective(
        self, model: PreTrainedModel, training: TrainingConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> Objective:
        """What training minimises and validation scores; `training` has every `auto` decided."""


def material_of(config: RunConfig, architecture: PreTrainedConfig, files: TokenFiles) -> Material:
    """What a model of this architecture is trained on, by a config and its token files.

    Raises:
        UserError: the text is too short, or is no material for such a model.
    """
    return PackedText(config, files)


class PackedText:
    """A text in packed windows, for models that predict each token from those before it; see `Material`."""

    def __init__(self, config: RunConfig, files: TokenFiles):
        self.config, self.files = config, files
        shape = (len(files.train), config.training.context_length, config.training.seed)
        self.order = WindowOrder(*shape, config.batching, files.meta.sources)
        self.examples_per_epoch = self.order.windows_per_epoch
        rule = "attention within documents, " if config.batching.within_documents else ""
        text = ", lower-cased text" if lowers(files.tokenizer) else ""
        self.protocol = f"packed, {rule}windows of {config.training.context_length} tokens, float32{text}"

    def check(self, model: PreTrainedModel) -> None:
        """Refuses a model that looks ahead or mixes documents, and a prompt too long for it."""
        with evaluation_mode(model):
            refuse_lookahead(model)
            if self.config.batching.within_documents:
                refuse_mixing(model, self.files.meta.eos_token_id)
        for prompt in self.config.training.sample_prompts:
            prompt_ids(model, self.files.tokenizer, prompt)

    def batches(self, accelerator: Accelerator, say: Callable[[str], None]) -> PackedWindows:
        """The windows of the training text."""
        files, batching = self.files, self.config.batching
        if batching.curriculum:
            say(f"reading the training text for batching.curriculum={batching.curriculum}")
            self.order.read_difficulty(files.train, files.meta.eos_token_id)
        separator = files.meta.eos_token_id if batching.within_documents else None
        return PackedWindows(files.train, self.order, separator, pin_memory=accelerator.device.type == "cuda")

    def objective(
        self, model: PreTrainedModel, training: TrainingConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> LanguageModelling:
        """The cross entropy of the next tokens."""
        limit, within_documents = training.validation_tokens, self.config.batching.within_documents
        chosen = ValidationSet.choose(self.files, limit, training.context_length, within_documents)
        if limit is not None and len(chosen.tokens) > limit:
            say(
                f"training.validation_tokens={limit} is less than the first document of the validation text, which is "
                f"scored whole ({len(chosen.tokens)} tokens)"
            )
        return LanguageModelling.of_run(model, training, accelerator, chosen)
