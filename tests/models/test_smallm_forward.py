import math

import pytest
import torch
import transformers
from smallm_kinds import KINDS, make_model
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    Qwen3Config,
    StaticCache,
)
from transformers.utils import TransformersKwargs

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.models.modeling_smallm import CACHE_NAME


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


# Equality with the library's own classes, weights copied by hand: the conversion that saving uses takes no part.


@pytest.mark.parametrize("kind", ["modern", "modern-untied-biased", "llama", "llama-biased"])
def test_logits_equal_those_of_qwen3_and_llama_on_the_same_weights(kind, tokens):
    ours = make_model(kind)
    names = set(SmaLLMConfig.__annotations__) - {"preset"}
    fields = {name: getattr(ours.config, name) for name in names}
    config = (Qwen3Config if KINDS[kind][1] == "Qwen3ForCausalLM" else LlamaConfig)(**fields)
    native = getattr(transformers, KINDS[kind][1])(config).eval()
    native.load_state_dict(ours.state_dict())
    assert largest_difference(ours(tokens).logits, native(tokens).logits) < 1e-5


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_gpt2_on_the_same_weights(activation, tied, tokens):
    ours = make_model("classic", tie_word_embeddings=tied, hidden_act=activation)
    config = GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        activation_function=activation,
        tie_word_embeddings=tied,
    )
    native = GPT2LMHeadModel(config).eval()
    state = {
        "transformer.wte.weight": ours.model.embed_tokens.weight,
        "transformer.wpe.weight": ours.model.embed_positions.weight,
        "lm_head.weight": ours.lm_head.weight,
        "transformer.ln_f.weight": ours.model.norm.weight,
        "transformer.ln_f.bias": ours.model.norm.bias,
    }
    for index, layer in enumerate(ours.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        queries_keys_values = (attention.q_proj, attention.k_proj, attention.v_proj)
        for name, module in {
            "attn.c_proj": attention.o_proj,
            "mlp.c_fc": mlp.up_proj,
            "mlp.c_proj": mlp.down_proj,
        }.items():
            state[f"transformer.h.{index}.{name}.weight"] = module.weight.T
            state[f"transformer.h.{index}.{name}.bias"] = module.bias
        state[f"transformer.h.{index}.attn.c_attn.weight"] = torch.cat([p.weight for p in queries_keys_values]).T
        state[f"transformer.h.{index}.attn.c_attn.bias"] = torch.cat([p.bias for p in queries_keys_values])
        for name, module in {"ln_1": layer.input_layernorm, "ln_2": layer.post_attention_layernorm}.items():
            state[f"transformer.h.{index}.{name}.weight"] = module.weight
            state[f"transformer.h.{index}.{name}.bias"] = module.bias
    native.load_state_dict(state)
    assert largest_difference(ours(tokens).logits, native(tokens).logits) < 1e-5
    # With one seed both drop the same entries only if dropout stands at the same places in the same order.
    dropped = []
    for model in (ours, native):
        torch.manual_seed(3)
        dropped.append(model.train()(tokens).logits)
    assert largest_difference(*dropped) < 1e-5
    assert largest_difference(dropped[0], ours.eval()(tokens).logits) > 1e-2


ROPE_TYPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0},
    "llama3": {
        **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    },
    "longrope": {
        **{"factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
    },
}


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_rotary_positions_of_every_type_equal_qwen3s_also_beyond_the_first_length(rope_type, tmp_path):
    make_model("modern").save_pretrained(tmp_path / "plain")
    stretched = {"rope_type": rope_type, "rope_theta": 10000.0, **ROPE_TYPES[rope_type]}
    ours = SmaLLMForCausalLM.from_pretrained(tmp_path / "plain", rope_parameters=dict(stretched)).eval()
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", rope_parameters=dict(stretched)).eval()
    text = torch.randint(3, 64, (1, 48), generator=torch.Generator().manual_seed(1))
    expected = native(text).logits
    assert largest_difference(ours(text).logits, expected) < 1e-5
    assert largest_difference(make_model("modern")(text).logits, expected) > 1e-2
    ours.save_pretrained(tmp_path / "stretched")
    for model_class in (AutoModelForCausalLM, SmaLLMForCausalLM):
        again = model_class.from_pretrained(tmp_path / "stretched").eval()
        assert largest_difference(again(text).logits, expected) < 1e-5


# Laws of a causal language model


def test_later_tokens_cannot_change_earlier_logits(model, tokens):
    changed = tokens.clone()
    changed[:, 7:] = 63 - changed[:, 7:]
    before, after = model(tokens).logits, model(changed).logits
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_every_earlier_token_changes_the_last_logits(model, tokens):
    last = model(tokens).logits[:, -1]
    for position in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, position] = 66 - changed[:, position]
        assert largest_difference(model(changed).logits[:, -1], last) > 1e-4, position


def test_the_order_of_earlier_tokens_matters(model, tokens):
    swapped = tokens.clone()
    swapped[:, [2, 5]] = tokens[:, [5, 2]]
    assert largest_difference(model(swapped).logits[:, -1], model(tokens).logits[:, -1]) > 1e-4


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_cache_fed_in_pieces_equals_the_plain_forward(model, tokens, cache):
    past = DynamicCache() if cache == "dynamic" else StaticCache(config=model.config, max_cache_len=12)
    pieces = [
        model(piece, cache=past, use_cache=True).logits for piece in (tokens[:, :5], tokens[:, 5:11], tokens[:, 11:])
    ]
    assert largest_difference(torch.cat(pieces, dim=1), model(tokens).logits) < 1e-5


@pytest.mark.parametrize("headless", [False, True])
def test_the_cache_goes_in_by_either_of_its_names_and_comes_out_by_the_librarys(model, tokens, headless):
    reads = model.model if headless else model
    expected = reads(tokens)[0]
    for name in ("cache", "past_key_values"):
        past = reads(tokens[:, :5], use_cache=True)[CACHE_NAME]
        assert past.get_seq_length() == 5
        assert largest_difference(reads(tokens[:, 5:], **{name: past})[0], expected[:, 5:]) < 1e-5
    assert CACHE_NAME not in reads(tokens, use_cache=False)
    with pytest.raises(ValueError, match="cache and past_key_values are two names of one argument"):
        reads(tokens, cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("unknown", ["cach", "token_type_ids", "cache_params", "past_key_value", "attention_maks"])
def test_an_argument_that_nothing_reads_is_refused_where_ignoring_it_would_give_wrong_results(model, tokens, unknown):
    for reads in (model, model.model):
        with pytest.raises(TypeError, match=f"forward\\(\\) got an unexpected keyword argument '{unknown}'"):
            reads(tokens, **{unknown: tokens})


def test_the_options_of_the_loss_are_none_of_the_model_without_a_head(tokens):
    model = make_model("modern")
    shifted = torch.cat([tokens[:, 1:], torch.full((2, 1), -100)], dim=1)
    assert torch.equal(model(tokens, labels=tokens, shift_labels=shifted).loss, model(tokens, labels=tokens).loss)
    with pytest.raises(TypeError, match="unexpected keyword argument 'shift_labels'"):
        model.model(tokens, shift_labels=shifted)


def test_every_option_that_the_librarys_own_models_name_is_taken(model, tokens):
    expected = model(tokens).logits
    options = {name: None for name in TransformersKwargs.__annotations__} | {"return_dict": True, "debug_io": False}
    assert torch.equal(model(tokens, **options).logits, expected)


@pytest.mark.parametrize("pieces", [(12,), (5, 7), (5, 6, 1)])
def test_left_padding_changes_nothing_whether_prefilled_at_once_or_in_chunks(model, tokens, pieces):
    padding = 4
    padded = torch.cat([torch.zeros(2, padding, dtype=torch.long), tokens], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :padding] = 0
    past, end, logits = DynamicCache(), 0, []
    for length in (padding + pieces[0], *pieces[1:]):
        start, end = end, end + length
        logits.append(model(padded[:, start:end], attention_mask=mask[:, :end], cache=past).logits)
    assert largest_difference(torch.cat(logits, dim=1)[:, padding:], model(tokens).logits) < 1e-5


def test_right_padding_changes_nothing(model, tokens):
    padded = torch.cat([tokens, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    mask = (torch.arange(16) < 12).long().expand(2, 16)
    assert largest_difference(model(padded, attention_mask=mask).logits[:, :12], model(tokens).logits) < 1e-5


@pytest.mark.parametrize("use_cache", [True, False])
def test_packed_documents_equal_each_document_alone(model, tokens, use_cache):
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)
    packed = model(tokens, position_ids=positions, use_cache=use_cache).logits
    assert largest_difference(packed[:, :5], model(tokens[:, :5]).logits) < 1e-5
    assert largest_difference(packed[:, 5:], model(tokens[:, 5:]).logits) < 1e-5


def test_embeddings_may_come_in_place_of_tokens_but_not_beside_them(model, tokens):
    vectors = model.get_input_embeddings()(tokens)
    assert torch.equal(model(inputs_embeds=vectors).logits, model(tokens).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(tokens, inputs_embeds=vectors)


def test_a_text_longer_than_the_table_of_positions_is_refused_by_name(tokens):
    model = make_model("classic", max_position_embeddings=8)
    with pytest.raises(ValueError, match="12 tokens exceed max_position_embeddings=8; shorten"):
        model(tokens)


# Attention implementations, precision, checkpointing, compilation


def test_eager_and_sdpa_attention_agree_with_and_without_padding(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    plain, padded = model(tokens).logits, model(tokens, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    assert largest_difference(model(tokens).logits, plain) < 1e-5
    assert largest_difference((model(tokens, attention_mask=mask).logits - padded)[mask.bool()], torch.zeros(1)) < 1e-5


def test_eager_attention_returns_maps_that_are_causal_and_sum_to_one(model, tokens):
    model.set_attn_implementation("eager")
    maps = model(tokens, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in maps] == [(2, 4, 12, 12)] * 2
    for weights in maps:
        assert torch.allclose(weights.sum(dim=-1), torch.ones(()))
        assert torch.equal(weights, weights.tril())


def test_hidden_states_are_those_between_the_blocks_and_end_in_the_normed_ones(model, tokens):
    outputs = model(tokens, output_hidden_states=True)
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.allclose(model.lm_head(outputs.hidden_states[-1]), outputs.logits)


def gradients_of(model, tokens) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_activation_checkpointing_gives_equal_gradients(kind, tokens):
    model = make_model(kind, dropout=0.0).train()
    plain = gradients_of(model, tokens)
    model.activation_checkpointing_enable()
    checkpointed = gradients_of(model, tokens)
    assert all(torch.allclose(checkpointed[name], plain[name], atol=1e-6) for name in plain)


def test_every_parameter_gets_a_gradient(kind, tokens):
    model = make_model(kind).train()
    assert all(gradient.abs().max() > 0 for gradient in gradients_of(model, tokens).values())


def test_the_compiled_step_is_one_graph_traced_once_that_takes_the_causal_kernel(kind):
    model = make_model(kind).train()
    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=False, backend=record)
    def step(batch, count):
        return model(input_ids=batch, labels=batch, use_cache=False, num_items_in_batch=count).loss

    for seed in range(3):
        batch = torch.randint(3, 64, (2, 16), generator=torch.Generator().manual_seed(seed))
        step(batch, torch.tensor(30 + seed)).backward()
    assert len(graphs) == 1
    attention = [node for node in graphs[0].graph.nodes if "scaled_dot_product" in str(node.target)]
    assert len(attention) == model.config.num_hidden_layers
    for node in attention:
        assert node.kwargs["is_causal"] is True
        assert node.kwargs["attn_mask"] is None


@pytest.mark.slow
def test_the_model_compiled_with_the_default_backend_equals_the_eager_one(model, tokens):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    assert largest_difference(compiled(tokens, use_cache=False).logits, model(tokens).logits) < 1e-5


@pytest.mark.slow
@torch.no_grad()  # on a CPU flex attention has no backward pass
def test_flex_attention_agrees_with_sdpa_on_plain_and_packed_texts(model, tokens):
    packed = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)
    expected = model(tokens).logits, model(tokens, position_ids=packed).logits
    model.set_attn_implementation("flex_attention")
    assert largest_difference(model(tokens).logits, expected[0]) < 1e-5
    assert largest_difference(model(tokens, position_ids=packed).logits, expected[1]) < 1e-5


def test_bfloat16_is_near_float32(model, tokens):
    expected = model(tokens).logits.log_softmax(dim=-1)
    low = model.to(torch.bfloat16)(tokens).logits
    assert low.dtype == torch.bfloat16
    assert largest_difference(low.float().log_softmax(dim=-1), expected) < 0.3


def test_autocast_warns_of_nothing_and_keeps_attention_in_low_precision(kind, tokens, recwarn):
    model = make_model(kind).train()
    seen = []
    model.model.layers[0].self_attn.q_norm.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(tokens, labels=tokens).loss.backward()
    assert seen == [torch.bfloat16]
    assert not [str(warning.message) for warning in recwarn if "dtype" in str(warning.message)]


# Loss


def test_the_loss_is_the_mean_negative_log_probability_of_the_next_token(model, tokens):
    outputs = model(tokens, labels=tokens)
    log_probabilities = outputs.logits.log_softmax(dim=-1)[:, :-1]
    expected = -log_probabilities.gather(-1, tokens[:, 1:, None]).mean()
    assert outputs.loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_labels_of_minus_100_are_not_counted(model, tokens):
    labels = tokens.clone()
    labels[:, 6:] = -100
    assert model(tokens, labels=labels).loss.item() == pytest.approx(
        model(tokens[:, :6], labels=tokens[:, :6]).loss.item(), abs=1e-5
    )


def test_num_items_in_batch_divides_the_summed_loss(model, tokens):
    mean = model(tokens, labels=tokens).loss
    assert torch.allclose(model(tokens, labels=tokens, num_items_in_batch=torch.tensor(100)).loss, mean * 22 / 100)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4])])
def test_logits_to_keep_scores_only_these_positions(model, tokens, keep):
    positions = keep if isinstance(keep, torch.Tensor) else torch.arange(12 - keep, 12)
    assert torch.allclose(model(tokens, logits_to_keep=keep).logits, model(tokens).logits[:, positions], atol=1e-6)


# Initialisation


@pytest.mark.parametrize(
    "fields",
    [
        {
            "preset": "classic",
            "vocab_size": 50257,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "hidden_size": 384,
        },
        {
            "preset": "classic",
            "vocab_size": 50257,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "hidden_size": 512,
        },
        {
            "preset": "classic",
            "vocab_size": 50257,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_size": 768,
        },
        {"vocab_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 256},
        {
            "vocab_size": 4096,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "hidden_size": 256,
            "tie_word_embeddings": False,
        },
        {"vocab_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 256},
        {"vocab_size": 50257, "num_hidden_layers": 2, "num_attention_heads": 12, "hidden_size": 768},
    ],
)
def test_the_first_loss_is_that_of_a_uniform_guess(fields):
    torch.manual_seed(42)
    model = SmaLLMForCausalLM(SmaLLMConfig(**fields)).eval()
    batch = torch.randint(0, fields["vocab_size"], (2, 64))
    with torch.no_grad():
        loss = model(batch, labels=batch).loss.item()
    assert abs(loss - math.log(fields["vocab_size"])) < 0.5


@pytest.mark.parametrize(("how", "expected"), [("scaled", 0.02 / math.sqrt(2 * 8)), ("zero", 0.0)])
def test_output_projections_start_scaled_by_depth_or_at_zero(how, expected):
    torch.manual_seed(0)
    config = SmaLLMConfig(output_projection_init=how, num_hidden_layers=8, embedding_initializer_range=0.007)
    model = SmaLLMForCausalLM(config)
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            assert linear.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.007, rel=0.03)


# Generation


def generate(model, tokens, **options):
    torch.manual_seed(0)
    defaults = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **defaults | options)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"prefill_chunk_size": 5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_greedy_generation_is_the_same_by_every_road(model, tokens, options):
    prompt = tokens[:1] if "prompt_lookup_num_tokens" in options else tokens
    expected = generate(model, prompt)
    for step in range(12, 18):
        logits = model(expected[:, :step]).logits[:, -1]
        logits[:, 2] = -torch.inf  # the end is forbidden by min_new_tokens
        assert torch.equal(logits.argmax(dim=-1), expected[:, step])
    assert torch.equal(generate(model, prompt, **options), expected)


def test_assisted_generation_equals_greedy_generation(kind, tokens):
    model, assistant = make_model(kind), make_model(kind, num_hidden_layers=1)
    assert torch.equal(generate(model, tokens[:1], assistant_model=assistant), generate(model, tokens[:1]))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
        {"do_sample": True, "top_p": 0.9, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 3, "do_sample": True},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_sampling_and_beams_continue_the_prompt(model, tokens, options):
    written = generate(model, tokens, **options)
    copies = options.get("num_return_sequences", 1)
    assert written.shape == (2 * copies, 18)
    assert torch.equal(written[:, :12], tokens.repeat_interleave(copies, dim=0))


def test_continuous_batching_writes_what_each_prompt_generates_alone(model, tokens):
    prompts = [tokens[0, :4].tolist(), tokens[1].tolist(), tokens[0, 5:8].tolist()]
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)  # else it takes most of the memory
    options = {"continuous_batching_config": small, "progress_bar": False}
    written = model.generate_batch(prompts, generation_config=settings, **options)
    for prompt, request in zip(prompts, written.values(), strict=True):
        alone = model.generate(torch.tensor([prompt]), generation_config=settings)
        assert request.generated_tokens == alone[0, len(prompt) :].tolist()


def test_prompts_of_different_length_generate_in_one_left_padded_batch_what_they_generate_alone(model, tokens):
    short = tokens[:1, :8]
    batch = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1), tokens[1:]])
    written = model.generate(
        batch, attention_mask=(batch != 0).long(), max_new_tokens=6, min_new_tokens=6, do_sample=False
    )
    assert torch.equal(written[:1, 4:], generate(model, short))
    assert torch.equal(written[1:], generate(model, tokens[1:]))
