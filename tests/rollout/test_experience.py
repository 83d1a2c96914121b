"""Groups and micro-batches: cut apart, put together, stored and scored without a difference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import NAN, PAD, Policy, assert_equal, prompt, rollout_of, stored

from futurel1.data.encoded import EncodedSample
from futurel1.data.pictures import Pictures, PixelScale
from futurel1.errors import BatchError, CheckpointError
from futurel1.models import LatentReasoner, SpanBudget, Vision, VisionFeatures
from futurel1.models.policies import DeterministicLatents, VonMisesFisherLatents
from futurel1.rollout import Experience, Group, join_groups, split_rollout
from futurel1.rollout.experience import join_rollouts, join_vision, move_vision, prompt_batch

CPU = torch.device("cpu")
POLICY = DeterministicLatents()


# ---------------------------------------------------------------------- rollouts


@settings(max_examples=50)
@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=5), branches=st.integers(1, 4))
def test_rollouts_that_were_joined_are_split_into_the_same_ones(seeds, branches):
    parts = [rollout_of(seed, branches, POLICY) for seed in seeds]
    joined = join_rollouts(parts, PAD)
    assert len(joined) == len(seeds) * branches
    assert joined.responses.shape[1] == max(part.responses.shape[1] for part in parts)
    assert joined.latents.shape[1] == max(part.latents.shape[1] for part in parts)
    assert not joined.responses[~joined.response_mask].any()
    assert (joined.span_ids[~joined.latent_mask] == -1).all()
    assert not joined.latents[~joined.latent_mask].any()
    assert not (joined.slot_mask | joined.chosen_mask)[~joined.response_mask].any()
    assert_equal(split_rollout(joined), parts)
    # a span stays where its row went
    for row, start, latents, *_ in joined.span_table.tolist():
        assert joined.latent_mask[row].sum() == latents
        assert joined.slot_mask[row, start + 1 : start + 1 + latents].all()
    assert_equal(join_rollouts(split_rollout(joined), PAD), joined)


def test_padding_is_filled_with_the_token_that_pads():
    joined = join_rollouts([rollout_of(seed, 1, POLICY) for seed in range(5)], 777)
    assert (~joined.response_mask).any()
    assert torch.equal(joined.responses == 777, ~joined.response_mask)


def test_a_split_rollout_keeps_nothing_of_the_others_in_memory():
    joined = join_rollouts([rollout_of(seed, 2, POLICY) for seed in range(6)], PAD)
    part = split_rollout(joined)[0]
    assert part.latents.untyped_storage().nbytes() == part.latents.numel() * part.latents.element_size()
    part.responses.fill_(99)
    assert not (joined.responses[:2] == 99).all()


@pytest.mark.parametrize(("name", "value"), [("num_branches", 4), ("temperature", 0.5)])
def test_rollouts_of_other_settings_cannot_be_joined(name, value):
    one, other = (rollout_of(seed, 2, POLICY) for seed in (0, 1))
    setattr(other, name, value)
    with pytest.raises(BatchError, match=rf"rollouts of {name} \[.*\] cannot be joined; resume with the settings"):
        join_rollouts([one, other], PAD)


# ---------------------------------------------------------------------- vision


def features(seed, counts, levels=2, seconds=False):
    generator = torch.Generator().manual_seed(seed)
    rows = sum(counts)
    return VisionFeatures(
        torch.randn(rows, 4, generator=generator),
        tuple(torch.randn(rows, 4, generator=generator) for _ in range(levels)),
        torch.tensor([[1, 2, 2 * count] for count in counts]),
        tuple(counts),
        torch.rand(len(counts), generator=generator) if seconds else None,
    )


SCALE = PixelScale(2, (127.5,) * 3, (127.5,) * 3, 1.0)


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("seconds", [True, False])
def test_features_of_prompts_are_joined_in_their_order(levels, seconds):
    # one image; nothing; two images and a video; two videos
    images = features(0, (3,), levels), features(1, (1, 2), levels)
    videos = features(2, (2,), levels, seconds), features(3, (4, 1), levels, seconds)
    parts = [Vision(images[0]), Vision(), Vision(images[1], videos[0]), Vision(None, videos[1])]
    joined = join_vision(parts)
    assert joined.images.counts == (3, 1, 2)
    assert torch.equal(joined.images.embeds, torch.cat([part.embeds for part in images]))
    assert len(joined.images.deepstack) == levels
    assert torch.equal(joined.videos.grid_thw, torch.cat([part.grid_thw for part in videos]))
    if seconds:
        assert torch.equal(joined.videos.seconds_per_grid, torch.cat([part.seconds_per_grid for part in videos]))
    assert_equal(join_vision([joined]), joined)
    assert_equal(move_vision(parts[2], CPU), parts[2])


def test_text_alone_has_no_features_and_missing_features_are_made_again_for_all():
    assert_equal(join_vision([Vision(), Vision()]), Vision())
    assert join_vision([Vision(), None]) is None
    assert move_vision(None, CPU) is None


# ---------------------------------------------------------------------- groups


def test_tokens_that_are_trained_on():
    group = Policy(lambda index: (1.0, 0.0, 1.0)).group(5)
    rollout = group.rollout
    rollout.chosen_mask[0] = False  # a latent of a span of fixed length is no decision, but is trained on
    each = (rollout.chosen_mask | rollout.slot_mask).sum(dim=1)
    assert each[0] == rollout.slot_mask[0].sum()
    assert group.num_tokens == each.sum()
    group.valid = torch.tensor([True, False, True])
    assert group.num_tokens == each[0] + each[2]


def test_a_group_comes_back_from_a_checkpoint_as_it_was():
    policy = Policy(lambda index: (1.0, 0.0, NAN))
    group = policy.group(3)
    group.old_log_probs = -torch.rand(group.rollout.responses.shape)
    group.reference_log_probs = torch.zeros(group.rollout.responses.shape)
    state = stored(group.state_dict())
    back = Group.from_state_dict(state, group.sample, policy.latent_policy, CPU)
    assert back.sample is group.sample
    assert back.rollout.policy is policy.latent_policy
    assert back.vision is back.reference_log_probs is None
    assert_equal(back.state_dict(), group.state_dict())
    assert_equal(back.rollout, group.rollout)
    assert back.rollout.latent_log_probs.dtype == torch.float64
    assert back.num_tokens == group.num_tokens


def test_a_group_is_not_put_on_another_prompt():
    policy = Policy()
    state = policy.group(3, prompt("records:3", 4)).state_dict()
    with pytest.raises(CheckpointError, match=r"rollouts of records:3, but .* is now records:4; resume with the same"):
        Group.from_state_dict(state, prompt("records:4", 4), policy.latent_policy, CPU)


# ---------------------------------------------------------------------- micro-batches


def test_a_micro_batch_holds_its_groups_one_after_the_other():
    policy = Policy(lambda index: (1.0, 0.0, NAN))
    groups = [policy.group(index, prompt(f"records:{index}", 3 + index)) for index in (2, 0, 1)]
    groups[1].old_log_probs = -torch.rand(groups[1].rollout.responses.shape)
    groups[1].old_latent_log_probs = torch.rand(groups[1].rollout.latent_mask.shape).double()
    joined = join_groups(groups, pad_token_id=PAD, device=CPU, total_tokens=50, statistics={"a": 1.0})
    assert len(joined) == 9
    assert joined.prompt.sample_ids == ("records:2", "records:0", "records:1")
    assert joined.prompt.attention_mask.sum(dim=1).tolist() == [5, 3, 4]
    assert joined.prompt.attention_mask[1].tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(joined.advantages, torch.cat([group.advantages for group in groups]))
    assert joined.valid.tolist() == [True, True, False] * 3
    assert (joined.total_tokens, joined.statistics) == (50, {"a": 1.0})
    assert joined.reference_log_probs is None
    # who has no scores was sampled by the current policy
    width = groups[1].rollout.responses.shape[1]
    assert torch.equal(joined.old_log_probs[3:6, :width], groups[1].old_log_probs)
    for rows in (slice(0, 3), slice(6, 9)):
        assert joined.old_log_probs[rows][joined.rollout.response_mask[rows]].isnan().all()
    slots = groups[1].rollout.latent_mask.shape[1]
    assert torch.equal(joined.old_latent_log_probs[3:6, :slots], groups[1].old_latent_log_probs)
    assert joined.old_latent_log_probs.dtype == torch.float64
    assert joined.vision.images.embeds[:, 0].tolist() == [2, 2, 0, 0, 1, 1]


def test_experience_stays_on_its_device():
    group = Policy().group(0)
    joined = join_groups([group], pad_token_id=PAD, device=CPU, total_tokens=1)
    assert joined.to("cpu") is joined
    with pytest.raises(BatchError, match="sampled on cpu, it cannot be used on meta"):
        joined.to("meta")


# ---------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def tiny():
    return LatentReasoner.from_pretrained("tiny@random")


def visual_prompt(reasoner, name, seed, words, images=(), videos=()):
    """A prompt of random words, pictures of (h, w) and videos of (t, h, w) patches."""
    ids = reasoner.processor.tokenizer.convert_tokens_to_ids
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.randint(300, 800, (words,), generator=generator).tolist()
    for height, width in images:
        sequence += [ids("<|vision_start|>"), *[ids("<|image_pad|>")] * (height * width // 4), ids("<|vision_end|>")]
    for frames, height, width in videos:
        for _ in range(frames):
            sequence += [ids("<|vision_start|>"), *[ids("<|video_pad|>")] * (height * width // 4)]
            sequence += [ids("<|vision_end|>")]
    sequence += torch.randint(300, 800, (3,), generator=generator).tolist()
    visual = {}
    if images:
        patches = [(height * width, 1536) for height, width in images]
        levels = [torch.randint(256, size, dtype=torch.uint8, generator=generator) for size in patches]
        visual["images"] = Pictures(tuple(levels), torch.tensor([(1, *size) for size in images]), SCALE)
    if videos:
        grid = torch.tensor(videos)
        pixels = torch.randn(int(grid.prod(dim=1).sum()), 1536, generator=generator)
        visual |= {"video_grid_thw": grid, "pixel_values_videos": pixels}
    row = torch.tensor(sequence)
    return EncodedSample(name, row, torch.full_like(row, -100), len(row), **visual)


@pytest.fixture(scope="module")
def sampled(tiny):
    """Four prompts of every kind, decoded together and cut into groups."""
    samples = [
        visual_prompt(tiny, "one image", 0, 5, images=[(4, 4)]),
        visual_prompt(tiny, "text", 1, 9),
        visual_prompt(tiny, "two images and a video", 2, 2, images=[(2, 4), (4, 2)], videos=[(2, 4, 4)]),
        visual_prompt(tiny, "a video", 3, 12, videos=[(1, 4, 6)]),
    ]
    batch = prompt_batch(samples, tiny.processor.tokenizer.pad_token_id, CPU)
    vision = tiny.encode(batch)
    rollout = tiny.generate(
        batch, num_branches=3, max_new_tokens=12, do_sample=True, budget=SpanBudget.loose(3), force_start=True, seed=1,
        latent_policy=VonMisesFisherLatents(0.8), vision=vision, eos_token_id=list(range(300, 420)),
    )  # fmt: skip
    assert len(rollout.response_mask.sum(dim=1).unique()) > 2
    pad = tiny.processor.tokenizer.pad_token_id
    with torch.no_grad():
        features = [tiny.encode(prompt_batch([sample], pad, CPU)) for sample in samples]
    return [
        Group(
            prompt_index=index, sample=samples[index], rollout=part, parts={}, rewards=torch.zeros(3),
            valid=torch.ones(3, dtype=torch.bool), advantages=torch.zeros(3), vision=features[index],
        )
        for index, part in enumerate(split_rollout(rollout))
    ]  # fmt: skip


def scores(reasoner, groups):
    joined = join_groups(groups, pad_token_id=reasoner.processor.tokenizer.pad_token_id, device=CPU, total_tokens=1)
    with torch.no_grad():
        return joined, reasoner.score_rollout(joined.prompt, joined.rollout, vision=joined.vision)


def test_groups_score_the_same_together_and_alone(tiny, sampled):
    for order in ([0, 1, 2, 3], [3, 1], [2, 0, 1]):
        joined, together = scores(tiny, [sampled[place] for place in order])
        assert isinstance(joined, Experience)
        for place, group in enumerate(sampled[number] for number in order):
            _, alone = scores(tiny, [group])
            rows = slice(3 * place, 3 * place + 3)
            for name in ("log_probs", "latent_log_probs"):
                own = getattr(alone, name)
                found = getattr(together, name)[rows]
                torch.testing.assert_close(found[:, : own.shape[1]], own, atol=1e-4, rtol=1e-6)
                assert not found[:, own.shape[1] :].any()
            torch.testing.assert_close(alone.log_probs, group.rollout.log_probs, atol=1e-4, rtol=0)


def test_kept_features_score_as_fresh_ones_and_the_tower_does_not_run(tiny, sampled, monkeypatch):
    joined, kept = scores(tiny, sampled)
    fresh = tiny.score_rollout(joined.prompt, joined.rollout).log_probs
    torch.testing.assert_close(kept.log_probs, fresh, atol=1e-5, rtol=0)
    assert kept.log_probs[joined.rollout.chosen_mask].lt(0).all()

    def encode(batch):
        raise AssertionError("the tower ran")

    monkeypatch.setattr(tiny, "encode", encode)
    again = scores(tiny, sampled)[1].log_probs
    assert torch.equal(again, kept.log_probs)
