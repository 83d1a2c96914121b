"""Decoding: parity with the reference, equal results in every way, the state machine, what is sampled, errors."""

import dataclasses

import pytest
import torch
from decoded import END, EOS, LATENT, ROWS, START, WAYS, assert_same, decoding_in, livelier, one, sample
from families import make_family
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scripted import Script, Scripted, response_texts, written

from futurel1.data import PromptBatch
from futurel1.errors import BatchError, ConfigError
from futurel1.models import LatentReasoner, SpanBudget, decoding
from futurel1.models.decoding import DecodingError, DecodingSettings, Sampling
from futurel1.models.decoding.runners import RUNNERS
from futurel1.models.policies import DeterministicLatents, GaussianLatents
from rounding import RECURRENT_ROUNDINGS, ROUNDINGS, assert_same_but_rounding

pytestmark = pytest.mark.numerics
GREEDY = {"do_sample": False, "latent_policy": DeterministicLatents()}


# ---------------------------------------------------------------------- parity


@pytest.fixture(scope="module", params=["public_mse", "public_end"])
def reference(request, golden):
    return LatentReasoner.from_pretrained(golden / request.param), load_file(
        golden / request.param / "golden.safetensors"
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", ["decode", "decode_one"])
def test_greedy_traces_and_latents_equal_the_reference(reference, key, way):
    reasoner, values = reference
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    prompt = PromptBatch(*(values[f"{key}.{name}"] for name in names))
    with decoding_in(way) as options:
        rollout = reasoner.generate(prompt, max_new_tokens=32, eos_token_id=319, pad_token_id=0, **options)
    assert torch.equal(rollout.responses, values[f"{key}.sequences"][:, prompt.input_ids.shape[1] :])
    if f"{key}.latent_states" in values:
        mask = values[f"{key}.latent_mask"].bool()
        assert torch.equal(rollout.latent_mask, mask)
        assert mask.any()
        assert_same_but_rounding(rollout.latents[mask], values[f"{key}.latent_states"][mask])
    assert rollout.temperature == 1.0
    assert rollout.finish_reasons == ["length"] * len(prompt.input_ids)


@pytest.mark.parametrize("way", WAYS)
def test_the_references_batch_is_its_rows_one_by_one(reference, way):
    reasoner, values = reference
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    prompt = PromptBatch(*(values[f"decode.{name}"] for name in names))
    with decoding_in(way) as options:
        together = reasoner.generate(prompt, max_new_tokens=24, eos_token_id=319, pad_token_id=0, **options)
    patches = prompt.image_grid_thw.prod(dim=1).cumsum(0).tolist()
    # one image per prompt
    for row, (start, stop) in enumerate(zip([0, *patches], patches, strict=False)):
        real = prompt.attention_mask[row] != 0
        alone = PromptBatch(
            prompt.input_ids[row : row + 1, real],
            prompt.attention_mask[row : row + 1, real],
            prompt.pixel_values[start:stop],
            prompt.image_grid_thw[row : row + 1],
        )
        with decoding_in(way) as options:
            part = reasoner.generate(alone, max_new_tokens=24, eos_token_id=319, pad_token_id=0, **options)
        assert_same(together, part, slice(row, row + 1))


# ---------------------------------------------------------------------- equivalences


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "qwen3_5"])
def test_all_ways_and_all_batches_decode_the_same(lively, name, greedy):
    family = lively[name]
    reasoner, prompt = family.reasoner, family.batch(ROWS, padding="left")
    more = {**GREEDY} if greedy else {}
    more["force_start"] = True
    whole = sample(reasoner, prompt, **more)
    if not greedy:
        # the test has to see spans that end by choice and by force, and rows that end at different steps
        assert set(whole.span_table[:, 4].tolist()) == {0, 1}
        assert len(set(whole.response_mask.sum(1).tolist())) > 4
    roundings = RECURRENT_ROUNDINGS if name == "qwen3_5" else ROUNDINGS
    assert_same(whole, sample(reasoner, prompt, way="uncached", **more), roundings=roundings)
    assert_same(whole, sample(reasoner, prompt, share_prompt=False, **more))
    for row in range(len(ROWS)):
        assert_same(whole, sample(reasoner, one(prompt, row), **more), slice(4 * row, 4 * row + 4), roundings)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "qwen3_5"])
@pytest.mark.parametrize("row", [0, 1])
def test_branches_are_the_prompt_repeated(lively, name, greedy, row):
    family = lively[name]
    single = family.batch([ROWS[row]], padding="left")
    times = 4
    repeated = PromptBatch(
        **{
            field.name: value.repeat_interleave(times, dim=0) if field.name.endswith(("ids", "mask")) else
            torch.cat([value] * times)
            for field in dataclasses.fields(single)
            if isinstance(value := getattr(single, field.name), torch.Tensor)
        }
    )  # fmt: skip
    more = GREEDY if greedy else {}
    branches = sample(family.reasoner, single, **more)
    rows = sample(family.reasoner, repeated, num_branches=1, **more)
    assert_same(branches, rows)
    assert branches.num_branches == times
    assert len(set(map(tuple, rows.responses.tolist()))) == (1 if greedy else times)


def test_training_mode_with_gradient_checkpointing_decodes_the_same_and_stays(lively):
    family = livelier(make_family("qwen3_vl"))
    prompt = family.batch(ROWS, padding="left")
    before = sample(family.reasoner, prompt)
    family.stock.gradient_checkpointing_enable()
    family.reasoner.train()
    family.reasoner.backbone.vision_tower.eval()
    modes = {name: part.training for name, part in family.reasoner.named_modules()}
    assert_same(before, sample(family.reasoner, prompt))
    assert {name: part.training for name, part in family.reasoner.named_modules()} == modes
    assert set(modes.values()) == {True, False}


def test_known_vision_is_not_computed_again(lively, monkeypatch):
    family = lively["qwen3_vl"]
    prompt = family.batch(ROWS, padding="left")
    want = sample(family.reasoner, prompt)
    vision = family.reasoner.encode(prompt)
    monkeypatch.setattr(type(family.reasoner), "encode", lambda *_: pytest.fail("encoded again"))
    assert_same(want, sample(family.reasoner, prompt, vision=vision))


# ---------------------------------------------------------------------- the state machine

A, B, STOP = 5, 6, 7
CHOICES = [START, LATENT, END, STOP, A, B]


def by_method(script, last, budget, max_new_tokens, force_start):
    """The method for one row, in plain Python: what is emitted, and what is noted about it."""
    tokens, kinds, spans, reason = [], [], [], "length"
    inside, emitted = False, 0
    for step in range(max_new_tokens):
        picked = script[step]
        if last == START and not inside:
            inside, emitted = True, 0
            spans.append([step - 1, 0, -1, 0])
        if inside and emitted == budget.latents:
            token, kind = END, "forced"
        elif inside and picked == END and budget.kind == "loose":
            token, kind = END, "chosen"
        elif inside:
            token, kind = LATENT, "latent"
        elif force_start and step == 0:
            token, kind = START, "forced"
        else:
            token, kind = picked, "chosen"
        if inside and token == END:
            spans[-1][2:] = [step, int(kind == "forced")]
            inside = False
        if kind == "latent":
            emitted += 1
            spans[-1][1] += 1
        tokens.append(token)
        kinds.append(kind)
        last = LATENT if kind == "latent" else token
        if kind == "chosen" and token == STOP:
            reason = "eos"
            break
    return tokens, kinds, spans, reason


def check_against_method(scripts, lasts, budget, max_new_tokens, force_start):
    reasoner = Script(scripts)
    prompt = PromptBatch(torch.tensor([[A, last] for last in lasts]), torch.ones(len(lasts), 2, dtype=torch.long))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUNNERS, "shared", Scripted)
        options = DecodingSettings(
            num_branches=1, max_new_tokens=max_new_tokens, sampling=Sampling(), eos_token_ids=[STOP], pad_token_id=99,
            budget=budget, latent_policy=DeterministicLatents(), force_start=force_start,
        )  # fmt: skip
        rollout = decoding.generate(reasoner, prompt, options)
    table = []
    fed = {}
    for active, steps, embeds in reasoner.fed:
        fed.update({(row, at - 1): embed for row, at, embed in zip(active, steps, embeds, strict=True)})
    longest = 0
    for row, (script, last) in enumerate(zip(scripts, lasts, strict=True)):
        tokens, kinds, spans, reason = by_method(script, last, budget, max_new_tokens, force_start)
        length = len(tokens)
        longest = max(longest, length)
        assert rollout.responses[row].tolist() == tokens + [99] * (rollout.responses.shape[1] - length)
        assert rollout.response_mask[row].sum() == length
        assert rollout.finish_reasons[row] == reason
        assert rollout.slot_mask[row, :length].tolist() == [kind == "latent" for kind in kinds]
        chosen = [kind == "chosen" or (kind == "latent" and budget.kind == "loose") for kind in kinds]
        assert rollout.chosen_mask[row].tolist() == chosen + [False] * (rollout.responses.shape[1] - length)
        table += [[row, *span] for span in spans]
        steps = [step for step, kind in enumerate(kinds) if kind == "latent"]
        assert rollout.latent_mask[row].sum() == len(steps)
        assert rollout.latents[row, : len(steps)].tolist() == [[10 * row + 1, 10 * step + 1] for step in steps]
        assert not rollout.latents[row, len(steps) :].any()
        want = [number for number, span in enumerate(spans) for _ in range(span[1])]
        assert rollout.span_ids[row].tolist() == want + [-1] * (rollout.span_ids.shape[1] - len(want))
        for step, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
            log_p = reasoner.logits(torch.tensor([[row, step]])).double().log_softmax(-1)[0]
            value = float(torch.log1p(-log_p[END].exp())) if kind == "latent" else float(log_p[token])
            assert float(rollout.log_probs[row, step]) == pytest.approx(value if chosen[step] else 0.0, abs=1e-5)
            if step + 1 < length:
                # what goes in at the next step: the latent itself, or the token's row of the table
                inputs = [10 * row + 1, 10 * step + 1] if kind == "latent" else [-token, -token]
                assert fed[row, step].tolist() == inputs
        assert not rollout.log_probs[row, length:].any()
        assert (row, length - 1) not in fed
    assert rollout.responses.shape[1] == longest
    assert rollout.span_table.tolist() == table


@given(st.data())
@settings(max_examples=120)
def test_state_machine_against_the_method_in_plain_python(data):
    rows, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    weighted = st.sampled_from([*CHOICES, START, END, A, START])
    scripts = data.draw(st.lists(st.lists(weighted, min_size=steps, max_size=steps), min_size=rows, max_size=rows))
    lasts = data.draw(st.lists(st.sampled_from([A, START, LATENT, END]), min_size=rows, max_size=rows))
    kind = data.draw(st.sampled_from(["fixed", "loose"]))
    budget = SpanBudget(kind, data.draw(st.integers(0 if kind == "fixed" else 1, 3)))
    check_against_method(scripts, lasts, budget, steps, data.draw(st.booleans()))


TRANSITIONS = {
    "END at START gives an empty span": ([START, END, A, STOP], "loose", [START, END, A, STOP]),
    "END is ignored under a fixed budget": ([START, END, END, A, STOP], "fixed", [START, LATENT, LATENT, END, STOP]),
    "END is forced when the budget is spent": ([START, A, A, A, STOP], "loose", [START, LATENT, LATENT, END, STOP]),
    "only END ends a span": ([START, STOP, START, B, A], "loose", [START, LATENT, LATENT, END, A]),
    "END chosen early": ([START, A, END, START, END], "loose", [START, LATENT, END, START, END]),
    "a stray LATENT is text": ([LATENT, LATENT, END, STOP], "loose", [LATENT, LATENT, END, STOP]),
    "cut inside a span": ([A, START, B], "loose", [A, START, LATENT]),
}


@pytest.mark.parametrize("case", TRANSITIONS)
def test_each_transition(case):
    script, kind, want = TRANSITIONS[case]
    budget = SpanBudget(kind, 2)
    assert by_method(script, A, budget, len(script), False)[0] == want
    check_against_method([script], [A], budget, len(script), False)


def test_the_budget_comes_from_the_checkpoint():
    family = make_family("qwen3_vl")
    with torch.no_grad():
        family.reasoner.backbone.lm_head.weight[END] = 0  # never the most likely one
    prompt = family.batch([[5, 6, START]], padding="left")

    def latents(**changes):
        family.reasoner.settings = dataclasses.replace(family.reasoner.settings, **changes)
        rollout = family.reasoner.generate(prompt, max_new_tokens=12, eos_token_id=EOS)
        return rollout.span_table[0, 2:].tolist()

    assert latents() == [8, 8, 1]
    assert latents(infer_latent_multiplier=1.5) == [6, 6, 1]
    assert latents(loose_latent_budget=3) == [3, 3, 1]
    assert latents(fixed_latent_budget=True) == [4, 4, 1]


def test_rice_checkpoints_force_the_first_start(lively):
    family = make_family("qwen3_vl")
    prompt = family.batch([[5, 6, 7], [8, 9, START]], padding="left")
    family.reasoner.settings = dataclasses.replace(family.reasoner.settings, force_initial_latent_mode=True)
    rollout = family.reasoner.generate(prompt, max_new_tokens=4, eos_token_id=EOS)
    assert rollout.responses[0, 0] == START
    assert rollout.span_table[:, 1].tolist() == [0, -1]  # a span that the prompt opened needs no START
    assert not rollout.chosen_mask[0, 0]
    assert rollout.log_probs[0, 0] == 0
    free = family.reasoner.generate(prompt, max_new_tokens=4, eos_token_id=EOS, force_start=False)
    assert free.responses[0, 0] != START


# ---------------------------------------------------------------------- sampling


def test_log_probs_are_those_of_the_tempered_unfiltered_softmax(lively):
    family = lively["qwen3_vl"]
    prompt = family.batch([[5, 6, 7]], padding="left")
    rollout = sample(family.reasoner, prompt, max_new_tokens=1, temperature=0.7, top_p=0.5, num_branches=6)
    with torch.no_grad():
        logits = family.reasoner.logits(family.reasoner(prompt.input_ids, prompt.attention_mask))[0, -1]
    want = (logits / 0.7).log_softmax(-1)[rollout.responses[:, 0]]
    torch.testing.assert_close(rollout.log_probs[:, 0], want)
    assert rollout.temperature == 0.7


def test_a_rows_sample_does_not_depend_on_the_batch(lively):
    family = lively["qwen3_vl"]
    rows = [[5, 6, 7], [8, 9, 10, 11, 12], [13, START], [14, 15, 16, 17, 18, 19, 20]]
    reasoner = family.reasoner
    together = sample(reasoner, family.batch(rows, padding="left"), num_branches=3)
    for row, ids in enumerate(rows):
        assert_same(together, sample(reasoner, family.batch([ids], padding="left"), num_branches=3),
                    slice(3 * row, 3 * row + 3))  # fmt: skip
    order = [2, 0, 3, 1]
    shuffled = sample(reasoner, family.batch([rows[i] for i in order], padding="left"), num_branches=3)
    for place, row in enumerate(order):
        length = together.response_mask[3 * row : 3 * row + 3].sum(1)
        assert torch.equal(shuffled.response_mask[3 * place : 3 * place + 3].sum(1), length)
        for branch in range(3):
            assert torch.equal(
                shuffled.responses[3 * place + branch, : length[branch]],
                together.responses[3 * row + branch, : length[branch]],
            )
    more = sample(reasoner, family.batch([rows[0]], padding="left"), num_branches=5)
    assert_same(more, sample(reasoner, family.batch([rows[0]], padding="left"), num_branches=3), slice(0, 3))


def test_prompts_of_equal_text_and_other_pixels_are_different_prompts(lively):
    family = lively["qwen3_vl"]
    batch = family.batch([ROWS[0], ROWS[0]], padding="left")  # the same tokens, two images
    together = sample(family.reasoner, batch)
    for row in range(2):
        alone = PromptBatch(
            batch.input_ids[:1],
            batch.attention_mask[:1],
            batch.pixel_values[32 * row : 32 * row + 32],
            batch.image_grid_thw[:1],
        )
        assert_same(together, sample(family.reasoner, alone), slice(4 * row, 4 * row + 4))


def test_seeds_and_names_decide_what_is_drawn(lively):
    family = lively["qwen3_vl"]
    reasoner, twice = family.reasoner, family.batch([[5, 6, 7], [5, 6, 7]], padding="left")

    def draw(names=(), **more):
        batch = dataclasses.replace(twice, sample_ids=names)
        rollout = sample(reasoner, batch, num_branches=2, eos_token_id=127, **more)
        return [tuple(row) for row in rollout.responses.tolist()]

    base = draw()
    assert len(set(base)) == 4  # equal prompts draw differently, and so do branches
    assert draw() == base
    assert not set(draw(seed=4)) & set(base)
    named = draw(("a", "b"))
    assert len(set(named + base)) == 8
    assert draw(("b", "a")) == named[2:] + named[:2]
    assert draw(seed=torch.tensor([3, 4])) == base[:2] + draw(seed=4)[:2]
    with pytest.raises(ConfigError, match=r"one per prompt, \(2,\), got shape \(3,\)"):
        draw(seed=torch.tensor([1, 2, 3]))


def test_sampled_latents_depend_on_the_seed_and_not_on_greedy_text(lively):
    family = lively["qwen3_vl"]
    prompt = family.batch([[5, 6, START]], padding="left")
    more = {"do_sample": False, "budget": SpanBudget.fixed(3), "latent_policy": GaussianLatents(0.1)}
    one, other = sample(family.reasoner, prompt, **more), sample(family.reasoner, prompt, seed=4, **more)
    assert not torch.equal(one.latents[:, 0], other.latents[:, 0])
    assert len(one.latents[:, 0].unique(dim=0)) == 4
    mean = sample(family.reasoner, prompt, **{**more, "latent_policy": DeterministicLatents()}).latents[0, 0]
    ratio = (one.latents[:, 0] - mean) / mean.square().mean().sqrt()
    assert float(ratio.std()) == pytest.approx(0.1, rel=0.3)


# ---------------------------------------------------------------------- stop strings, streaming


def test_streaming_yields_exactly_the_responses(lively):
    family = lively["qwen3_vl"]
    steps = []
    rollout = sample(family.reasoner, family.batch(ROWS, padding="left"), on_step=steps.append)
    streamed, slots = [[] for _ in range(len(rollout))], [[] for _ in range(len(rollout))]
    for number, step in enumerate(steps):
        assert step.step == number
        for row, token, is_latent in zip(
            step.rows.tolist(), step.tokens.tolist(), step.is_latent.tolist(), strict=True
        ):
            streamed[row].append(token)
            slots[row].append(is_latent)
    for row in range(len(rollout)):
        length = int(rollout.response_mask[row].sum())
        assert streamed[row] == rollout.responses[row, :length].tolist()
        assert slots[row] == rollout.slot_mask[row, :length].tolist()


@pytest.fixture
def writer(monkeypatch, tiny):
    """The tiny reasoner made to write given texts, one per row."""

    def write(texts, **more):
        rollout = written(monkeypatch, tiny, texts, **more)
        return response_texts(rollout, tiny.tokenizer), rollout.finish_reasons

    return write


def test_stop_strings_end_a_response(writer):
    texts = ["<answer>B</answer> and more", "ball moves left", "<answer>é🙂</answer>"]
    texts, reasons = writer(texts, stop_strings=["</answer>", "🙂"])
    assert texts == ["<answer>B</answer>", "ball moves left<|im_end|>", "<answer>é🙂"]
    assert reasons == ["stop", "eos", "stop"]


def test_a_stop_string_inside_a_token_ends_the_response_too(writer):
    # " moves" is one token of the tiny tokenizer, "mov" none
    assert writer(["ball moves left"], stop_strings="mov") == (["ball moves"], ["stop"])
    assert writer(["ball moves left"], stop_strings="ll mo") == (["ball moves"], ["stop"])


def test_tokens_of_the_end_come_from_the_tokenizer(writer, tiny):
    texts, reasons = writer(["ball", "ball moves left"])
    assert texts == ["ball<|im_end|>", "ball moves left<|im_end|>"]
    assert reasons == ["eos", "eos"]


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("mask", [[1, 1, 0], [0, 1, 0], [1, 0, 1]])
def test_prompts_that_are_not_padded_on_the_left(lively, mask):
    prompt = PromptBatch(torch.tensor([[5, 6, 7], [5, 6, 7]]), torch.tensor([mask, [1, 1, 1]]))
    with pytest.raises(BatchError, match="padded on the left"):
        sample(lively["qwen3_vl"].reasoner, prompt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"num_branches": 0}, "num_branches"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"eos_token_id": None}, "give eos_token_id"),
        ({"eos_token_id": [], "pad_token_id": None}, "give pad_token_id"),
        ({"stop_strings": ["a"]}, "need a tokenizer"),
        ({"stop_strings": ["a", ""]}, "must not be empty"),
    ],
)
def test_bad_settings(lively, changes, message):
    family = lively["qwen3_vl"]
    with pytest.raises(ConfigError, match=message):
        sample(family.reasoner, family.batch([[5, 6, 7]], padding="left"), **changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_step_and_row(lively, monkeypatch, value):
    family = lively["qwen3_vl"]
    honest, calls = type(family.reasoner).logits, []

    def broken(self, hidden):
        logits = honest(self, hidden)
        calls.append(len(hidden))
        if len(calls) == 3:
            logits[1, 40] = value
        return logits

    monkeypatch.setattr(type(family.reasoner), "logits", broken)
    prompt = family.batch([[5, 6, 7], [8, 9]], padding="left")
    with pytest.raises(DecodingError, match="the logits of row 1 at step 2 is not finite"):
        sample(family.reasoner, prompt, num_branches=1, eos_token_id=127)


def test_weights_that_are_nan_name_step_and_row():
    family = make_family("qwen3_vl")
    with torch.no_grad():
        family.reasoner.backbone.language_model.norm.weight[:] = float("nan")
    with pytest.raises(DecodingError, match="row 0 at step 0 is not finite"):
        sample(family.reasoner, family.batch([[5, 6, 7]], padding="left"))


def test_latents_that_are_nan_name_step_and_row(lively, monkeypatch):
    family = lively["qwen3_vl"]
    honest = type(family.reasoner).predict_latents

    def broken(self, hidden):
        latents = honest(self, hidden).clone()
        latents[-1] = float("nan")
        return latents

    monkeypatch.setattr(type(family.reasoner), "predict_latents", broken)
    # the last row is outside a span: its prediction is nobody's latent
    fine = family.batch([[5, START], [6, 7]], padding="left")
    sample(family.reasoner, fine, max_new_tokens=1, num_branches=1)
    with pytest.raises(DecodingError, match="a latent of row 1 at step 0 is not finite"):
        sample(family.reasoner, family.batch([[6, 7], [5, START]], padding="left"), num_branches=1)
