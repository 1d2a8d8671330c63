"""What a run trains on and is validated on, by the kind of its model: the one place that a new kind is added to."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from accelerate import Accelerator
from transformers import PreTrainedConfig, PreTrainedModel

from smallm_hf.base.errors import UserError
from smallm_hf.config import RunConfig
from smallm_hf.data.batches.base import Batches
from smallm_hf.data.batches.contiguous import ContiguousRows
from smallm_hf.data.batches.documents import DocumentRows
from smallm_hf.data.batches.packed import PackedWindows, refuse_mixing
from smallm_hf.data.batches.pairs import PaddedPairs, PairOrder, TokenPairs
from smallm_hf.data.batches.windows import WindowOrder
from smallm_hf.data.selection.splitting import TRAIN, VALIDATION
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.evaluation.texts import pairs_of
from smallm_hf.evaluation.windows import LONGEST_DEFAULT_CONTEXT
from smallm_hf.generation.request import prompt_ids, source_ids
from smallm_hf.inspection import evaluation_mode, refuse_lookahead
from smallm_hf.tokenizing.loading import lowers
from smallm_hf.training.carried import CarriedLanguageModelling
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.objectives import LanguageModelling, Objective
from smallm_hf.training.validation import ValidationPairs, ValidationSet


class Material(Protocol):
    """The examples of a run, and what is to be made of them.

    Attributes:
        files: hold the examples.
        examples_per_epoch: counted as `TrainingConfig.batch_size` counts them.
        protocol: how its validations are scored, as `results.json` says it.
        sample_prompts: what its samples continue, or answer.
    """

    files: TokenFiles
    examples_per_epoch: int
    protocol: str
    sample_prompts: list[str]

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
    if files.is_pairs:
        return Pairs(config, architecture, files)
    if config.batching.document_rows:
        return Documents(config, files)
    return CarriedText(config, files) if config.batching.carry_state else PackedText(config, files)


def _text(files: TokenFiles) -> str:
    """What is said of a text that its tokenizer changes."""
    return ", lower-cased text" if lowers(files.tokenizer) else ""


class PackedText:
    """A text in packed windows, for models that predict each token from those before it; see `Material`."""

    def __init__(self, config: RunConfig, files: TokenFiles):
        self.config, self.files = config, files
        self.sample_prompts = config.training.sample_prompts
        shape = (len(files.train), config.training.context_length, config.training.seed)
        self.order = WindowOrder(*shape, config.batching, files.meta.sources)
        self.examples_per_epoch = self.order.windows_per_epoch
        rule = "attention within documents, " if config.batching.within_documents else ""
        self.protocol = f"packed, {rule}windows of {config.training.context_length} tokens, float32{_text(files)}"

    def check(self, model: PreTrainedModel) -> None:
        """Refuses a model that looks ahead or mixes documents, and a prompt too long for it."""
        with evaluation_mode(model):
            refuse_lookahead(model)
            if self.config.batching.within_documents:
                refuse_mixing(model, self.files.meta.eos_token_id)
        for prompt in self.sample_prompts:
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
        return LanguageModelling.of_run(model, training, accelerator, self.validation(say))

    def validation(self, say: Callable[[str], None]) -> ValidationSet:
        """What is scored."""
        chosen = ValidationSet.of_run(self.files, asdict(self.config.training), asdict(self.config.batching))
        limit = self.config.training.validation_tokens
        if limit is not None and len(chosen.tokens) > limit:
            say(
                f"training.validation_tokens={limit} is less than the first document of the validation text, which is "
                f"scored whole ({len(chosen.tokens)} tokens)"
            )
        return chosen


class Documents(PackedText):
    """Documents each of which is a row of its own, for models that predict each token from those before it."""

    def __init__(self, config: RunConfig, files: TokenFiles):
        self.config, self.files, training = config, files, config.training
        self.sample_prompts = training.sample_prompts
        self.rows = DocumentRows(files.train, files.document_sizes(TRAIN)[:, 0], training.context_length, training.seed)
        self.examples_per_epoch = self.rows.examples_per_epoch
        self.protocol = (
            f"each document by itself, its end scored, rows of {training.context_length} tokens, float32{_text(files)}"
        )

    def batches(self, accelerator: Accelerator, say: Callable[[str], None]) -> DocumentRows:
        """The rows of the training documents."""
        self.rows.pin_memory = accelerator.device.type == "cuda"
        return self.rows


class CarriedText(PackedText):
    """A text that a recurrent model reads from front to back, row by row; see `Material`.

    It is scored in windows of `LONGEST_DEFAULT_CONTEXT` tokens, with an empty state at the beginning of each, as
    `score.py` takes them by default for a model that was not trained on windows: a carried state reaches some 200
    tokens back (Khandelwal et al. 2018, section 3), and so the figure depends neither on batches nor on processes.
    """

    def __init__(self, config: RunConfig, files: TokenFiles):
        self.config, self.files, training = config, files, config.training
        self.sample_prompts = training.sample_prompts
        self.rows = ContiguousRows(files.train, training.windows_per_step, training.context_length, training.seed)
        self.examples_per_epoch = self.rows.examples_per_epoch
        self.protocol = f"packed, windows of {LONGEST_DEFAULT_CONTEXT} tokens, float32{_text(files)}"

    def batches(self, accelerator: Accelerator, say: Callable[[str], None]) -> ContiguousRows:
        """The rows of the training text."""
        self.rows.pin_memory = accelerator.device.type == "cuda"
        return self.rows

    def objective(
        self, model: PreTrainedModel, training: TrainingConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> CarriedLanguageModelling:
        """The cross entropy of the next tokens, the state carried."""
        validation = self.validation(say)
        return CarriedLanguageModelling.of_run(model, training, accelerator, validation, rows=training.windows_per_step)


class Pairs:
    """Sources and targets, for encoder-decoders; see `Material`."""

    def __init__(self, config: RunConfig, architecture: PreTrainedConfig, files: TokenFiles):
        self.config, self.files = config, files
        self.start, self.pad = architecture.decoder_start_token_id, architecture.pad_token_id
        if self.start is None or self.pad is None:
            raise UserError(
                f"the config of {config.init_from} has decoder_start_token_id={self.start} and pad_token_id="
                f"{self.pad}; set both under model, to what its decoder begins and is padded with"
            )
        self.left_out = []
        self.train, self.validation = self._fitting(TRAIN), self._fitting(VALIDATION)
        training = config.training
        self.order = PairOrder(self.train.lengths, min(training.batch_size, len(self.train)), training.seed)
        self.examples_per_epoch = self.order.pairs_per_epoch
        self.protocol = (
            f"pairs of at most {training.context_length} tokens each, teacher-forced, the target and its end scored, "
            "float32"
        )
        self.sample_prompts = training.sample_prompts
        if self.sample_prompts == TrainingConfig().sample_prompts:
            sources = [self.validation.rows(pair)[0] for pair in range(min(3, len(self.validation)))]
            self.sample_prompts = files.tokenizer.batch_decode(sources, skip_special_tokens=True)

    def _fitting(self, side: str) -> TokenPairs:
        """The pairs of a side that are not too long; what is left out is noted."""
        limit, name = self.config.training.context_length, {TRAIN: "training"}.get(side, side)
        pairs = pairs_of(self.files, side)
        fitting = pairs.fitting(limit)
        if not len(fitting):
            raise UserError(
                f"none of the {len(pairs):,} {name} pairs has at most training.context_length={limit} tokens in source "
                f"and target each, the shortest {pairs.lengths.max(axis=1).min()}; raise it"
            )
        if len(fitting) < len(pairs):
            longest = pairs.lengths.max()
            self.left_out.append(
                f"left out {len(pairs) - len(fitting):,} of {len(pairs):,} {name} pairs, whose source or target has "
                f"more than training.context_length={limit} tokens (up to {longest:,})"
            )
        return fitting

    def check(self, model: PreTrainedModel) -> None:
        """Refuses a model whose decoder looks ahead, and a source of a sample that is too long for it."""
        with evaluation_mode(model):
            refuse_lookahead(model)
        for prompt in self.sample_prompts:
            source_ids(model, self.files.tokenizer, prompt)

    def batches(self, accelerator: Accelerator, say: Callable[[str], None]) -> PaddedPairs:
        """The training pairs, neighbours of like length."""
        for line in self.left_out:
            say(line)
        pin_memory = accelerator.device.type == "cuda"
        return PaddedPairs(self.train, self.order, self.start, self.pad, pin_memory=pin_memory)

    def objective(
        self, model: PreTrainedModel, training: TrainingConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> LanguageModelling:
        """The cross entropy of the targets."""
        validation = ValidationPairs.choose(self.validation, training.validation_tokens, self.start)
        return LanguageModelling.of_run(model, training, accelerator, validation)
