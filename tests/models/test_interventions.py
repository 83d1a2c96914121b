"""Interventions on latents: what is fed, to whom, and that nothing changes without one."""

import pytest
import torch
from decoded import END, LATENT, ROWS, START, WAYS, assert_same, livelier, one, sample
from families import make_family
from safetensors.torch import save_file

from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.models import (
    FutureLatents,
    LatentBank,
    LatentIntervention,
    LatentPlaces,
    MeanLatents,
    NoiseLatents,
    OtherLatents,
    SpanBudget,
    ZeroLatents,
)
from futurel1.models.interventions import make_intervention
from futurel1.models.policies import DeterministicLatents, GaussianLatents, VonMisesFisherLatents
from rounding import assert_same_but_rounding

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def family():
    return livelier(make_family("qwen3_vl"))


@pytest.fixture(scope="module")
def prompt(family):
    return named(family.batch(ROWS, padding="left"), NAMES)


def named(batch, names):
    batch.sample_ids = tuple(names)
    return batch


@pytest.fixture(scope="module")
def own(family, prompt):
    return sample(family.reasoner, prompt, force_start=True)


def numbered_bank(width, counts, names=NAMES, videos=None):
    """Latent j of response i holds 10 i + j + 1 everywhere; each is of a video of its own, or of `videos`."""
    values = [(10.0 * row + torch.arange(count) + 1)[:, None].expand(-1, width) for row, count in enumerate(counts)]
    return LatentBank.from_responses(names, values, [[video] for video in videos or names])


def random_bank(width, counts=(40, 0, 25)):
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.1, 3, width)
    return LatentBank.from_responses(
        NAMES,
        [torch.randn(count, width, generator=generator) * scale + scale for count in counts],
        [[name] for name in NAMES],
    )


def places(rows, numbers):
    """Latents of the first span of each row."""
    return LatentPlaces(rows, numbers, torch.zeros_like(rows), numbers)


class Watched(LatentIntervention):
    """Says whose latent it is: row, number, span and step in the first four dimensions."""

    kind = "watched"

    def __init__(self):
        self.begun = []

    def begin(self, sample_ids, num_branches):
        self.begun.append((sample_ids, num_branches))

    def __call__(self, latents, at):
        assert latents.shape == (len(at.rows), latents.shape[1])
        assert all(place.dtype == torch.int64 for place in at)
        told = torch.zeros_like(latents)
        told[:, :4] = torch.stack(at, dim=1)
        return told


@pytest.mark.parametrize("way", WAYS)
def test_rows_and_numbers_survive_rows_that_leave(family, prompt, way):
    watched = Watched()
    rollout = sample(family.reasoner, prompt, force_start=True, intervention=watched, way=way)
    assert watched.begun == [(list(NAMES), 4)]
    # rows that finish at different steps, and several spans in one response: the count goes on through all of them
    assert len(set(rollout.response_mask.sum(1).tolist())) > 4
    assert int(rollout.span_ids.max()) >= 1
    counts = rollout.latent_mask.sum(1).tolist()
    for row, count in enumerate(counts):
        assert rollout.latents[row, :count, 0].tolist() == [row] * count
        assert rollout.latents[row, :count, 1].tolist() == list(range(count))
        spans = rollout.span_ids[row, :count]
        assert torch.equal(rollout.latents[row, :count, 2], spans.float())
        steps = [int((spans[:place] == spans[place]).sum()) for place in range(count)]
        assert rollout.latents[row, :count, 3].tolist() == steps


def test_prompts_without_ids_are_named_by_what_they_are(family):
    watched = Watched()
    batch = family.batch([[5, 6, START]], padding="left")
    sample(family.reasoner, batch, intervention=watched)
    assert watched.begun == [([str([5, 6, START])], 4)]


def test_without_an_intervention_nothing_changes(family, prompt, own):
    class Same(LatentIntervention):
        kind = "same"

        def __call__(self, latents, at):
            return latents

    again = sample(family.reasoner, prompt, force_start=True, intervention=Same())
    assert_same(own, again, roundings=0)
    assert int(own.latent_mask.sum()) > 20


@pytest.mark.parametrize("way", WAYS)
def test_zeros_are_fed_and_recorded(family, prompt, own, monkeypatch, way):
    honest = type(family.reasoner.backbone).run
    inputs = []

    def spy(self, embeds, *args, **more):
        inputs.append(embeds)
        return honest(self, embeds, *args, **more)

    monkeypatch.setattr(type(family.reasoner.backbone), "run", spy)
    single = one(prompt, 2)  # it ends with START, so the first step is a latent
    rollout = sample(
        family.reasoner, single, num_branches=1, do_sample=False, max_new_tokens=3, eos_token_id=[],
        budget=SpanBudget.fixed(2), latent_policy=DeterministicLatents(), intervention=ZeroLatents(), way=way,
    )  # fmt: skip
    assert rollout.responses[0].tolist() == [LATENT, LATENT, END]
    assert len(inputs) == 3
    for fed in inputs[1:]:
        assert not fed[0, -1].any()
    assert inputs[0][0, -1].any()
    zeroed = sample(family.reasoner, prompt, force_start=True, intervention=ZeroLatents(), way=way)
    assert zeroed.latent_mask.any()
    assert not zeroed.latents.any()
    assert zeroed.responses.tolist() != own.responses.tolist()


@pytest.mark.parametrize("kind", ["zero", "mean", "noise", "other"])
def test_all_layouts_and_batches_agree(family, prompt, kind):
    bank = random_bank(family.reasoner.hidden_size)
    make = {
        "zero": ZeroLatents, "mean": lambda: MeanLatents(bank), "noise": lambda: NoiseLatents(bank, 4),
        "other": lambda: OtherLatents(bank),
    }[kind]  # fmt: skip
    assert make().kind == kind
    more = {"force_start": True, "latent_policy": DeterministicLatents()}
    whole = sample(family.reasoner, prompt, intervention=make(), **more)
    assert whole.latent_mask.any()
    for way in ("copied", "uncached"):
        assert_same(whole, sample(family.reasoner, prompt, intervention=make(), **more, way=way))
    for row, name in enumerate(NAMES):
        alone = sample(family.reasoner, named(one(prompt, row), [name]), intervention=make(), **more)
        assert_same(whole, alone, slice(4 * row, 4 * row + 4))


def test_the_mean_is_that_of_real_latents(family, prompt):
    bank = numbered_bank(family.reasoner.hidden_size, (2, 0, 3))
    assert bank.mean.tolist() == pytest.approx([(1 + 2 + 21 + 22 + 23) / 5] * family.reasoner.hidden_size)
    rollout = sample(family.reasoner, prompt, force_start=True, intervention=MeanLatents(bank))
    fed = rollout.latents[rollout.latent_mask]
    assert torch.equal(fed, bank.mean.expand_as(fed))


# ---------------------------------------------------------------------- noise


def noise(bank, seed, names, numbers, branches=1):
    intervention = NoiseLatents(bank, seed)
    intervention.begin(names, branches)
    at = places(torch.arange(len(numbers)), torch.tensor(numbers))
    return intervention(torch.zeros(len(numbers), bank.width), at)


def test_noise_belongs_to_sample_number_and_seed():
    bank = random_bank(16)
    whole = noise(bank, 3, ["a", "b", "c"], [0, 5, 2])
    assert torch.equal(noise(bank, 3, ["c", "b"], [2, 5]), whole[[2, 1]])
    for other in (noise(bank, 4, ["a"], [0]), noise(bank, 3, ["a"], [1]), noise(bank, 3, ["d"], [0])):
        assert (other - whole[:1]).abs().min() > 1e-6
    # branches of one prompt, and a prompt that is there twice, are one sample
    assert torch.equal(noise(bank, 3, ["a"], [0, 0], branches=2), whole[[0, 0]])
    assert torch.equal(noise(bank, 3, ["a", "a"], [0, 0]), whole[[0, 0]])


def test_noise_has_the_banks_mean_and_standard_deviation():
    bank = random_bank(12)
    real = torch.cat([bank.latents[0], bank.latents[2, :25]]).double()
    assert_same_but_rounding(bank.std, real.var(dim=0, correction=0).sqrt())
    names = [f"sample {number}" for number in range(20000)]
    drawn = noise(bank, 0, names, [0] * 10000 + [1] * 10000).double()
    # standard errors of mean and standard deviation: 0.7 % and 0.5 % of the latter
    assert ((drawn.mean(dim=0) - bank.mean) / bank.std).abs().max() < 4 * 20000**-0.5
    assert (drawn.std(dim=0) / bank.std - 1).abs().max() < 4 * 40000**-0.5
    standardised = (drawn - bank.mean) / bank.std
    correlation = standardised.T @ standardised / len(names) - torch.eye(12)
    assert correlation.abs().max() < 6 * 20000**-0.5
    assert (standardised**4).mean() == pytest.approx(3, abs=0.1)  # a normal distribution's


def test_noise_is_not_what_tokens_or_latents_are_drawn_with():
    from futurel1.models.noise import RowNoise, normal, row_keys

    bank = LatentBank.from_responses(["x"], [torch.tensor([[-1.0] * 64, [1.0] * 64])])
    drawn = noise(bank, 3, ["a"], [0])[0].double()
    keys = row_keys(3, ["a"], 1)
    for key in (keys, keys ^ -1):
        other = normal(RowNoise(key, 0), 64)[0]
        assert abs(float(torch.corrcoef(torch.stack([drawn, other]))[0, 1])) < 0.5


# ---------------------------------------------------------------------- another sample's


def test_other_is_the_next_sample_and_never_the_own_one(family, prompt):
    bank = numbered_bank(family.reasoner.hidden_size, (2, 3, 1))
    rollout = sample(family.reasoner, prompt, force_start=True, intervention=OtherLatents(bank))
    counts = rollout.latent_mask.sum(1).tolist()
    assert max(counts) > 3
    donors = {0: [11, 12, 13], 1: [21], 2: [1, 2]}
    for row, count in enumerate(counts):
        values = donors[row // 4]
        want = [values[min(number, len(values) - 1)] for number in range(count)]
        assert rollout.latents[row, :count, 0].tolist() == want


def test_others_go_round_in_the_order_of_ids_and_need_latents():
    bank = numbered_bank(4, (1, 0, 2, 1), ("d", "b", "a", "e"))
    other = OtherLatents(bank)
    assert [other.donor(name) for name in ("a", "b", "d", "e")] == ["d", "d", "e", "a"]
    alone = OtherLatents(numbered_bank(4, (1, 0), ("d", "b")))
    assert alone.donor("b") == "d"
    with pytest.raises(ConfigError, match=r"no latents of another video than that of 'd', of 2 responses"):
        alone.begin(["b", "d"], 1)
    with pytest.raises(ConfigError, match="no latents of another video"):
        OtherLatents(numbered_bank(4, (0, 0), ("d", "b"))).begin(["d"], 1)
    with pytest.raises(ConfigError, match="does not have the sample 'x', so its video is not known"):
        other.begin(["a", "x"], 1)


@pytest.mark.parametrize("questions", [1, 2, 3, 5])
@pytest.mark.parametrize("names", ["{0}", "{0:03d}", "{1}-{0}", "{2}-{0}"])
def test_the_other_sample_is_of_another_video(questions, names):
    """Whatever the ids look like: numbered through, by video, or with the questions of a video far apart."""
    videos = [number // questions for number in range(4 * questions)]
    ids = [names.format(number, video, number % questions) for number, video in enumerate(videos)]
    bank = numbered_bank(4, [1] * len(ids), ids, [f"{video}.mp4" for video in videos])
    other = OtherLatents(bank)
    video_of = dict(zip(ids, videos, strict=True))
    for name in ids:
        assert video_of[other.donor(name)] != video_of[name]
        # the next one in the order of ids of which that holds
        ordered = sorted(ids)
        ordered = ordered[ordered.index(name) + 1 :] + ordered[: ordered.index(name)]
        assert other.donor(name) == next(found for found in ordered if video_of[found] != video_of[name])


def test_one_shared_source_is_enough_to_be_no_donor():
    values = [torch.full((1, 4), float(number)) for number in range(4)]
    sources = [["a.png", "b.png"], ["b.png", "c.png"], ["a.png"], []]
    bank = LatentBank.from_responses(["1", "2", "3", "4"], values, sources)
    assert [OtherLatents(bank).donor(name) for name in bank.ids] == ["4", "3", "4", "1"]


def test_a_bank_that_does_not_say_its_videos_gives_no_other_latents(tmp_path):
    known = numbered_bank(4, (1, 1, 1))
    file = tmp_path / "earlier.safetensors"
    save_file({"latents": known.latents, "counts": known.counts}, file, metadata={"ids": '["a", "b", "c"]'})
    unknown = LatentBank.load(file)
    assert unknown.sources is None
    for bank in (unknown, LatentBank.merge([known, unknown])):
        MeanLatents(bank)
        with pytest.raises(ConfigError, match="write it anew with save_latents"):
            OtherLatents(bank)
    merged = LatentBank.merge([known, numbered_bank(4, (1,), ("b",), ("v.mp4",))])
    assert merged.sources == (("a",), ("v.mp4",), ("c",))
    again = LatentBank.load(merged.save(tmp_path / "whole.safetensors"))
    assert again.sources == merged.sources
    with pytest.raises(ConfigError, match="3 responses has the sources of 2"):
        LatentBank(known.ids, known.latents, known.counts, (("a",), ("b",)))


# ---------------------------------------------------------------------- features of future frames


def futures(width, lengths):
    """Feature i of frame m of prompt p holds 100 p + 10 m + i + 1 everywhere."""
    return {
        name: [
            (100.0 * prompt + 10 * frame + torch.arange(length) + 1)[:, None].expand(-1, width)
            for frame, length in enumerate(own)
        ]
        for prompt, (name, own) in enumerate(zip(NAMES, lengths, strict=True))
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("slots", [None, 1, 2])
def test_features_are_fed_frame_by_frame_and_latents_beyond_them_stay(family, prompt, way, slots):
    known = ([2, 1], [3], [1, 4, 2])
    oracle = FutureLatents("oracle", futures(family.reasoner.hidden_size, known))
    rollout = sample(family.reasoner, prompt, force_start=True, intervention=oracle, way=way, slots=slots)
    assert int(rollout.span_ids.max()) >= 1
    kept = []
    for row, count in enumerate(rollout.latent_mask.sum(1).tolist()):
        spans = rollout.span_ids[row, :count].tolist()
        own = 0
        for place, span in enumerate(spans):
            step = place - spans.index(span)
            fed = rollout.latents[row, place]
            if span < len(known[row // 4]) and step < known[row // 4][span]:
                assert torch.equal(fed, torch.full_like(fed, 100 * (row // 4) + 10 * span + step + 1))
            else:
                own += 1
                assert fed.abs().max() < 50
                assert len(fed.unique()) > 1
        kept.append(own)
    assert oracle.kept.tolist() == kept
    assert 0 < sum(kept) < int(rollout.latent_mask.sum())


def test_prompts_without_features_are_named(family, prompt):
    known = futures(family.reasoner.hidden_size, ([1], [2], [1]))
    del known["b"]
    with pytest.raises(ConfigError, match=r"no future frames are known of 'b' \(1 of 3 prompts\); swap needs"):
        sample(family.reasoner, prompt, force_start=True, intervention=FutureLatents("swap", known))
    with pytest.raises(ConfigError, match="5 wide and the model's latents"):
        sample(family.reasoner, prompt, force_start=True, intervention=FutureLatents("oracle", futures(5, ([1],) * 3)))
    with pytest.raises(ConfigError, match="one of oracle, swap, got 'zero'"):
        FutureLatents("zero", known)


# ---------------------------------------------------------------------- markers alone


@pytest.mark.parametrize("way", WAYS)
def test_a_budget_of_zero_keeps_the_markers_alone(family, prompt, way):
    rollout = sample(family.reasoner, prompt, force_start=True, budget=SpanBudget.fixed(0), way=way)
    assert rollout.latents.shape == (12, 0, family.reasoner.hidden_size)
    assert rollout.latent_mask.shape == rollout.span_ids.shape == rollout.latent_log_probs.shape == (12, 0)
    assert not rollout.slot_mask.any()
    start = (rollout.responses == START) & rollout.response_mask
    followed = rollout.response_mask[:, 1:] & start[:, :-1]
    assert followed.sum() > 12
    assert (rollout.responses[:, 1:][followed] == END).all()
    assert (rollout.responses[8:, 0] == END).all()  # the prompt itself ends with START
    assert not rollout.chosen_mask[:, 1:][followed].any()
    assert rollout.span_table[:, 2].eq(0).all()
    ended = rollout.span_table[rollout.span_table[:, 3] >= 0]
    assert ended[:, 4].eq(1).all()
    assert torch.equal(ended[:, 3], ended[:, 1] + 1)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("policy", [DeterministicLatents(), VonMisesFisherLatents(0.8), GaussianLatents(0.2)])
@pytest.mark.parametrize("control", ["markers", "zero", "noise"])
def test_controlled_rollouts_are_scored_as_recorded(family, prompt, control, policy, share):
    bank = random_bank(family.reasoner.hidden_size)
    more = {
        "markers": {"budget": SpanBudget.fixed(0)}, "zero": {"intervention": ZeroLatents()},
        "noise": {"intervention": NoiseLatents(bank, 0)},
    }[control]  # fmt: skip
    rollout = sample(family.reasoner, prompt, force_start=True, latent_policy=policy, **more)
    scores = family.reasoner.score_rollout(prompt, rollout, share_prompt=share)
    assert_same_but_rounding(scores.log_probs, rollout.log_probs)
    assert_same_but_rounding(scores.latent_log_probs, rollout.latent_log_probs)
    scores.log_probs.sum().backward()


# ---------------------------------------------------------------------- banks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bank_survives_its_file(tmp_path, dtype):
    bank = LatentBank.from_responses(["β", "a"], [torch.randn(2, 4).to(dtype), torch.randn(3, 4).to(dtype)])
    again = LatentBank.load(bank.save(tmp_path / "new" / "latents.safetensors"))
    assert again.ids == ("β", "a")
    assert again.latents.dtype == dtype
    assert torch.equal(again.latents, bank.latents)
    assert again.counts.tolist() == [2, 3]
    assert (len(again), again.width) == (2, 4)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["latents.safetensors"]


def test_a_bank_without_any_latent_is_kept_but_gives_none(tmp_path):
    bank = LatentBank.load(numbered_bank(4, (0, 0, 0)).save(tmp_path / "none.safetensors"))
    assert bank.latents.shape == (3, 0, 4)
    for make in (MeanLatents, NoiseLatents):
        with pytest.raises(ConfigError, match="3 responses without a single latent"):
            make(bank)


def test_a_folder_is_the_bank_of_all_ranks(tmp_path):
    numbered_bank(4, (2, 1), ("a", "b")).save(tmp_path / "latents.safetensors")
    numbered_bank(4, (0, 3), ("b", "c")).save(tmp_path / "latents-rank1.safetensors")
    bank = LatentBank.load(tmp_path)
    assert dict(zip(bank.ids, bank.counts.tolist(), strict=True)) == {"b": 1, "c": 3, "a": 2}
    numbered_bank(6, (1,), ("d",)).save(tmp_path / "latents-rank2.safetensors")
    with pytest.raises(CheckpointError, match=r"one width, got \[4, 6\]"):
        LatentBank.load(tmp_path)


def test_files_that_are_no_banks(tmp_path):
    with pytest.raises(MissingFileError, match="save_latents"):
        LatentBank.load(tmp_path / "latents.safetensors")
    with pytest.raises(MissingFileError, match="save_latents"):
        LatentBank.load(tmp_path)
    file = numbered_bank(4, (2, 1, 3)).save(tmp_path / "whole.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-7])
    weights = tmp_path / "weights.safetensors"
    save_file({"latents": torch.zeros(1, 1, 4)}, weights)
    odd = tmp_path / "odd.safetensors"
    save_file({"latents": torch.zeros(1, 1, 4), "counts": torch.tensor([2])}, odd, metadata={"ids": '["a"]'})
    for broken in (cut, weights, odd):
        with pytest.raises(CheckpointError, match=f"{broken.name} is damaged or no bank"):
            LatentBank.load(broken)


@pytest.mark.parametrize(
    ("ids", "latents", "counts", "message"),
    [
        (("a",), torch.zeros(2, 1, 4), torch.ones(2), "1 responses needs"),
        (("a",), torch.zeros(1, 4), torch.ones(1), "needs latents"),
        (("a", "a"), torch.zeros(2, 1, 4), torch.ones(2), "'a' is there twice"),
        (("a",), torch.zeros(1, 1, 4), torch.tensor([-1]), "between 0 and 1"),
        (("a",), torch.full((1, 1, 4), torch.nan), torch.ones(1), "not finite"),
    ],
)
def test_banks_that_contradict_themselves(ids, latents, counts, message):
    with pytest.raises(ConfigError, match=message):
        LatentBank(ids, latents, counts)


@pytest.mark.parametrize("make", [MeanLatents, NoiseLatents, OtherLatents])
def test_latents_of_another_model_are_refused(family, prompt, make):
    with pytest.raises(ConfigError, match=f"6 wide and the model's {family.reasoner.hidden_size}"):
        sample(family.reasoner, prompt, force_start=True, intervention=make(numbered_bank(6, (1, 1, 1))))


def test_what_an_intervention_returns_is_checked(family, prompt):
    class Short(ZeroLatents):
        def __call__(self, latents, at):
            return latents[:, :1]

    with pytest.raises(ConfigError, match="Short returned latents of shape"):
        sample(family.reasoner, prompt, force_start=True, intervention=Short())


def test_interventions_by_name():
    bank = random_bank(8)
    assert make_intervention("none", None, 0) is None
    assert [make_intervention(kind, None, 0) for kind in ("markers", "oracle", "swap")] == [None] * 3
    for kind, made in (("zero", ZeroLatents), ("mean", MeanLatents), ("noise", NoiseLatents), ("other", OtherLatents)):
        assert type(make_intervention(kind, bank, 0)) is made
        if kind != "zero":
            with pytest.raises(ConfigError, match=f"'{kind}' needs a bank"):
                make_intervention(kind, None, 0)
    with pytest.raises(ConfigError, match=r"must be one of .* got 'others'"):
        make_intervention("others", bank, 0)


def test_half_precision_is_kept():
    bank = random_bank(8)
    oracle = FutureLatents("oracle", {"a": [torch.ones(1, 8)]})
    for intervention in (ZeroLatents(), MeanLatents(bank), NoiseLatents(bank, 0), OtherLatents(bank), oracle):
        intervention.begin(["a"], 1)
        out = intervention(torch.ones(1, 8, dtype=torch.bfloat16), places(torch.tensor([0]), torch.tensor([0])))
        assert (out.dtype, out.shape) == (torch.bfloat16, (1, 8))
