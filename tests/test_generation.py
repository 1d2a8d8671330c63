"""Generation: exact continuations, also beyond the context, that leave no trace behind."""

import copy
import functools

import pytest
import torch
import torch._dynamo.config as dynamo
from torch._inductor.exc import InductorError
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
)

from smallm_hf import generation
from smallm_hf.base.errors import UserError
from smallm_hf.generation import decode, decodes_directly, lay_out_for_decoding, sample, seed_of, stream
from smallm_hf.pretrained import load_causal_lm

PROMPT = "Once upon a time there was a pumpkin."


@pytest.fixture(scope="module")
def tokenizer(gpt2_folder):
    return AutoTokenizer.from_pretrained(gpt2_folder)


@pytest.fixture(scope="module")
def model():
    """Random, with learned positions and a context shorter than the texts it shall write."""
    torch.manual_seed(0)
    config = GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5)
    return GPT2LMHeadModel(config).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def roomy():
    """Random, with room for all tests."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=50257, max_position_embeddings=256, initializer_range=0.5, **sizes)
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def test_one_seed_gives_one_text_and_another_seed_another(roomy, tokenizer):
    texts = [sample(roomy, tokenizer, [PROMPT], max_new_tokens=8, seed=seed)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_streams_pieces_are_the_sample(roomy, tokenizer):
    pieces = []
    stream(roomy, tokenizer, PROMPT, pieces.append, max_new_tokens=20, seed=3)
    assert len(pieces) > 1
    assert ["".join(pieces)] == sample(roomy, tokenizer, [PROMPT], max_new_tokens=20, seed=3)


def test_a_seed_follows_from_its_parts_on_every_machine():
    assert seed_of(42, 6, "the cat") == 1371526393
    assert len({seed_of(*parts) for parts in [(1, 23), (12, 3), (1, "23"), ("1", 23), (1, 23, ""), (123,)]}) == 6
    assert 0 <= seed_of("\udc80") < 2**32


def test_samples_are_those_of_consecutive_seeds_whatever_stands_beside_them(roomy, tokenizer):
    both = sample(roomy, tokenizer, ["a", "b"], num_samples=2, max_new_tokens=5, seed=7)
    alone = [sample(roomy, tokenizer, [prompt], max_new_tokens=5, seed=seed)[0] for prompt in "ab" for seed in (7, 8)]
    assert both == alone


def test_each_token_is_heard_however_long_its_word(roomy, tokenizer):
    shouting = copy.deepcopy(roomy)
    shouting.lm_head.weight.zero_()  # the most probable token is always the first, which is "!"
    pieces, heard = [], []
    settings = {"max_new_tokens": 9, "temperature": 0.0, "heard": lambda: heard.append("".join(pieces))}
    stream(shouting, tokenizer, "Oh", pieces.append, **settings)
    assert pieces == ["!" * 9] and heard == [""] * 9


def test_temperature_0_takes_the_most_probable_tokens(roomy, tokenizer):
    ids = [tokenizer.eos_token_id, *tokenizer(PROMPT)["input_ids"]]
    start = len(ids)
    for _ in range(6):
        ids.append(roomy(torch.tensor([ids])).logits[0, -1].argmax().item())
    (text,) = sample(roomy, tokenizer, [PROMPT], max_new_tokens=6, temperature=0.0)
    assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)


SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.3, "min_new_tokens": 20},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_loop_writes_what_generates_own_would(roomy, tokenizer, settings, monkeypatch):
    assert decodes_directly(roomy)
    ours = sample(roomy, tokenizer, [PROMPT], max_new_tokens=20, seed=5, **settings)
    monkeypatch.setattr(type(roomy), "_can_compile_fullgraph", False)
    assert not decodes_directly(roomy)
    assert sample(roomy, tokenizer, [PROMPT], max_new_tokens=20, seed=5, **settings) == ours


def test_a_model_whose_state_is_no_cache_of_keys_and_values_is_left_to_generate(tokenizer):
    sizes = {"hidden_size": 16, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "num_hidden_layers": 1}
    model = Mamba2ForCausalLM(Mamba2Config(vocab_size=50257, **sizes)).eval()
    assert not decodes_directly(model)
    assert len(sample(model, tokenizer, [PROMPT], max_new_tokens=3, min_new_tokens=3)) == 1


def test_rows_of_one_batch_are_decoded_as_generate_does(roomy, tokenizer):
    prompts = torch.randint(100, (3, 5), generator=torch.Generator().manual_seed(0))
    settings = GenerationConfig(max_new_tokens=9, min_new_tokens=9, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    expected = roomy.generate(prompts, generation_config=settings)
    loop = functools.partial(decode, compile=False)
    assert torch.equal(roomy.generate(prompts, generation_config=settings, custom_generate=loop), expected)


def test_a_compiled_step_writes_the_same_texts_and_is_compiled_once(model, tokenizer):
    settings = {"max_new_tokens": 20, "min_new_tokens": 20, "temperature": 0.0}  # beyond the context of 16
    prompts = ["One", "One fish,", "One fish, two fish."]
    plain = sample(model, tokenizer, prompts, **settings)
    first = sample(model, tokenizer, prompts[:1], compile=True, **settings)
    with torch.compiler.set_stance("fail_on_recompile"):
        others = [sample(model, tokenizer, [prompt], compile=True, **settings)[0] for prompt in prompts[1:]]
    assert [*first, *others] == plain
    with dynamo.patch(recompile_limit=1):
        shorter = sample(model, tokenizer, prompts[:1], compile=True, max_new_tokens=2, temperature=0.0)
    assert plain[0].startswith(*shorter)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_laid_out_for_decoding_are_the_same_and_write_the_same(tokenizer, tied):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=50257, initializer_range=0.5, tie_word_embeddings=tied, **sizes)
    model = LlamaForCausalLM(config).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = sample(model, tokenizer, [PROMPT], max_new_tokens=20, temperature=0.0)
    assert lay_out_for_decoding(model) is model
    assert model.model.layers[0].mlp.up_proj.weight.stride() == (1, 24)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert sample(model, tokenizer, [PROMPT], max_new_tokens=20, temperature=0.0) == plain
    half = lay_out_for_decoding(LlamaForCausalLM(config).bfloat16())  # other kernels, which it would not help
    assert half.lm_head.weight.is_contiguous()


def test_top_k_1_is_greedy_at_any_temperature(roomy, tokenizer):
    greedy = sample(roomy, tokenizer, [PROMPT], max_new_tokens=6, temperature=0.0)
    assert sample(roomy, tokenizer, [PROMPT], max_new_tokens=6, temperature=2.0, top_k=1) == greedy
    assert sample(roomy, tokenizer, [PROMPT], max_new_tokens=6, temperature=2.0, top_p=1e-6) == greedy


def test_a_text_longer_than_the_context_goes_on_from_the_last_half_of_it(model, tokenizer):
    ids = [tokenizer.eos_token_id, *tokenizer(PROMPT)["input_ids"]]
    start, window = len(ids), list(ids)
    for _ in range(40):
        if len(window) == 16:
            window = window[-8:]
        window.append(model(torch.tensor([window])).logits[0, -1].argmax().item())
        ids.append(window[-1])
    (text,) = sample(model, tokenizer, [PROMPT], max_new_tokens=40, temperature=0.0)
    assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_the_number_of_new_tokens_is_the_one_asked_for(model, tokenizer, settings, monkeypatch):
    written = []
    generate = model.generate

    def counting(window, **options):
        output = generate(window, **options)
        written.append(output.shape[1] - window.shape[1])
        return output

    monkeypatch.setattr(model, "generate", counting)
    sample(model, tokenizer, [PROMPT], max_new_tokens=37, min_new_tokens=37, **settings)
    assert sum(written) == 37
    assert len(written) > 3


def peaked(token_id: int) -> GPT2LMHeadModel:
    """A model that wants nothing but one token."""
    model = GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=4, n_layer=1, n_head=1, tie_word_embeddings=False))
    model.requires_grad_(False)
    model.transformer.ln_f.weight.zero_()
    model.transformer.ln_f.bias.fill_(1.0)
    model.lm_head.weight.zero_()
    model.lm_head.weight[token_id] = 10.0
    return model


def test_a_text_ends_at_eos_which_is_not_shown(tokenizer):
    assert sample(peaked(tokenizer.eos_token_id), tokenizer, ["a"], max_new_tokens=40) == [""]


def test_eos_waits_for_min_new_tokens_also_across_windows(tokenizer):
    model = peaked(tokenizer.eos_token_id)
    (text,) = sample(model, tokenizer, ["a"], max_new_tokens=60, min_new_tokens=40, temperature=0.0)
    assert text == tokenizer.decode([0] * 40)  # all others are equal, the lowest id comes first


def test_a_letter_of_several_tokens_arrives_whole(roomy, tokenizer, monkeypatch):
    new = torch.tensor(tokenizer("☃ ☃")["input_ids"])
    assert len(new) > len("☃ ☃")

    def scripted(window, custom_generate, **options):
        for tokens in new[:, None]:
            custom_generate.keywords["put"](tokens)
        return torch.cat([window, new[None]], dim=1)

    monkeypatch.setattr(roomy, "generate", scripted)
    pieces = []
    stream(roomy, tokenizer, "a ", pieces.append, max_new_tokens=len(new))
    assert pieces == ["☃ ", "☃"]


def test_the_global_random_state_and_the_models_mode_stay_as_they_were(roomy, tokenizer):
    roomy.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample(roomy, tokenizer, [PROMPT], max_new_tokens=4)
    assert torch.equal(torch.rand(3), expected)
    assert roomy.training
    roomy.eval()


def test_it_writes_under_autocast(roomy, tokenizer):
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (sample(roomy, tokenizer, [PROMPT], max_new_tokens=8) for _ in range(2))
    assert first == second


def test_an_empty_prompt_begins_a_document(roomy, tokenizer):
    likeliest = roomy(torch.tensor([[tokenizer.eos_token_id]])).logits[0, -1].argmax()
    assert sample(roomy, tokenizer, [""], max_new_tokens=1, temperature=0.0) == [tokenizer.decode(likeliest)]


def test_special_tokens_written_in_a_prompt_are_ordinary_text(roomy, tokenizer):
    ids = [tokenizer.eos_token_id, *tokenizer("a<|endoftext|>", split_special_tokens=True)["input_ids"]]
    likeliest = roomy(torch.tensor([ids])).logits[0, -1].argmax()
    text = sample(roomy, tokenizer, ["a<|endoftext|>"], max_new_tokens=1, temperature=0.0)
    assert text == [tokenizer.decode(likeliest)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": [PROMPT * 3]}, "the prompt takes 28 tokens and the model's context holds 16"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is out of range; give 1 or more"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens=4 is out of range; give 0 to max_new_tokens=3"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range; give 0 or more"),
        ({"top_k": -1}, "top_k=-1 is out of range"),
        ({"top_p": 0.0}, "top_p=0.0 is out of range; give above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is out of range"),
    ],
)
def test_a_mistake_is_told_in_one_line(model, tokenizer, settings, message):
    with pytest.raises(UserError, match=message):
        sample(model, tokenizer, **{"prompts": [PROMPT], **settings})


def test_a_real_model_continues_without_glued_words_and_writes_what_was_asked_for(shared_data):
    model, tokenizer = load_causal_lm(str(shared_data / "pretrained/stories260K-hf"), device="cpu")
    (text,) = sample(model, tokenizer, [PROMPT], max_new_tokens=200, min_new_tokens=200, temperature=0.0)
    assert text.startswith(" The pumpkin was very")
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) > 150


def test_a_compiler_that_fails_is_one_line_that_says_how_to_write_without(roomy, tokenizer, monkeypatch):
    def fail(*arguments):
        raise InductorError(RuntimeError("No working C++ compiler found"), None)

    monkeypatch.setattr(generation, "_compiled_step", lambda: fail)
    with pytest.raises(UserError, match=r"compiling fails .*No working C\+\+ compiler.*; write with --compile false"):
        sample(roomy, tokenizer, [PROMPT], max_new_tokens=4, compile=True)


def test_half_a_character_in_a_prompt_is_refused(roomy, tokenizer):
    with pytest.raises(UserError, match=r"the prompt 'caf\\udce9' holds half of a character .*; give whole ones"):
        sample(roomy, tokenizer, ["caf\udce9"])
