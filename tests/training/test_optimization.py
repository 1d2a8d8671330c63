import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from smallm_hf.families import parameter_groups
from smallm_hf.training.optimization import (
    CombinedOptimizer,
    Muon,
    build_optimizer,
    rate_factor,
    set_learning_rate,
)

RATES = {"learning_rate": 1e-3, "muon_learning_rate": 2e-2, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95}
COSINE = {
    "schedule": "cosine",
    "warmup_steps": None,
    "warmup_fraction": 0.1,
    "decay_fraction": 0.5,
    "final_fraction": 0.0,
}


def tiny_llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def names(model: nn.Module, kind: str) -> set[str]:
    chosen = {id(parameter) for parameter in parameter_groups(model)[kind]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.arange(12).reshape(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_embedding_and_untied_head_are_tables_and_block_matrices_are_hidden():
    model = tiny_llama(tied=False)
    assert names(model, "embedding") == {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(parameter_groups(model)["hidden"]) == 2 * 7
    assert all(name.endswith("norm.weight") for name in names(model, "vector"))


def test_a_tied_head_is_one_table():
    assert names(tiny_llama(tied=True), "embedding") == {"model.embed_tokens.weight"}


def test_learned_positions_are_a_table_and_biases_are_vectors():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    assert names(model, "embedding") == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert "transformer.h.0.attn.c_attn.bias" in names(model, "vector")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_belongs_to_exactly_one_group(name):
    model = tiny_llama()
    optimizer = build_optimizer(model, name, **RATES)
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in model.parameters())


def test_vectors_are_never_decayed():
    optimizer = build_optimizer(tiny_llama(), "adamw", **RATES)
    decay = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {1: 0.0, 2: 0.1}


def test_the_combined_optimizer_steps_as_its_parts_do_alone():
    together, apart = tiny_llama(), tiny_llama()
    one_step(together, build_optimizer(together, "muon", **RATES))
    groups = parameter_groups(apart)
    parts = [
        Muon(groups["hidden"], lr=2e-2, weight_decay=0.1),
        torch.optim.AdamW(groups["embedding"], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
        torch.optim.AdamW(groups["vector"], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    ids = torch.arange(12).reshape(2, 6)
    apart(input_ids=ids, labels=ids).loss.backward()
    for part in parts:
        part.step()
    for expected, got in zip(apart.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_matrices_of_one_shape_together_move_as_torch_moves_them_one_by_one():
    shapes = [(8, 8), (12, 8), (8, 12), (4, 8), (8, 8)]
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    begun = [parameter.detach().clone() for parameter in ours]
    one, other = Muon(ours, lr=0.1, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            its.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, its, before in zip(ours, theirs, begun, strict=True):
        moved = (its - before).norm()
        assert (mine - its).norm() < 0.02 * moved  # sums of bfloat16 in another order
        torch.testing.assert_close(one.state[mine]["momentum_buffer"], other.state[its]["momentum_buffer"])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_update_that_is_left_out_changes_nothing_and_the_next_goes_on(name):
    model, plain = tiny_llama(), tiny_llama()
    optimizer, usual = build_optimizer(model, name, **RATES), build_optimizer(plain, name, **RATES)
    one_step(model, optimizer)
    one_step(plain, usual)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.found_inf = torch.tensor(0.0)
    one_step(model, optimizer)
    one_step(plain, usual)
    for expected, got in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_restored_optimizer_continues_as_the_first_would_have_and_obeys_new_rates(tmp_path):
    model, restored = tiny_llama(), tiny_llama()
    optimizer = build_optimizer(model, "muon", **RATES)
    one_step(model, optimizer)
    restored.load_state_dict(model.state_dict())
    second = build_optimizer(restored, "muon", **RATES)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for one, other in ((model, optimizer), (restored, second)):
        set_learning_rate(other, 0.25)
        one_step(one, other)
    for expected, got in zip(model.parameters(), restored.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert isinstance(second, CombinedOptimizer)
    assert [group["lr"] for part in second.optimizers for group in part.param_groups] == [5e-3, 2.5e-4, 2.5e-4]


def test_cosine_rises_linearly_over_its_warm_up_and_ends_at_the_final_fraction():
    factor = lambda step, **more: rate_factor(  # noqa: E731
        step / 100, step, **{**COSINE, "warmup_steps": 10, "final_fraction": 0.1, **more}
    )
    assert [round(factor(step), 6) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert factor(55) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1)


def test_a_warm_up_takes_a_tenth_of_a_run_at_most():
    factor = lambda step: rate_factor(step / 50, step, **{**COSINE, "warmup_steps": 2000})  # noqa: E731
    assert [factor(step) for step in (0, 1, 4)] == pytest.approx([1 / 2000, 0.2, 0.8])
    assert factor(5) == 1.0
    assert factor(50) == pytest.approx(0.0)


def test_wsd_is_flat_until_its_linear_decay():
    factor = lambda progress: rate_factor(progress, 1, **{**COSINE, "schedule": "wsd", "warmup_fraction": 0.02})  # noqa: E731
    assert [factor(p) for p in (0.1, 0.5, 0.75, 1.0)] == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_a_timed_run_never_starts_with_a_rate_of_zero():
    assert rate_factor(0.0, 0, **COSINE) > 0


def test_constant_stays_after_the_warm_up():
    assert rate_factor(0.9, 5, **{**COSINE, "schedule": "constant"}) == 1.0
