"""The engine: one request gives one text, alone, beside others, from two threads; it leaves no trace behind."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

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
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from writers import ANSWERERS, WRITERS, engine_of, requests_for

from smallm_hf.base.errors import TooLong, UserError
from smallm_hf.generation import steps
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, seed_of
from smallm_hf.generation.steps import lay_out_for_decoding
from smallm_hf.generation.text import KEPT, WINDOW, GrowingText
from smallm_hf.inspection import evaluation_mode
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


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *prompts: str, **settings) -> list[str]:
    """The texts that one engine writes behind prompts, one after the other."""
    engine = Engine(model, tokenizer, compile=settings.pop("compile", False))
    return [engine.write([Request(prompt, **settings)])[0].text for prompt in prompts]


# --- one request, one text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "smallm", "mamba2", "recurrent", "t5"])
def test_texts_written_by_several_threads_at_once_are_those_written_alone(kind):
    engine, requests = engine_of(kind), requests_for(kind)
    alone = [engine.write([request])[0] for request in requests]
    ready = threading.Barrier(4)

    def write_when_all_are_ready(request: Request):
        ready.wait()
        return engine.write([request])[0]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write_when_all_are_ready, requests)) == alone


@pytest.mark.parametrize("kind", [*WRITERS, *ANSWERERS])
def test_texts_of_one_batch_are_those_written_alone(kind):
    engine, requests = engine_of(kind), requests_for(kind, logprobs=2)
    alone = [engine.write([request])[0] for request in requests]
    assert len({len(one.tokens) for one in alone}) >= 2 and {one.finish_reason for one in alone} <= {"stop", "length"}
    for order in ((2, 0, 3, 1), (1, 1)):
        together = engine.write([requests[number] for number in order])
        for one, number in zip(together, order, strict=True):
            assert (one.text, one.finish_reason) == (alone[number].text, alone[number].finish_reason)
            mine, its = ([token.log_probability for token in text.tokens] for text in (one, alone[number]))
            assert mine == pytest.approx(its, abs=1e-4)


def test_a_text_that_ends_leaves_the_batch(monkeypatch):
    engine, shapes = engine_of("llama"), []
    step = steps.one_step
    monkeypatch.setattr(
        steps, "one_step", lambda model, ids, *a, **b: shapes.append(ids.shape) or step(model, ids, *a, **b)
    )
    engine.write([Request("a", max_new_tokens=most, min_new_tokens=most) for most in (1, 3, 3, 4)])
    assert shapes == [(4, 2), (3, 1), (3, 1), (1, 1)]


def test_a_recurrent_model_reads_texts_of_any_length_side_by_side_and_then_one_token_of_each_at_a_time():
    engine, shapes = engine_of("recurrent"), []
    engine.model.model.embed_tokens.register_forward_pre_hook(lambda module, given: shapes.append(given[0].shape))
    engine.write([Request(text, max_new_tokens=3, min_new_tokens=3) for text in ("a", "abba", "jig")])
    assert shapes == [(3, 5), (3, 1), (3, 1)]


# What the version before the engine wrote with the global generator.
RECORDED = {
    "smallm": [
        "e\nci.e\nci.e\nci.e\nci.e\nci.e\nci.e\nci.e\nci.e\nci.e\nci.",
        "e e e\ncci.,.e\nci e\nbe\ncibje\nci.e\ne\ncg.e\ncf",
        "\n,.aebj dc,.e\nbe d\nbeaehbje\ncibjd\n,.eaebbe he\nbdcf",
    ],
    "llama": [",cgd\ng", ",gd\nb\n\nb,\n,hg", "b,dc\nghcd.hh\nbb,cddjggdhhcgccc"],
    "gpt2": [
        "gehhe cceeie\naae\n\n\n\n\ndhgie\nb\naeaae\ne\n\nbbe\ne\n\n\nae\n\n",
        "cdee\nbeaiiid.\naeae\n,\ngie\naeccceiaj\ncce\nce\ne\n\nebdh\n",
        "\naea\nb.ciiid.\niiae\nbeaiebaecccei\ne,cgaebbe iaebb\ne",
    ],
    "mamba2": [
        " g g g g g g g g g g g g g g g g g g g g g g g g g",
        " geehbe\ni.g g g cedjdjdidcecjhe\n\ng cg g ced ceidjd",
        " fd cbc i.hh \ni.ge\n,gaihh\nghcje\n\ng gehehdffi eidjd",
    ],
}
DRAWS = [
    {"temperature": 0.0},
    {},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.3, "min_new_tokens": 20},
]


@pytest.mark.parametrize("kind", RECORDED)
def test_a_seed_gives_the_text_that_it_always_gave(kind):
    requests = [Request("abba", max_new_tokens=50, seed=5, **draw) for draw in DRAWS]
    assert [engine_of(kind).write([request])[0].text for request in requests] == RECORDED[kind]


def test_another_seed_gives_another_text(roomy, tokenizer):
    assert write(roomy, tokenizer, PROMPT, max_new_tokens=8, seed=1) != write(
        roomy, tokenizer, PROMPT, max_new_tokens=8, seed=2
    )


def test_a_seed_follows_from_its_parts_on_every_machine():
    assert seed_of(42, 6, "the cat") == 1371526393
    assert len({seed_of(*parts) for parts in [(1, 23), (12, 3), (1, "23"), ("1", 23), (1, 23, ""), (123,)]}) == 6
    assert 0 <= seed_of("\udc80") < 2**32


def test_temperature_0_takes_the_most_probable_tokens(roomy, tokenizer):
    ids = [tokenizer.eos_token_id, *tokenizer(PROMPT)["input_ids"]]
    start = len(ids)
    for _ in range(6):
        ids.append(roomy(torch.tensor([ids])).logits[0, -1].argmax().item())
    (text,) = write(roomy, tokenizer, PROMPT, max_new_tokens=6, temperature=0.0)
    assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("draw", [{"temperature": 0.0}, {"min_p": 0.2}, DRAWS[2] | {"temperature": 1.1}])
@pytest.mark.parametrize("kind", ["llama", "mamba2", "recurrent", "t5", "bart"])
def test_an_engine_writes_what_generate_would(kind, draw):
    engine, asked = engine_of(kind), {"max_new_tokens": 20, **draw}
    ids = engine.tokenizer("abba", return_tensors="pt")["input_ids"]
    config = {"do_sample": True, "temperature": 0.8, "eos_token_id": 0, "pad_token_id": 0, "top_k": 0, **asked}
    if draw == {"temperature": 0.0}:
        config = {"do_sample": False, "eos_token_id": 0, "pad_token_id": 0, "max_new_tokens": 20}
    torch.manual_seed(5)
    expected = engine.model.generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=GenerationConfig(**config)
    )
    given = {"source": ids[0].tolist()} if kind in ANSWERERS else {"prompt": ids[0].tolist()}
    (written,) = engine.write([Request(**given, seed=5, **asked)])
    begin = 1 if kind in ANSWERERS else ids.shape[1]
    assert [token.id for token in written.tokens] == expected[0, begin:].tolist()


def test_a_compiled_step_writes_the_same_texts_and_is_compiled_once(model, tokenizer):
    settings = {"max_new_tokens": 20, "min_new_tokens": 20, "temperature": 0.0}  # beyond the context of 16
    prompts = ["One", "One fish,", "One fish, two fish."]
    plain = write(model, tokenizer, *prompts, **settings)
    first = write(model, tokenizer, prompts[0], compile=True, **settings)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = Engine(model, tokenizer, compile=True)
        others = [text.text for text in compiled.write([Request(prompt, **settings) for prompt in prompts[1:]])]
    assert [*first, *others] == plain
    requests = [Request(prompts[0], **settings), Request(prompts[0], max_new_tokens=2, temperature=0.0)]
    both = compiled.write(requests)  # of one length, so together; the second ends first
    assert [both[0].text, len(both[1].tokens)] == [plain[0], 2] and plain[0].startswith(both[1].text)
    with dynamo.patch(recompile_limit=1):
        shorter = write(model, tokenizer, prompts[0], compile=True, max_new_tokens=2, temperature=0.0)
    assert plain[0].startswith(*shorter)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_laid_out_for_decoding_are_the_same_and_write_the_same(tokenizer, tied):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=50257, initializer_range=0.5, tie_word_embeddings=tied, **sizes)
    model = LlamaForCausalLM(config).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = write(model, tokenizer, PROMPT, max_new_tokens=20, temperature=0.0)
    assert lay_out_for_decoding(model) is model
    assert model.model.layers[0].mlp.up_proj.weight.stride() == (1, 24)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert write(model, tokenizer, PROMPT, max_new_tokens=20, temperature=0.0) == plain
    half = lay_out_for_decoding(LlamaForCausalLM(config).bfloat16())  # other kernels, which it would not help
    assert half.lm_head.weight.is_contiguous()


def test_top_k_1_is_greedy_at_any_temperature(roomy, tokenizer):
    greedy = write(roomy, tokenizer, PROMPT, max_new_tokens=6, temperature=0.0)
    assert write(roomy, tokenizer, PROMPT, max_new_tokens=6, temperature=2.0, top_k=1) == greedy
    assert write(roomy, tokenizer, PROMPT, max_new_tokens=6, temperature=2.0, top_p=1e-6) == greedy


def test_a_text_longer_than_the_context_goes_on_from_the_last_half_of_it(model, tokenizer):
    ids = [tokenizer.eos_token_id, *tokenizer(PROMPT)["input_ids"]]
    start, window = len(ids), list(ids)
    for _ in range(40):
        if len(window) == 16:
            window = window[-8:]
        window.append(model(torch.tensor([window])).logits[0, -1].argmax().item())
        ids.append(window[-1])
    (text,) = write(model, tokenizer, PROMPT, max_new_tokens=40, temperature=0.0)
    assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_the_number_of_new_tokens_is_the_one_asked_for(model, tokenizer, settings):
    asked = Request(PROMPT, max_new_tokens=37, min_new_tokens=37, **settings)
    (written,) = Engine(model, tokenizer).write([asked])
    assert len(written.tokens) == 37 and written.finish_reason == "length"


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
    assert write(peaked(tokenizer.eos_token_id), tokenizer, "a", max_new_tokens=40) == [""]


def test_eos_waits_for_min_new_tokens_also_across_windows(tokenizer):
    model = peaked(tokenizer.eos_token_id)
    (text,) = write(model, tokenizer, "a", max_new_tokens=60, min_new_tokens=40, temperature=0.0)
    assert text == tokenizer.decode([0] * 40)  # all others are equal, the lowest id comes first


# --- pieces of text and their ends -----------------------------------------------------------------------------------


def grow(tokenizer, text: str, prompt: str = "", stop: tuple[str, ...] = ()) -> list[str]:
    """The pieces of a text that is written token by token, as far as it comes."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    growing, pieces = GrowingText(tokenizer.decode, tokenizer(prompt, add_special_tokens=False)["input_ids"], stop), []
    for place, id in enumerate(ids, start=1):
        piece, stopped = growing.add(id, last=place == len(ids))
        pieces.append(piece)
        if stopped:
            break
    return pieces


def test_the_pieces_joined_are_the_text_and_none_is_half_of_a_character(tokenizer):
    text = "One ☃ ☃, 日本 and café. " * 5
    pieces = grow(tokenizer, text, "Once")
    assert len(pieces) > WINDOW > KEPT
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) and "☃" in "".join(pieces[:5])
    assert grow(tokenizer, "☃") == ["", "☃"]


def test_a_text_that_ends_inside_a_character_shows_that(tokenizer):
    growing = GrowingText(tokenizer.decode, [])
    assert growing.add(tokenizer("☃")["input_ids"][0], last=True) == ("\ufffd", False)


def test_no_space_is_lost_between_prompt_and_text(shared_data):
    _, tokenizer = load_causal_lm(str(shared_data / "pretrained/stories260K-hf"), device="cpu")
    ids = tokenizer("Once upon a time there was", add_special_tokens=False)["input_ids"]
    for begin in range(1, len(ids)):
        growing = GrowingText(tokenizer.decode, ids[:begin])
        pieces = [growing.add(id)[0] for id in ids[begin:]]
        assert tokenizer.decode(ids[:begin]) + "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("stop", "pieces"),
    [
        (("hat",), [" The", " cat", " sat", " on", " the", " mat"]),
        (("at sa",), [" The", " c", ""]),
        (("sat", "t s"), [" The", " ca", ""]),
        (("cats", "mats"), [" The", " ", "cat sat", " on", " the", " mat"]),
        ((" The",), [""]),
        (("mat!", "t"), [" The", " ca"]),
    ],
)
def test_a_stop_string_ends_the_text_before_it_also_where_it_spans_tokens(tokenizer, stop, pieces):
    assert grow(tokenizer, " The cat sat on the mat", stop=stop) == pieces


@pytest.mark.parametrize("kind", ["llama", "recurrent"])
def test_a_stop_string_ends_the_request_that_names_it_and_no_other(kind):
    engine = engine_of(kind)
    free = engine.write([Request("abba", max_new_tokens=30, seed=1)])[0]
    end = free.text[5:8]
    asked = [Request("abba", max_new_tokens=30, seed=1, stop=stop) for stop in ((), ("~", end))]
    unstopped, stopped = engine.write(asked)
    assert unstopped == free
    assert stopped.text == free.text[: free.text.index(end)]
    assert stopped.finish_reason == "stop" and len(stopped.tokens) < len(free.tokens)


def test_only_the_last_token_says_why_a_text_ends():
    engine = engine_of("llama")
    for request in requests_for("llama"):
        *before, last = engine.stream(request)
        assert {token.finish_reason for token in before} <= {None}
        assert last.finish_reason == ("stop" if last.id == 0 else "length")


def test_an_event_ends_the_writing_between_two_tokens():
    engine, stop = engine_of("llama"), threading.Event()
    request = Request("abba", max_new_tokens=30, min_new_tokens=30)
    stream = engine.stream(request, stop)
    first = list(itertools.islice(stream, 3))
    stop.set()
    assert list(stream) == []
    assert tuple(first) == engine.write([request])[0].tokens[:3]
    (written,) = engine.write([request], stop)
    assert (written.text, written.tokens, written.finish_reason) == ("", (), None)


@pytest.mark.parametrize("kind", ["llama", "recurrent"])
def test_log_probabilities_are_the_models_own_whatever_is_drawn_from(kind):
    engine = engine_of(kind)
    (written,) = engine.write([Request("abba", max_new_tokens=8, min_new_tokens=8, top_k=2, temperature=3, logprobs=3)])
    ids = [0, *engine.tokenizer("abba")["input_ids"]]
    for token in written.tokens:
        expected = engine.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        best = expected.topk(3)
        assert token.log_probability == pytest.approx(expected[token.id].item(), abs=1e-5)
        assert [id for id, _ in token.alternatives] == best.indices.tolist()
        assert [value for _, value in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-5)
        ids.append(token.id)
    (bare,) = engine.write([Request("abba", max_new_tokens=1)])
    assert (bare.tokens[0].log_probability, bare.tokens[0].alternatives) == (None, ())


def test_penalties_and_biases_are_those_of_openai():
    engine, ids, written = engine_of("llama"), [0, 5, 6, 6, 5], []
    settings = {"presence_penalty": -0.3, "frequency_penalty": 0.7, "logit_bias": ((4, 0.5), (7, -100.0), (4, 0.2))}
    (text,) = engine.write([Request(ids, max_new_tokens=20, min_new_tokens=20, temperature=0.0, **settings)])
    for token in text.tokens:
        logits = engine.model(torch.tensor([ids])).logits[0, -1]
        for other in range(1, len(logits)):  # no eos before the end
            times = written.count(other)
            logits[other] -= -0.3 * (times > 0) + 0.7 * times
        logits[0], logits[4], logits[7] = -torch.inf, logits[4] + 0.7, logits[7] - 100
        assert token.id == logits.argmax()
        ids, written = [*ids, token.id], [*written, token.id]
    assert len(set(written)) > 2


@pytest.mark.parametrize("kind", [*WRITERS])
def test_what_a_model_makes_of_a_prompt_is_told_token_by_token(kind):
    engine, ids = engine_of(kind), [0, 4, 5, 3, 11, 9]
    found = engine.prompt_log_probabilities(ids, top=3)
    expected = engine.model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    assert [log_probability for log_probability, _ in found] == pytest.approx(
        expected.gather(1, torch.tensor(ids[1:])[:, None]).flatten().tolist(), abs=1e-6
    )
    best = expected.topk(3)
    assert [[id for id, _ in ranked] for _, ranked in found] == best.indices.tolist()
    assert [value for _, ranked in found for _, value in ranked] == pytest.approx(best.values.flatten().tolist())
    assert engine.prompt_log_probabilities(ids)[2] == (found[2][0], ())
    assert engine.prompt_log_probabilities([3]) == engine.prompt_log_probabilities([]) == []


def test_a_prompt_may_be_one_token_longer_than_the_positions():
    engine = engine_of("gpt2")
    assert len(engine.prompt_log_probabilities([3] * 33)) == 32
    with pytest.raises(TooLong, match="the text takes 33 tokens and the model reads 32; shorten it"):
        engine.prompt_log_probabilities([3] * 34)
    with pytest.raises(UserError, match="token id 99 is outside the model's vocabulary"):
        engine.prompt_log_probabilities([3, 99])
    with pytest.raises(UserError, match="BartForConditionalGeneration answers a source and has no prompt"):
        engine_of("bart").prompt_log_probabilities([3])


@pytest.mark.ecosystem
@pytest.mark.parametrize("kind", ["llama", "odd", "recurrent", "ngram"])
def test_a_prompt_is_judged_as_lm_eval_judges_it(kind):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm_eval is not installed")
    engine, ids = engine_of(kind), [0, 4, 5, 3, 11, 9, 9]
    judge = huggingface.HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, backend="causal", batch_size=1)
    ((total, is_greedy),) = judge._loglikelihood_tokens([(("", ""), ids[:3], ids[3:])])
    found = engine.prompt_log_probabilities(ids, top=1)[2:]
    assert torch.tensor([log_probability for log_probability, _ in found]).sum().item() == total
    assert is_greedy == all(ranked[0][0] == id for (_, ranked), id in zip(found, ids[3:], strict=True))


@pytest.mark.parametrize("kind", [kind for kind in [*WRITERS, *ANSWERERS] if kind != "ngram"])
def test_a_text_is_embedded_by_the_mean_of_its_last_hidden_states(kind):
    engine, ids = engine_of(kind), [4, 5, 3, 11]
    states = []
    base = engine.model.get_encoder() if kind in ANSWERERS else engine.model.base_model
    base.register_forward_hook(lambda module, given, outputs: states.append(outputs.last_hidden_state[0]))
    found = engine.embed(ids)
    assert states[0].shape == (4, found.shape[0]) and found.dtype == torch.float32
    assert torch.allclose(found, states[0].mean(dim=0))


def test_what_cannot_be_embedded_is_told_in_one_line():
    with pytest.raises(UserError, match="NgramForCausalLM has no hidden states to embed a text by; take another model"):
        engine_of("ngram").embed([3])
    for ids, message in (
        ([], "a text of no tokens has no hidden states; give one token or more"),
        ([3] * 33, "the text takes 33 tokens and the model reads 32; shorten it"),
        ([-1], "token id -1 is below 0"),
    ):
        with pytest.raises(UserError, match=message):
            engine_of("gpt2").embed(ids)


# --- what stays as it was --------------------------------------------------------------------------------------------


def test_no_global_random_state_is_touched_while_a_text_is_written(roomy, tokenizer):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for _ in Engine(roomy, tokenizer).stream(Request(PROMPT, max_new_tokens=4)):
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.is_grad_enabled()


def test_the_model_stays_in_evaluation_mode_which_its_trainer_undoes(roomy, tokenizer):
    roomy.train()
    with evaluation_mode(roomy):
        Engine(roomy, tokenizer).write([Request(PROMPT, max_new_tokens=1)])
    assert roomy.training
    Engine(roomy, tokenizer)
    assert not any(module.training for module in roomy.modules())


def test_it_writes_under_autocast(roomy, tokenizer):
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (write(roomy, tokenizer, PROMPT, max_new_tokens=8) for _ in range(2))
    assert first == second


def test_an_empty_prompt_begins_a_document(roomy, tokenizer):
    likeliest = roomy(torch.tensor([[tokenizer.eos_token_id]])).logits[0, -1].argmax()
    assert write(roomy, tokenizer, "", max_new_tokens=1, temperature=0.0) == [tokenizer.decode(likeliest)]


def test_special_tokens_written_in_a_prompt_are_ordinary_text(roomy, tokenizer):
    ids = [tokenizer.eos_token_id, *tokenizer("a<|endoftext|>", split_special_tokens=True)["input_ids"]]
    likeliest = roomy(torch.tensor([ids])).logits[0, -1].argmax()
    text = write(roomy, tokenizer, "a<|endoftext|>", max_new_tokens=1, temperature=0.0)
    assert text == [tokenizer.decode(likeliest)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": PROMPT * 3}, "the prompt takes 28 tokens and the model's context holds 16"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is out of range; give 1 or more"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens=4 is out of range; give 0 to max_new_tokens=3"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range; give 0 or more"),
        ({"top_k": -1}, "top_k=-1 is out of range"),
        ({"top_p": 0.0}, "top_p=0.0 is out of range; give above 0 and at most 1"),
        ({"min_p": 1.1}, "min_p=1.1 is out of range; give 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is out of range"),
        ({"stop": ("a", "")}, r"stop=\('a', ''\) is no list of strings"),
        ({"stop": "end"}, "stop='end' is no list of strings"),
        ({"logprobs": -1}, "logprobs=-1 is out of range; give 0 or more"),
        ({"presence_penalty": 2.1}, "presence_penalty=2.1 is out of range; give -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty=nan is out of range; give -2 to 2"),
        ({"logit_bias": ((5, -101.0),)}, "logit_bias=-101.0 of token 5 is out of range; give -100 to 100"),
        ({"logit_bias": ((50257, 1.0),)}, "token id 50257 is outside the model's vocabulary of 50257"),
        ({"logit_bias": ((-1, 1.0),)}, "token id -1 is below 0; give those of the model's vocabulary of 50257"),
        ({"prompt": [1, -2]}, "token id -2 is below 0; give those of the model's vocabulary of 50257"),
        ({"source": "a"}, "GPT2LMHeadModel reads no source; give the text as prompt"),
        ({"prompt": [1, 50257]}, "token id 50257 is outside the model's vocabulary of 50257"),
        ({"prompt": "caf\udce9"}, r"the prompt 'caf\\udce9' holds half of a character .*; give whole ones"),
    ],
)
def test_a_mistake_is_told_in_one_line(model, tokenizer, settings, message):
    with pytest.raises(UserError, match=message):
        Engine(model, tokenizer).stream(Request(**{"prompt": PROMPT, **settings}))  # at once, not at the first token


def test_an_encoder_decoder_wants_a_source_that_fits_and_no_prompt():
    engine = engine_of("bart")
    for asked in (Request("a"), Request("a", source="b")):
        with pytest.raises(UserError, match="BartForConditionalGeneration answers a source; give the text as source"):
            engine.stream(asked)
    with pytest.raises(TooLong, match="a source text takes 40 tokens and the encoder reads 32"):
        engine.stream(Request(source="a" * 40))
    (written,) = engine.write([Request(source="a", max_new_tokens=90, min_new_tokens=90)])
    assert len(written.tokens) == 31 and written.finish_reason == "length"  # its positions, and no half of them again


def test_a_real_model_continues_without_glued_words_and_writes_what_was_asked_for(shared_data):
    model, tokenizer = load_causal_lm(str(shared_data / "pretrained/stories260K-hf"), device="cpu")
    (text,) = write(model, tokenizer, PROMPT, max_new_tokens=200, min_new_tokens=200, temperature=0.0)
    assert text.startswith(" The pumpkin was very")
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) > 150


def test_a_compiler_that_fails_is_one_line_that_says_how_to_write_without(roomy, tokenizer, monkeypatch):
    def fail(*arguments):
        raise InductorError(RuntimeError("No working C++ compiler found"), None)

    monkeypatch.setattr(steps, "compiled_step", lambda: fail)
    with pytest.raises(UserError, match=r"compiling fails .*No working C\+\+ compiler.*; write with --compile false"):
        write(roomy, tokenizer, PROMPT, max_new_tokens=4, compile=True)
