import dataclasses
import functools
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.packed import PackedWindows
from smallm_hf.data.batches.windows import WindowOrder
from smallm_hf.training import watch
from smallm_hf.training.checkpoints import LoopState
from smallm_hf.training.clock import Clock
from smallm_hf.training.configuration import TrainingConfig, micro_steps_per_process, plan_steps, row_length
from smallm_hf.training.loop import TrainingLoop
from smallm_hf.training.objectives import LanguageModelling
from smallm_hf.training.update import Updater
from smallm_hf.training.validation import ValidationSet

EOS = 0
TOKENS = np.random.default_rng(0).integers(1, 40, 500).astype(np.uint16)


@pytest.fixture
def accelerator(fresh_accelerator) -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")


def tiny_model(**fields) -> SmaLLMForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return SmaLLMForCausalLM(SmaLLMConfig(**{**shape, "max_position_embeddings": 8, **fields}))


@pytest.fixture
def make_loop(accelerator, tmp_path):
    """A loop over random tokens, stepped by hand."""

    def make(model=None, tokens=TOKENS, state=None, **training) -> TrainingLoop:
        training = TrainingConfig(**{"max_steps": 9, "context_length": 8, "compile": False, **training})
        state = state or LoopState()
        batches = PackedWindows(tokens, WindowOrder(len(tokens), training.context_length, training.seed))
        objective = LanguageModelling.of_run(model or tiny_model(), training, accelerator)
        updater = Updater.build(objective, batches, training, accelerator, state, print)
        if training.compile:
            updater.warm_up()
        return TrainingLoop(updater, objective, None, None, state, flops_per_token=1.0)

    return make


def loss_of(loop: TrainingLoop) -> float:
    loop.advance(0.5)
    loop.watch.read(loop.state)
    loop.watch.begin_record()
    return loop.state.nats_since_log


def plain_steps(loop: TrainingLoop, rate: float = 0.5, steps: int = 2) -> list[float]:
    """Losses of some steps of gradient descent, which shows gradients as they are."""
    descent = torch.optim.SGD(loop.objective.model.parameters(), lr=rate, fused=True)
    descent.param_groups[0]["initial_lr"] = rate
    loop.updater.optimizer = loop.accelerator.prepare(descent)
    return [loss_of(loop) for _ in range(steps)]


def test_the_objective_knows_how_much_of_the_run_is_done(make_loop):
    loop = make_loop()
    for progress in (0.0, 0.4):
        loop.advance(progress)
        assert loop.objective.progress == progress


def test_accumulation_gives_the_update_of_one_large_batch(make_loop):
    whole = make_loop(batch_size=4, accumulation_steps=1, max_gradient_norm=0)
    shared = make_loop(batch_size=1, accumulation_steps=4, max_gradient_norm=0)
    assert plain_steps(whole) == pytest.approx(plain_steps(shared), rel=1e-6)
    for name, expected in whole.objective.model.state_dict().items():
        torch.testing.assert_close(shared.objective.model.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_the_loss_of_an_update_is_the_mean_over_its_targets(make_loop):
    losses = plain_steps(make_loop(batch_size=3, accumulation_steps=2), steps=1)
    starts = WindowOrder(len(TOKENS), 8, seed=42).starts(0, 6)
    windows = torch.from_numpy(np.stack([TOKENS[start : start + 9] for start in starts]).astype(np.int64))
    logits = tiny_model()(input_ids=windows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert losses[0] == pytest.approx(expected.item(), rel=1e-6)


def test_an_update_is_divided_by_the_targets_that_count_in_all_of_its_micro_steps(make_loop):
    mask = np.random.default_rng(1).random(len(TOKENS)) < 0.3  # not as many in one micro-step as in another
    losses = []
    for size, steps in ((6, 1), (2, 3)):
        loop = make_loop(batch_size=size, accumulation_steps=steps)
        loop.batches.mask = mask
        batch = loop.batches.at(0, 6)
        logits = tiny_model()(**batch.inputs).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        assert 0 < batch.counted < 24 and len({loop.batches.counted(first, 2) for first in (0, 2, 4)}) > 1
        losses += plain_steps(loop, steps=1)
        assert losses[-1] == pytest.approx(expected.item(), rel=1e-5)
        assert loop.state.tokens == batch.counted
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_update_moves_the_counters(make_loop):
    loop = make_loop(batch_size=3, accumulation_steps=2)
    plain_steps(loop, steps=2)
    assert (loop.state.step, loop.state.windows, loop.state.tokens) == (2, 12, 96)


def test_gradients_are_clipped_to_the_norm(make_loop):
    free, clipped = make_loop(max_gradient_norm=0), make_loop(max_gradient_norm=0.01)
    before = {name: tensor.clone() for name, tensor in free.objective.model.state_dict().items()}
    moves = []
    for loop in (free, clipped):
        plain_steps(loop, rate=1.0, steps=1)
        changed = [
            (loop.objective.model.state_dict()[name] - before[name]).norm()
            for name, _ in loop.objective.model.named_parameters()
        ]
        moves.append(torch.stack(changed).norm().item())
    assert moves[1] == pytest.approx(0.01, rel=1e-3)
    assert moves[0] > 0.05


def test_every_position_is_trained_the_last_one_too(make_loop):
    model = tiny_model(preset="classic", dropout=0.0)
    before = model.model.embed_positions.weight.detach().clone()
    plain_steps(make_loop(model), rate=1.0, steps=1)
    moved = (model.model.embed_positions.weight - before).abs().sum(dim=1)
    assert (moved > 0).all()


@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_warming_up_changes_neither_weights_nor_random_state_nor_counters(make_loop, preset):
    loop = make_loop(tiny_model(preset=preset))
    before = {name: tensor.clone() for name, tensor in loop.objective.model.state_dict().items()}
    random_state = torch.get_rng_state()
    loop.updater.warm_up()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (loop.state, loop.updater.batch_size) == (LoopState(), 16)
    assert all(parameter.grad is None for parameter in loop.objective.model.parameters())
    for name, tensor in loop.objective.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_few_steps_on_one_text_lower_its_loss(make_loop, name):
    loop = make_loop(tokens=TOKENS[:20], optimizer=name, learning_rate=1e-2, batch_size=8, weight_decay=0.0)
    losses = [loss_of(loop) for _ in range(30)]
    assert losses[0] == pytest.approx(math.log(40), abs=0.5)
    assert losses[-1] < 0.5 * losses[0]


def test_shorter_rows_hold_the_tokens_of_the_whole_windows(make_loop):
    loop = make_loop(length_warmup=[2], batch_size=3)
    whole, rows = loop.batches.at(0, 3, 8), loop.batches.at(0, 3, 2)
    assert rows.inputs["input_ids"].shape == rows.targets.shape == (12, 2)
    assert torch.equal(rows.inputs["input_ids"].flatten(), whole.inputs["input_ids"].flatten())
    assert torch.equal(rows.targets.flatten(), whole.targets.flatten())


def test_each_length_is_compiled_once_before_the_first_update_and_none_again(make_loop, monkeypatch):
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    loop = make_loop(length_warmup=[2, 4], length_warmup_fraction=0.5, compile=True, batch_size=3, accumulation_steps=2)
    compiled = dict(torch._dynamo.utils.counters["stats"])
    assert compiled["unique_graphs"] == 3
    for progress in (0.0, 0.3, 0.6, 0.9):
        loop.advance(progress)
    assert torch._dynamo.utils.counters["stats"] == compiled
    assert not torch._dynamo.utils.counters["graph_break"]


def test_steps_compiled_for_runs_before_leave_room_for_those_of_the_next(make_loop, monkeypatch):
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        for size in (1, 2):
            loop = make_loop(compile=True, batch_size=size)
            loop.advance(0.0)
            loop.close()


def test_rows_grow_with_the_run_and_end_whole():
    training = TrainingConfig(max_steps=10, context_length=8, length_warmup=[2, 4], length_warmup_fraction=0.5)
    assert [row_length(training, share) for share in (0, 0.2, 0.25, 0.49, 0.5, 1.0)] == [2, 2, 4, 4, 8, 8]
    assert row_length(TrainingConfig(max_steps=10, context_length=8), 0.0) == 8
    assert row_length(dataclasses.replace(training, length_warmup_fraction=0.0), 0.0) == 8


def test_lengths_that_are_not_shorter_than_the_window_are_passed_over():
    training = TrainingConfig(max_steps=10, context_length=8, length_warmup=[4, 8, 12], length_warmup_fraction=0.5)
    assert [row_length(training, share) for share in (0, 0.49, 0.5)] == [4, 4, 8]


@pytest.mark.parametrize("length", [0, 3])
def test_a_length_that_does_not_cut_windows_into_rows_is_refused(length):
    with pytest.raises(UserError, match=rf"length_warmup=\[{length}\] cuts windows of training.context_length=8 into"):
        TrainingConfig(max_steps=1, context_length=8, length_warmup=[length])


def test_an_update_without_a_usable_gradient_leaves_weights_and_is_counted(make_loop):
    loop = make_loop()
    loop.advance(0.5)
    before = {name: tensor.clone() for name, tensor in loop.objective.model.state_dict().items()}
    objective = loop.updater.objective
    loop.updater.objective = lambda **batch: objective(**batch) * math.nan
    loop.updater.objective.parameters = objective.parameters
    loop.advance(0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loop.objective.model.state_dict().items())
    loop.updater.objective = objective
    loop.advance(0.5)
    loop.watch.read(loop.state)
    assert (loop.state.step, loop.state.skipped_steps, loop.state.updates_since_log) == (3, 1, 2)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in loop.objective.model.named_parameters())


def test_an_update_asks_the_device_for_no_number(make_loop, monkeypatch):
    loop = make_loop(skip_spikes=5.0)
    loop.advance(0.5)  # the optimizer makes its state
    for name in ("item", "tolist", "__bool__", "__float__", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    loop.advance(0.5)


def refuse(*arguments, **options):
    raise AssertionError("the host waits for the device")


def test_processes_share_the_accumulation_or_are_refused():
    assert micro_steps_per_process(4, 2) == 2
    with pytest.raises(UserError, match="accumulation_steps=3 is shared by 2 processes and does not divide"):
        micro_steps_per_process(3, 2)


def test_the_first_limit_reached_ends_the_run():
    training = TrainingConfig(max_steps=100, epochs=2, batch_size=4, accumulation_steps=2)
    assert plan_steps(training, windows_per_epoch=40) == 10
    assert plan_steps(training, windows_per_epoch=4000) == 100
    assert plan_steps(TrainingConfig(max_seconds=3), windows_per_epoch=40) is None


def test_the_clock_stands_still_where_it_is_told(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("smallm_hf.training.clock.time.perf_counter", lambda: now.seconds)
    clock = Clock(5.0)
    now.seconds += 2
    with clock.stopped():
        now.seconds += 50
        assert clock.seconds == 7.0
    now.seconds += 1
    assert clock.seconds == 8.0


def test_the_clock_goes_on_after_an_error_where_it_stood_still(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("smallm_hf.training.clock.time.perf_counter", lambda: now.seconds)
    clock = Clock(5.0)
    with pytest.raises(OSError), clock.stopped():
        now.seconds += 50
        raise OSError
    now.seconds += 3
    assert clock.seconds == 8.0


def validation_files(*documents: tuple[int, int]) -> SimpleNamespace:
    """Token files whose validation documents have so many tokens, eos included, and bytes."""
    tokens = np.concatenate([np.append(np.ones(size - 1, np.uint16), EOS) for size, _ in documents])
    sizes = np.array(documents)
    facts = {"document_sizes": lambda side: sizes, "hidden": lambda side: None}
    return SimpleNamespace(validation=tokens, meta=SimpleNamespace(eos_token_id=EOS), **facts)


@pytest.mark.parametrize(
    ("limit", "tokens", "size"),
    [(7, 5, 11), (5, 5, 11), (4, 3, 8), (2, 3, 8), (None, 8, 110), (99, 8, 110)],
    ids=["cut", "just so", "a part", "less than the first", "all", "more than all"],
)
def test_a_validation_set_is_of_whole_documents_and_their_own_bytes(limit, tokens, size):
    files = validation_files((3, 7), (2, 2), (3, 98))  # an eos is one byte more
    chosen = ValidationSet.choose(files, limit, 8)
    assert (chosen.tokens.tolist(), chosen.bytes) == (files.validation[:tokens].tolist(), size)


@pytest.fixture
def scaler(accelerator) -> torch.amp.GradScaler:
    """As on a GPU in float16: losses are scaled, run on the CPU."""
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    return accelerator.scaler


def update_multiplied_by(loop: TrainingLoop, factor: float) -> bool:
    """Whether an update whose loss is so many times what it would be changes any weight."""
    before = {name: tensor.clone() for name, tensor in loop.objective.model.state_dict().items()}
    objective = loop.updater.objective
    loop.updater.objective = lambda **batch: objective(**batch) * factor
    loop.updater.objective.parameters = objective.parameters
    loop.advance(0.5)
    loop.updater.objective = objective
    loop.watch.read(loop.state)
    return not all(torch.equal(tensor, before[name]) for name, tensor in loop.objective.model.state_dict().items())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_infinite_fp16_gradient_skips_the_update_and_halves_the_scale(make_loop, scaler, name):
    loop = make_loop(optimizer=name)
    assert not update_multiplied_by(loop, math.inf)
    assert (scaler.get_scale(), loop.state.skipped_steps) == (8.0, 1)
    assert update_multiplied_by(loop, 1.0)
    assert (scaler.get_scale(), loop.state.skipped_steps) == (8.0, 1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_spike_under_fp16_that_is_counted_as_left_out_is_left_out(make_loop, scaler, monkeypatch, name):
    monkeypatch.setattr(watch, "SPIKE_HISTORY", 8)
    loop = make_loop(optimizer=name, skip_spikes=6.0)
    for _ in range(6):
        assert update_multiplied_by(loop, 1.0)
    assert not update_multiplied_by(loop, 50.0)
    assert (scaler.get_scale(), loop.state.skipped_steps) == (16.0, 1)  # it fits into float16
    assert update_multiplied_by(loop, 1.0)


@pytest.mark.parametrize("compiles", [False, True], ids=["in an update", "while compiling"])
def test_nothing_of_a_pass_that_did_not_fit_is_held_when_room_is_made(make_loop, monkeypatch, compiles):
    held, made = [], []

    def forward(self, input_ids, targets):
        hidden_states = torch.zeros(3, requires_grad=True) * len(input_ids)
        held.append(weakref.ref(hidden_states))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return sum(parameter.sum() for parameter in self.parameters()) + hidden_states.sum()

    def looked_at(updater, *arguments):
        made.append([tensor() for tensor in held])
        make_room(updater, *arguments)

    make_room = Updater.make_room
    monkeypatch.setattr(Updater, "make_room", looked_at)
    monkeypatch.setattr("smallm_hf.training.objectives.LanguageModelling.forward", forward)
    loop = make_loop(batch_size=8)
    if compiles:
        loop.updater.warm_up()
    else:
        loop.advance(0.5)
    assert made == [[None], [None, None]]
    assert loop.updater.batch_size == 2


def test_another_number_of_processes_loses_no_window_of_a_halved_micro_step(make_loop, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "reduce", lambda self, tensor, how: tensor)
    monkeypatch.setattr(Accelerator, "backward", lambda self, loss: None)
    read = []
    for rank in (0, 1):
        monkeypatch.setattr(Accelerator, "process_index", rank)
        # One process had 9 windows in each of 4 micro-steps, of which memory held 4.
        loop = make_loop(state=LoopState(batch_size=4), batch_size=9, accumulation_steps=4)
        at = loop.batches.at
        loop.batches.at = lambda first, count, length, at=at: (
            read.extend(range(first, first + count)) or at(first, count, length)
        )
        loop.updater.gradients(0, 36 * 8, 8)
    assert sorted(read) == list(range(36))
