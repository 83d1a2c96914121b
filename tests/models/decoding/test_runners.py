"""What the language model is fed step by step: prompts once, and rows only while they go on; slots that refill."""

import dataclasses

import pytest
import torch
from decoded import EOS, ROWS, assert_same, one, sample
from torch.utils._python_dispatch import TorchDispatchMode

from futurel1.data import PromptBatch
from futurel1.errors import BatchError, ConfigError
from futurel1.models import LatentReasoner, SpanBudget
from futurel1.models.backbones import Backbone
from futurel1.models.decoding import PromptSource, generation, sampling, scoring
from futurel1.models.decoding.sizes import Sizes
from futurel1.models.policies import DeterministicLatents, VonMisesFisherLatents
from rounding import RECURRENT_ROUNDINGS, ROUNDINGS

pytestmark = pytest.mark.numerics
NAMES = ["qwen3_vl", "qwen2_5_vl", "qwen3_5"]
SAMPLED = {
    "num_branches": 4, "max_new_tokens": 24, "do_sample": True, "temperature": 1.2, "top_p": 0.95, "eos_token_id": EOS,
    "pad_token_id": 0, "budget": SpanBudget.loose(3), "latent_policy": VonMisesFisherLatents(0.9),
}  # fmt: skip
"""How `sample` samples."""


def rounded(name):
    """Rows are computed in batches of other sizes, whose rounding Qwen3.5 magnifies now and then."""
    return RECURRENT_ROUNDINGS if name == "qwen3_5" else ROUNDINGS


@pytest.fixture
def fed(monkeypatch):
    """Shapes of what the language model is fed: (rows, width) of each run."""
    shapes = []
    original = Backbone.run

    def spy(self, embeds, *more, **options):
        shapes.append(tuple(embeds.shape[:2]))
        return original(self, embeds, *more, **options)

    monkeypatch.setattr(Backbone, "run", spy)
    return shapes


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_prompts_run_once_and_finished_rows_leave(lively, fed, name):
    family = lively[name]
    prompt = family.batch(ROWS, padding="left")
    rollout = sample(family.reasoner, prompt, num_branches=6)
    lengths = rollout.response_mask.sum(1)
    widths = prompt.attention_mask.sum(1).tolist()
    assert fed[:3] == [(1, width) for width in widths]
    going = [(int((lengths > step).sum()), 1) for step in range(1, int(lengths.max()))]
    assert fed[3:] == going
    fed.clear()
    assert_same(rollout, sample(family.reasoner, prompt, way="uncached", num_branches=6))


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
def test_finished_rows_leave_copies_too(lively, fed, name):
    family = lively[name]
    prompt = family.batch(ROWS, padding="left")
    rollout = sample(family.reasoner, prompt, num_branches=6, share_prompt=False)
    lengths = rollout.response_mask.sum(1)
    for step, (rows, width) in enumerate(fed[3:], start=1):
        going = int((lengths > step).sum())
        assert width == 1
        assert going <= rows <= max(going / 0.75, going + 6)
    assert fed[-1][0] < 18


@pytest.mark.parametrize("share_prompt", [None, False])
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_the_same_whatever_the_number_of_slots(lively, fed, name, share_prompt):
    family = lively[name]
    prompt = family.batch(ROWS, padding="left")
    whole = sample(family.reasoner, prompt, share_prompt=share_prompt)
    for slots, look_every in ((1, 1), (2, 1), (3, 5), (1, 8), (99, 2)):
        fed.clear()
        got = sample(family.reasoner, prompt, share_prompt=share_prompt, slots=slots, look_every=look_every)
        assert_same(whole, got, roundings=rounded(name))
        assert max(rows for rows, _ in fed) <= 4 * slots


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_of_prompts_gives_what_a_batch_gives(lively, name):
    family = lively[name]
    whole = sample(family.reasoner, family.batch(ROWS, padding="left"))
    taken = []

    def stream():
        for row in range(3):
            taken.append(row)
            yield PromptSource(one(family.batch(ROWS, padding="left"), row), seed=3)

    for row, rollout in enumerate(family.reasoner.generate_each(stream(), slots=2, **SAMPLED)):
        if row == 0:
            assert 2 <= len(taken) <= 3  # a prompt is read when a slot is free for it
        assert_same(whole, rollout, rows=slice(4 * row, 4 * row + 4), roundings=rounded(name))
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("share_prompt", [None, False])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_batches_of_a_stream_share_the_slots(lively, fed, slots, share_prompt):
    family = lively["qwen3_vl"]
    batches = [
        dataclasses.replace(family.batch(rows, padding="left"), sample_ids=tuple(names))
        for rows, names in ((ROWS, "abc"), (ROWS[:2], "de"), (ROWS[2:], "f"))
    ]
    alone = [sample(family.reasoner, batch, share_prompt=share_prompt) for batch in batches]
    drained = sum(int(rollout.response_mask.sum(1).max()) - 1 for rollout in alone)
    fed.clear()
    sources = (PromptSource(batch, seed=3) for batch in batches)
    found = list(family.reasoner.generate_each(sources, slots=slots, share_prompt=share_prompt, **SAMPLED))
    for rollout, want in zip(found, alone, strict=True):
        assert_same(want, rollout)
    steps = [rows for rows, width in fed if width == 1]
    assert max(steps) <= 4 * slots
    assert len(steps) < drained or slots == 1  # slots refill across batches


def test_a_long_response_holds_back_few_prompts(lively, monkeypatch):
    family = lively["qwen3_vl"]
    monkeypatch.setattr(generation, "READ_AHEAD", 2)
    prompt = one(family.batch(ROWS, padding="left"), 2)
    taken = []

    def stream():
        for number in range(12):
            taken.append(number)
            yield PromptSource(dataclasses.replace(prompt, sample_ids=(str(number),)), seed=3)

    original = generation.Decoder._end

    def watched(self, row, *more):
        assert len(taken) <= self._given + 4
        original(self, row, *more)

    monkeypatch.setattr(generation.Decoder, "_end", watched)
    lengths = [
        int(rollout.response_mask.sum(1).max())
        for rollout in family.reasoner.generate_each(stream(), slots=2, **{**SAMPLED, "eos_token_id": list(range(64))})
    ]
    assert len(lengths) == 12
    assert max(lengths) > 2 * min(lengths)  # so that some wait for others


def test_what_a_batch_of_a_stream_draws_does_not_depend_on_the_others(lively):
    family = lively["qwen3_vl"]
    prompt = one(family.batch(ROWS, padding="left"), 0)
    ways = {"max_new_tokens": 12, "do_sample": True, "eos_token_id": EOS, "pad_token_id": 0}
    whole = family.reasoner.generate(prompt, num_branches=3, **ways)
    for rollout in family.reasoner.generate_each([PromptSource(prompt)] * 3, slots=2, num_branches=3, **ways):
        assert_same(whole, rollout)
    assert len(set(map(tuple, whole.responses.tolist()))) == 3


SYNCHRONISING = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "unique_consecutive"}


class Waits(TorchDispatchMode):
    """Operations whose result, or whose shape, the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        boolean = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in SYNCHRONISING or boolean:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_step_waits_for_nothing(lively, monkeypatch, do_sample):
    family = lively["qwen3_vl"]
    for module in (sampling, scoring):  # as on a GPU
        monkeypatch.setattr(module, "looks_are_free", lambda tensor: False)
    waits, original, steps = Waits(), generation.Decoder._plain_step, []

    def watched(self, *args):
        steps.append(args)
        with waits:
            return original(self, *args)

    monkeypatch.setattr(generation.Decoder, "_plain_step", watched)
    sample(family.reasoner, family.batch(ROWS, padding="left"), slots=2, look_every=4, do_sample=do_sample, min_p=0.01)
    assert len(steps) > 20
    assert waits.found == []


@pytest.mark.parametrize("greedy", [False, True])
def test_a_step_compiles_without_a_graph_break_and_gives_the_same(lively, monkeypatch, greedy):
    family = lively["qwen3_vl"]
    prompt = family.batch(ROWS, padding="left")
    more = {"do_sample": False, "latent_policy": DeterministicLatents()} if greedy else {}
    more |= {"max_new_tokens": 10, "num_branches": 2}
    graphs, warm = traced_compile(monkeypatch)
    got = sample(family.reasoner, prompt, compile=True, slots=2, look_every=3, **more)
    assert_same(sample(family.reasoner, prompt, **more), got)
    assert warm == [[(4, 10), (2, 10), (1, 10)]]
    assert len(graphs) == 3  # no size was compiled after the warm-up


def traced_compile(monkeypatch):
    """Compile without Inductor; gives the graphs that were compiled, and the sizes that each warm-up ran."""
    graphs, warm, warming = [], [], []
    compile_, warm_up = torch.compile, generation.Decoder.warm_up

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def traced(function, **options):
        assert options == {"fullgraph": True, "dynamic": False, "mode": "default"}
        compiled = compile_(function, fullgraph=True, dynamic=False, backend=backend)

        def run(rows, count, prompts, columns, *more):
            if warming:
                warm[-1].append((count, columns))
            return compiled(rows, count, prompts, columns, *more)

        return run

    def watched(decoder):
        warm.append([])
        warming.append(True)
        warm_up(decoder)
        warming.clear()

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(generation.Decoder, "warm_up", watched)
    return graphs, warm


def test_compiled_slots_that_stay_empty_disturb_nobody(lively, monkeypatch):
    family = lively["qwen3_vl"]
    traced_compile(monkeypatch)
    batch = family.batch(ROWS, padding="left")
    more = {**SAMPLED, "max_new_tokens": 6, "num_branches": 2}
    want = sample(family.reasoner, batch, **{**more, "seed": 3})
    sources = [PromptSource(one(batch, row), seed=3) for row in range(3)]
    for row, rollout in enumerate(family.reasoner.generate_each(sources, slots=5, compile=True, **more)):
        assert_same(want, rollout, rows=slice(2 * row, 2 * row + 2))


def test_every_size_of_a_compiled_step_has_its_bucket():
    sizes = Sizes(slots=3, branches=4, max_new_tokens=700, compiled=True)
    buckets = sizes.buckets()
    assert buckets[0] == (12, 700)
    assert {columns for _, columns in buckets} == {256, 512, 700}
    assert len(set(buckets)) == len(buckets) == 4 * 3
    assert {(sizes.rows(used), sizes.columns(longest)) for used in range(1, 13) for longest in range(1, 701)} == set(
        buckets
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("look_every", [1, 4])
def test_cuda_graphs_give_what_single_operations_give(look_every):
    reasoner = LatentReasoner.from_pretrained("tiny@random").cuda()
    ids = torch.randint(10, 200, (6, 40), generator=torch.Generator().manual_seed(0)).cuda()
    batch = PromptBatch(ids, torch.ones_like(ids))
    how = {"num_branches": 4, "max_new_tokens": 40, "slots": 2, "latent_policy": VonMisesFisherLatents(0.9)}
    how |= {"budget": SpanBudget.loose(3), "force_start": True, "look_every": look_every}
    plain = reasoner.generate(batch, **how)
    for _ in range(2):  # recorded, then replayed
        graphs = reasoner.generate(batch, compile=True, **how)
        torch.testing.assert_close(graphs.responses, plain.responses)
        torch.testing.assert_close(graphs.latents, plain.latents, atol=1e-3, rtol=1e-3)


def test_compile_is_refused_where_it_cannot_be(lively):
    family = lively["qwen3_5"]
    with pytest.raises(ConfigError, match="compile needs branches that share a prompt"):
        sample(family.reasoner, family.batch(ROWS, padding="left"), compile=True)


def test_a_batch_without_prompts_is_an_error(lively):
    none = PromptBatch(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64))
    with pytest.raises(BatchError, match="no prompts to decode"):
        sample(lively["qwen3_vl"].reasoner, none)


def test_streaming_needs_all_prompts_at_once(lively):
    family = lively["qwen3_vl"]
    with pytest.raises(ConfigError, match="on_step needs all 3 prompts at once"):
        sample(family.reasoner, family.batch(ROWS, padding="left"), slots=2, on_step=print)


def test_buffers_hold_prompts_once_and_grow_by_blocks(lively, monkeypatch):
    family = lively["qwen3_vl"]
    made = []
    original = generation.RUNNERS["shared"]

    class Watched(original):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setitem(generation.RUNNERS, "shared", Watched)
    prompt = family.batch(ROWS, padding="left")
    sample(family.reasoner, prompt, num_branches=2, slots=2, max_new_tokens=150, eos_token_id=[-1], budget=None)
    for layer in made[0].layers:
        prompts, own = layer.prompt[0], layer.own[0]
        assert prompts.shape[0] == 2
        assert prompts.shape[2] == prompt.input_ids.shape[1]
        assert (own.shape[0], own.shape[2]) == (4, 150)  # blocks of 128, but never more than a response can have
