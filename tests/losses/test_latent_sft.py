"""The supervised objective on hand-made batches: values, gradients, feedback, equivalences."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from families import make_family
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from futurel1 import LatentReasoner
from futurel1.data import SFTBatch
from futurel1.errors import BatchError, ConfigError
from futurel1.losses import LatentSFTLoss, latent_sft, linear_cross_entropy
from futurel1.models import Backbone, VisionFeatures, previous
from futurel1.modules.adapters import enable_gradient_checkpointing
from rounding import assert_same_but_rounding, assert_same_gradients

pytestmark = pytest.mark.numerics
PATCH = 3 * 2 * 16 * 16
SMALL, TALL, WIDE = (1, 2, 2), (1, 4, 2), (1, 2, 6)
"""Grids of hints with 1, 2 and 3 visual tokens."""


@pytest.fixture(scope="module")
def tiny() -> LatentReasoner:
    """Identity head; shared, so never change it."""
    return LatentReasoner.from_pretrained("tiny@random")


@pytest.fixture(scope="module")
def headed() -> LatentReasoner:
    """SwiGLU head; shared, so never change it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LatentReasoner.from_pretrained("tiny@random", projection_head="swiglu", projection_hidden_dim=64)


@dataclass(frozen=True)
class Row:
    """One sequence and the patches of its image and hints."""

    ids: Tensor
    labels: Tensor
    image: Tensor | None
    hints: list[Tensor]
    grids: list[tuple[int, int, int]]


def make_row(
    reasoner: LatentReasoner,
    seed: int,
    hints: Sequence[tuple[int, int, int]] = (TALL, SMALL),
    *,
    text: int = 4,
    image: bool = True,
    latents: Sequence[int] | None = None,
    labelled: bool = True,
) -> Row:
    """Prompt with an image, then text and one span per hint, then text; `latents` overrules the number per span."""
    generator = torch.Generator().manual_seed(seed)
    special = reasoner.backbone.config

    def words(number: int) -> list[int]:
        return torch.randint(300, 900, (number,), generator=generator).tolist()

    def patches(grid: tuple[int, int, int]) -> Tensor:
        return torch.randn(grid[1] * grid[2], PATCH, generator=generator)

    pads = [special.vision_start_token_id, *[special.image_token_id] * 4, special.vision_end_token_id]
    prompt = words(3) + (pads if image else []) + words(text)
    response = []
    counts = [grid[1] * grid[2] // 4 for grid in hints] if latents is None else latents
    for count in counts:
        tokens = reasoner.tokens
        response += [*words(2), tokens.start_id, *[tokens.latent_id] * count, tokens.end_id]
    response += words(text)
    ids = torch.tensor(prompt + response)
    labels = torch.where(torch.arange(len(ids)) < len(prompt), -100, ids)
    labels = torch.where(ids == reasoner.tokens.latent_id, -100, labels)
    return Row(
        ids,
        labels if labelled else torch.full_like(ids, -100),
        patches((1, 4, 4)) if image else None,
        [patches(grid) for grid in hints],
        list(hints),
    )


def collate(rows: Sequence[Row], names: Sequence[str] = (), extra_padding: int = 0) -> SFTBatch:
    images = [row.image for row in rows if row.image is not None]
    hints = [hint for row in rows for hint in row.hints]

    def pad(parts: list[Tensor], value: int) -> Tensor:
        return F.pad(pad_sequence(parts, batch_first=True, padding_value=value), (0, extra_padding), value=value)

    return SFTBatch(
        input_ids=pad([row.ids for row in rows], 0),
        attention_mask=pad([torch.ones_like(row.ids) for row in rows], 0),
        labels=pad([row.labels for row in rows], -100),
        pixel_values=torch.cat(images) if images else None,
        image_grid_thw=torch.tensor([[1, 4, 4]] * len(images)) if images else None,
        hint_pixel_values=torch.cat(hints) if hints else None,
        hint_grid_thw=torch.tensor([grid for row in rows for grid in row.grids]) if hints else None,
        sample_ids=tuple(names),
    )


HINTS = [(TALL, SMALL), (WIDE,), (SMALL,), (), (TALL, TALL), (SMALL, SMALL, SMALL), (WIDE, TALL), (TALL,)]


def eight_rows(reasoner: LatentReasoner) -> list[Row]:
    """Rows of different lengths, from no latents to five."""
    return [make_row(reasoner, seed, hints, text=2 + seed % 5) for seed, hints in enumerate(HINTS)]


def gradients(reasoner: LatentReasoner, loss: Tensor) -> dict[str, Tensor | None]:
    names, parameters = zip(*reasoner.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


@pytest.fixture
def fed(monkeypatch) -> list[Tensor]:
    """Latents that were fed in every pass of the language model, in order."""
    calls: list[Tensor] = []
    original = latent_sft.put_latents

    def spy(embeds: Tensor, mask: Tensor, latents: Tensor) -> Tensor:
        calls.append(latents)
        return original(embeds, mask, latents)

    monkeypatch.setattr(latent_sft, "put_latents", spy)
    return calls


def true_features(reasoner: LatentReasoner, batch: SFTBatch) -> Tensor:
    return reasoner.backbone.encode_images(batch.hint_pixel_values, batch.hint_grid_thw).embeds.detach()


def plain_pass(reasoner: LatentReasoner, batch: SFTBatch, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and predicted latents of one teacher-forced pass."""
    hidden = reasoner(batch.input_ids, batch.attention_mask, reasoner.encode(batch), latents)
    return hidden, reasoner.predict_latents(previous(hidden, reasoner.latent_mask(batch.input_ids)))


# ---------------------------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("alignment", ["mse", "cosine"])
def test_loss_is_cross_entropy_plus_weighted_alignment(headed, alignment):
    batch = collate(eight_rows(headed)[:4])
    output = LatentSFTLoss(latent_weight=0.3, alignment=alignment)(headed, batch)

    target = true_features(headed, batch)
    hidden, _ = plain_pass(headed, batch, target)
    logits = headed.logits(hidden)
    ce, latent, row_of = [], [], iter(target)
    for row in range(4):
        for t in range(1, batch.input_ids.shape[1]):
            if batch.labels[row, t] != -100:
                ce.append(-logits[row, t - 1].log_softmax(-1)[batch.labels[row, t]])
            if batch.input_ids[row, t] == headed.tokens.latent_id:
                predicted, true = headed.projection_head(hidden[row, t - 1]), next(row_of)
                error = (predicted - true).square().mean() if alignment == "mse" else None
                latent.append(1 - F.cosine_similarity(predicted, true, dim=0) if error is None else error)
    expected_ce, expected_latent = torch.stack(ce).mean(), torch.stack(latent).mean()
    assert_same_but_rounding(output.ce, expected_ce)
    assert_same_but_rounding(output.latent, expected_latent)
    assert_same_but_rounding(output.loss, expected_ce + 0.3 * expected_latent)
    assert (output.num_tokens, output.num_latents) == (len(ce), len(latent))
    assert_same_but_rounding(output.ce_sum, expected_ce.detach() * len(ce))
    assert_same_but_rounding(output.latent_sum, expected_latent.detach() * len(latent))
    assert output.span.tolist() == [0, 0, 1, 2, 2, 2, 3]
    detached = (output.predicted, output.target, output.ce_sum, output.latent_sum)
    assert not any(tensor.requires_grad for tensor in detached)


def test_continuation_is_the_surprise_of_not_ending(headed):
    batch = collate([make_row(headed, 0), make_row(headed, 1, (WIDE,))])
    output = LatentSFTLoss(continuation_weight=0.5)(headed, batch)
    hidden = headed(batch.input_ids, batch.attention_mask, headed.encode(batch), output.target)
    before = hidden[:, :-1][batch.input_ids[:, 1:] == headed.tokens.latent_id]
    ending = headed.logits(before).double().softmax(dim=-1)[:, headed.tokens.end_id]
    wanted = -torch.log1p(-ending)
    assert len(before) == output.num_latents == 6
    assert_same_but_rounding(output.continuation.double(), wanted.mean())
    assert_same_but_rounding(output.continuation_sum.double(), wanted.sum())
    assert_same_but_rounding(output.loss, output.ce + 0.1 * output.latent + 0.5 * output.continuation)


def test_without_a_weight_continuation_is_only_reported(headed):
    output = LatentSFTLoss()(headed, collate([make_row(headed, 0)]))
    assert not output.continuation.requires_grad
    assert output.continuation > 0
    assert torch.equal(output.loss, output.ce + 0.1 * output.latent)


def test_the_continuation_term_makes_ending_less_likely():
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    batch, table = collate([make_row(reasoner, 0)]), reasoner.backbone.lm_head.weight
    objective = LatentSFTLoss(continuation_weight=1.0)
    values = []
    for _ in range(4):
        output = objective(reasoner, batch)
        (gradient,) = torch.autograd.grad(output.continuation, table)
        with torch.no_grad():
            table -= gradient
        values.append(float(output.continuation))
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.9 * values[0]


def test_totals_change_only_the_denominators(tiny):
    batch = collate(eight_rows(tiny)[:3])
    loss = LatentSFTLoss()
    own = loss(tiny, batch)
    output = loss(tiny, replace(batch, total_tokens=1000, total_latents=50))
    assert_same_but_rounding(output.ce, own.ce * own.num_tokens / 1000)
    assert_same_but_rounding(output.latent, own.latent * own.num_latents / 50)
    assert_same_but_rounding(output.loss, output.ce + 0.1 * output.latent)
    assert (output.num_tokens, output.num_latents) == (own.num_tokens, own.num_latents)
    assert torch.equal(output.predicted, own.predicted)
    assert torch.equal(output.ce_sum, own.ce_sum)
    assert loss(tiny, replace(batch, total_tokens=0, total_latents=0)).ce.item() == own.ce_sum.item()


@pytest.mark.parametrize("feedback", ["teacher", "mixed", "self"])
def test_one_row_eight_times_is_eight_rows_once(headed, feedback):
    rows = eight_rows(headed)
    names = [f"data:{number}" for number in range(8)]
    loss = LatentSFTLoss(latent_weight=0.5, latent_feedback=feedback)
    whole = loss(headed, collate(rows, names), feedback_share=0.5)
    totals = {"total_tokens": whole.num_tokens, "total_latents": whole.num_latents}
    parts = [
        loss(headed, replace(collate([row], [name], extra_padding=k % 3), **totals), feedback_share=0.5)
        for k, (row, name) in enumerate(zip(rows, names, strict=True))
    ]
    summed = sum(part.loss for part in parts)
    assert_same_but_rounding(summed, whole.loss)
    assert sum(part.num_latents for part in parts) == whole.num_latents
    assert_same_gradients(gradients(headed, summed), gradients(headed, whole.loss))


def test_only_labelled_positions_reach_the_vocabulary_projection(tiny, monkeypatch):
    batch = collate(eight_rows(tiny))
    shapes = []

    def spy(hidden: Tensor, weight: Tensor, targets: Tensor, *rest: Any) -> Tensor:
        shapes.append((tuple(hidden.shape), tuple(weight.shape), tuple(targets.shape)))
        return linear_cross_entropy(hidden, weight, targets, *rest)

    monkeypatch.setattr(latent_sft, "linear_cross_entropy", spy)
    handle = tiny.backbone.lm_head.register_forward_hook(lambda _, given, __: shapes.append(tuple(given[0].shape)))
    output = LatentSFTLoss()(tiny, batch)
    handle.remove()
    number = int((batch.labels[:, 1:] != -100).sum())
    assert output.num_tokens == number < batch.input_ids.numel() / 2
    # and the positions before latents, which may end their span
    assert shapes == [((number, 128), (1024, 128), (number,)), (output.num_latents, 128)]


def test_labels_at_latents_are_never_asked(tiny):
    batch = collate(eight_rows(tiny)[:2])
    everywhere = torch.where(batch.input_ids == tiny.tokens.latent_id, batch.input_ids, batch.labels)
    wanted = LatentSFTLoss()(tiny, batch)
    output = LatentSFTLoss()(tiny, replace(batch, labels=everywhere))
    assert (output.num_tokens, output.ce.item()) == (wanted.num_tokens, wanted.ce.item())


def test_cross_entropy_path_is_passed_on(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(latent_sft, "linear_cross_entropy", lambda *args: asked.append(args[3]) or args[0].sum())
    LatentSFTLoss(cross_entropy="chunked")(tiny, collate(eight_rows(tiny)[:1]))
    assert asked == ["chunked"]


# ---------------------------------------------------------------------------------------------------- teacher forcing


def test_latent_depends_on_the_ones_before_it_and_not_on_its_own_input(tiny):
    row = make_row(tiny, 0, (WIDE, TALL))
    other = make_row(tiny, 1, (TALL,))
    batch = collate([row, other])
    known = tiny.encode_hints(batch.hint_pixel_values, batch.hint_grid_thw)
    loss = LatentSFTLoss()

    def predicted(embeds: Tensor) -> Tensor:
        return loss(tiny, replace(batch, hint_features=replace(known, embeds=embeds))).predicted

    before = predicted(known.embeds)
    for changed in range(5):
        embeds = known.embeds.clone()
        embeds[changed] += 1.0
        moved = (predicted(embeds) - before).abs().amax(dim=1)
        assert (moved[: changed + 1] == 0).all()
        assert (moved[changed + 1 : 5] > 1e-4).all()
        assert (moved[5:] == 0).all()  # the other row


def test_targets_and_inputs_carry_no_gradient_to_a_trainable_tower(tiny):
    assert tiny.vision_is_trainable
    row = make_row(tiny, 0, image=False)
    for feedback in ("teacher", "self"):
        loss = LatentSFTLoss(latent_feedback=feedback, latent_gradient="pathwise")(tiny, collate([row])).loss
        found = gradients(tiny, loss)
        assert all(value is None for name, value in found.items() if ".visual." in name)
        assert any(value is not None and value.any() for value in found.values())
    # the observed image does reach the tower
    found = gradients(tiny, LatentSFTLoss()(tiny, collate([make_row(tiny, 0)])).loss)
    assert any(value is not None and value.any() for name, value in found.items() if ".visual." in name)


def test_features_with_gradient_are_detached(tiny):
    batch = collate([make_row(tiny, 0, image=False)])
    known = tiny.encode_hints(batch.hint_pixel_values, batch.hint_grid_thw)
    embeds = known.embeds.clone().requires_grad_()
    output = LatentSFTLoss()(tiny, replace(batch, hint_features=replace(known, embeds=embeds)))
    assert torch.autograd.grad(output.loss, embeds, allow_unused=True) == (None,)


def test_frozen_tower_runs_without_gradient(monkeypatch):
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    made: list[bool] = []
    original = reasoner.backbone.encode_images

    def spy(pixels: Tensor, grid: Tensor) -> VisionFeatures:
        features = original(pixels, grid)
        made.append(features.embeds.requires_grad)
        return features

    monkeypatch.setattr(reasoner.backbone, "encode_images", spy)
    batch = collate([make_row(reasoner, 0)])
    LatentSFTLoss()(reasoner, batch)
    assert made == [True, False]  # observed image, hints
    reasoner.backbone.vision_tower.requires_grad_(False)
    LatentSFTLoss()(reasoner, batch)
    assert made[2:] == [False, False]


def test_teacher_feedback_is_the_plain_pass_bit_for_bit(headed, fed):
    batch = collate(eight_rows(headed))
    target = true_features(headed, batch)
    hidden, predicted = plain_pass(headed, batch, target)
    scored = batch.labels[:, 1:] != -100
    ce = linear_cross_entropy(hidden[:, :-1][scored], headed.backbone.lm_head.weight, batch.labels[:, 1:][scored])
    output = LatentSFTLoss(latent_feedback="teacher", feedback_passes=5)(headed, batch)
    assert len(fed) == 1
    assert torch.equal(fed[0], target)
    assert torch.equal(output.target, target)
    assert torch.equal(output.predicted, predicted)
    assert torch.equal(output.ce_sum, ce)


# ---------------------------------------------------------------------------------------------------- own latents


@torch.no_grad()
def decode_step_by_step(reasoner: LatentReasoner, rows: Sequence[Row]) -> Tensor:
    """Every latent from the hidden state before it, one after the other, row by row."""
    found = []
    for row in rows:
        batch = collate([row])
        slots = (row.ids == reasoner.tokens.latent_id).nonzero()[:, 0].tolist()
        vision = reasoner.encode(batch)
        own: list[Tensor] = []
        for slot in slots:
            prefix = batch.input_ids[:, :slot]
            latents = torch.stack(own) if own else torch.zeros(0, reasoner.hidden_size)
            hidden = reasoner(prefix, torch.ones_like(prefix), vision, latents)
            own.append(reasoner.predict_latents(hidden[0, -1]))
        found += own
    return torch.stack(found)


@pytest.mark.parametrize("which", ["tiny", "headed"])
def test_own_latents_are_those_of_decoding_after_as_many_passes_as_the_longest_chain(which, request, fed):
    reasoner = request.getfixturevalue(which)
    rows = [row for row in eight_rows(reasoner) if row.hints]
    batch = collate(rows)
    longest = 5
    expected = decode_step_by_step(reasoner, rows)

    def last_fed(passes: int) -> Tensor:
        LatentSFTLoss(latent_feedback="self", feedback_passes=passes)(reasoner, batch)
        return fed[-1].detach()

    exact = last_fed(longest)
    assert_same_but_rounding(exact, expected)
    assert_same_but_rounding(last_fed(longest + 1), exact)
    in_row = torch.cat([torch.arange(len(row)) for row in chains(batch, reasoner)])
    for passes in range(1, longest):
        wrong = (last_fed(passes) - expected).abs().amax(dim=1) > 1e-4
        assert torch.equal(wrong, in_row >= passes)


def chains(batch: SFTBatch, reasoner: LatentReasoner) -> list[range]:
    """Numbers of latents in each row, as ranges."""
    return [range(count) for count in reasoner.latent_mask(batch.input_ids).sum(dim=1).tolist()]


@pytest.mark.parametrize("name", ["mixed", "self"])
def test_feedback_makes_one_more_pass_than_asked(tiny, fed, name):
    batch = collate(eight_rows(tiny)[:2])
    LatentSFTLoss(latent_feedback=name, feedback_passes=3)(tiny, batch)
    assert len(fed) == 4
    assert torch.equal(fed[0], true_features(tiny, batch))


def test_mixed_feeds_own_latents_to_the_rows_chosen_by_identity(tiny, fed):
    rows = [make_row(tiny, seed, (TALL, SMALL)) for seed in range(12)]
    names = [f"data.jsonl:{number}" for number in range(12)]

    def last_fed(order: Sequence[int], feedback: Any, **options: Any) -> dict[int, Tensor]:
        batch = collate([rows[k] for k in order], [names[k] for k in order])
        LatentSFTLoss(latent_feedback=feedback)(tiny, batch, **options)
        return dict(zip(order, fed[-1].detach().split(3), strict=True))

    straight, shuffled = list(range(12)), [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 6, 4]
    teacher, own = last_fed(straight, "teacher"), last_fed(straight, "self")

    def chosen(order: Sequence[int], share: float, salt: int = 0) -> set[int]:
        mixed = last_fed(order, "mixed", feedback_share=share, salt=salt)
        found = set()
        for k, latents in mixed.items():
            # far above rounding, which the order of the rows changes, and far below what tells the two apart
            is_teacher, is_own = (torch.allclose(latents, known[k], atol=1e-3) for known in (teacher, own))
            assert is_teacher != is_own
            found |= {k} if is_own else set()
        return found

    half = chosen(straight, 0.5)
    assert 2 <= len(half) <= 10
    assert chosen(shuffled, 0.5) == half
    assert chosen(shuffled[:5], 0.5) == half & set(shuffled[:5])
    assert chosen(straight, 0.5, salt=1) != half
    assert chosen(straight, 0.25) <= half <= chosen(straight, 0.75)
    assert chosen(straight, 0.0) == set()
    assert chosen(straight, 1.0) == set(straight)


@pytest.mark.parametrize(("feedback", "share", "passes"), [("self", 1.0, 4), ("mixed", 1e-9, 4), ("mixed", 0.0, 1)])
def test_every_process_makes_the_same_number_of_passes(tiny, fed, monkeypatch, feedback, share, passes):
    with_hints, without = collate([make_row(tiny, 0)], ["a:1"]), collate([make_row(tiny, 1, ())], ["a:2"])
    loss = LatentSFTLoss(latent_feedback=feedback, feedback_passes=3, latent_gradient="pathwise")
    alone = [loss(tiny, batch, feedback_share=share).loss.item() for batch in (with_hints, without)]
    monkeypatch.setattr(latent_sft, "_several_processes", lambda: True)
    for batch, expected in zip((with_hints, without), alone, strict=True):
        fed.clear()
        assert loss(tiny, batch, feedback_share=share).loss.item() == pytest.approx(expected, rel=1e-5)
        assert len(fed) == passes


def test_share_zero_is_teacher_and_share_one_is_self(tiny):
    batch = collate(eight_rows(tiny)[:3], ["a:1", "a:2", "a:3"])
    mixed = LatentSFTLoss(latent_feedback="mixed")
    assert torch.equal(mixed(tiny, batch, feedback_share=0.0).loss, LatentSFTLoss()(tiny, batch).loss)
    own = LatentSFTLoss(latent_feedback="self")(tiny, batch).loss
    assert torch.equal(mixed(tiny, batch, feedback_share=1.0).loss, own)
    assert torch.equal(mixed(tiny, batch).loss, own)
    assert own != LatentSFTLoss()(tiny, batch).loss


def test_rows_are_drawn_at_the_share_and_anew_under_every_salt():
    ids = torch.zeros(2000, 1, dtype=torch.long)
    batch = SFTBatch(ids, ids, ids, sample_ids=tuple(f"train.jsonl:{number}" for number in range(1000, 3000)))
    loss = LatentSFTLoss(latent_feedback="mixed")
    for share in (0.1, 0.5, 0.9):
        drawn = torch.stack([loss._own_rows(batch, share, salt) for salt in range(6)]).double()
        assert (drawn.mean(dim=1) - share).abs().max() < 0.04
        # Under another salt other samples go together: no correlation of either sign.
        assert (torch.corrcoef(drawn) - torch.eye(6)).abs().max() < 0.1


# ---------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("mode", ["stop", "pathwise"])
def test_gradients_through_fed_latents_are_those_of_an_explicit_graph(headed, mode, passes):
    batch = collate(eight_rows(headed)[:2])
    target = true_features(headed, batch)
    latents = target
    for number in range(passes):
        _, latents = plain_pass(headed, batch, latents)
        if mode == "stop" or number < passes - 1:
            latents = latents.detach()
    hidden, predicted = plain_pass(headed, batch, latents)
    scored = batch.labels[:, 1:] != -100
    logits = headed.logits(hidden[:, :-1][scored])
    expected = F.cross_entropy(logits, batch.labels[:, 1:][scored]) + 0.5 * F.mse_loss(predicted, target)

    loss = LatentSFTLoss(0.5, latent_feedback="self", feedback_passes=passes, latent_gradient=mode)(headed, batch).loss
    assert_same_but_rounding(loss, expected)
    assert_same_gradients(gradients(headed, loss), gradients(headed, expected))


def test_text_teaches_the_head_only_pathwise(headed):
    batch = collate(eight_rows(headed)[:2])

    def from_text(mode: Any) -> Tensor:
        loss = LatentSFTLoss(latent_weight=0.0, latent_feedback="self", latent_gradient=mode)(headed, batch).loss
        found = gradients(headed, loss)["projection_head.projection.1.weight"]
        assert found is not None
        return found

    assert not from_text("stop").any()
    assert from_text("pathwise").abs().max() > 1e-5


def test_passes_that_are_not_asked_for_gradient_build_no_graph(tiny, fed):
    batch = collate(eight_rows(tiny)[:2])
    LatentSFTLoss(latent_feedback="self", feedback_passes=3, latent_gradient="pathwise")(tiny, batch)
    LatentSFTLoss(latent_feedback="self", feedback_passes=3)(tiny, batch)
    with torch.no_grad():
        LatentSFTLoss(latent_feedback="self", feedback_passes=3, latent_gradient="pathwise")(tiny, batch)
    assert [latents.requires_grad for latents in fed] == [False, False, False, True] + [False] * 8


@pytest.mark.parametrize("options", [{}, {"latent_feedback": "self", "latent_gradient": "pathwise"}])
def test_gradient_checkpointing_changes_nothing(options):
    reasoner = LatentReasoner.from_pretrained("tiny@random").train()
    batch = collate(eight_rows(reasoner)[:3])
    loss = LatentSFTLoss(**options)
    plain = loss(reasoner, batch).loss
    wanted = gradients(reasoner, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5.2x renames it, 5.17 has no other name
        reasoner.backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = []
    layer: Any = reasoner.backbone.language_model.layers[0]
    handle = layer.self_attn.register_forward_hook(lambda *_: layers.append(1))
    checkpointed = loss(reasoner, batch).loss
    ran_forward = len(layers)
    found = gradients(reasoner, checkpointed)
    handle.remove()
    assert len(layers) > ran_forward  # backward computed it anew
    assert_same_but_rounding(checkpointed, plain)
    assert_same_gradients(found, wanted)


# ---------------------------------------------------------------------------------------------------- other batches


def test_fixed_budget_pools_features_to_the_spans(fed):
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    reasoner.settings = replace(reasoner.settings, fixed_latent_budget=True, max_latent_tokens=2)
    batch = collate(
        [make_row(reasoner, 0, (WIDE, SMALL), latents=(2, 2)), make_row(reasoner, 1, (TALL,), latents=(2,))]
    )
    rows = true_features(reasoner, batch).split([3, 1, 2])
    expected = torch.cat([F.adaptive_avg_pool1d(row.T[None], 2)[0].T for row in rows])
    output = LatentSFTLoss()(reasoner, batch)
    torch.testing.assert_close(output.target, expected)
    torch.testing.assert_close(fed[-1], expected)
    assert output.span.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("feedback", ["teacher", "mixed", "self"])
def test_text_only_batch_keeps_the_head_in_the_graph(headed, feedback):
    batch = collate([make_row(headed, seed, (), image=False) for seed in range(2)])
    assert batch.pixel_values is batch.hint_pixel_values is None
    output = LatentSFTLoss(latent_feedback=feedback)(headed, batch)
    assert output.num_latents == len(output.predicted) == len(output.target) == len(output.span) == 0
    assert output.latent.item() == 0
    assert torch.isfinite(output.loss)
    for name, value in gradients(headed, output.loss).items():
        if name.startswith("projection_head"):
            assert value is not None, name
            assert not value.any(), name


def test_empty_spans_take_no_hint(tiny):
    with_empty = make_row(tiny, 0, (TALL, SMALL), latents=(2, 0, 1))
    output = LatentSFTLoss()(tiny, collate([with_empty]))
    assert output.span.tolist() == [0, 0, 1]


def test_known_features_of_images_go_with_videos(tiny):
    image, video = make_row(tiny, 0, (SMALL,)), make_row(tiny, 1, ())
    special = tiny.backbone.config
    ids = torch.where(video.ids == special.image_token_id, special.video_token_id, video.ids)
    labels = torch.where(video.labels == special.image_token_id, special.video_token_id, video.labels)
    batch = replace(
        collate([image, replace(video, ids=ids, labels=labels, image=None)]),
        pixel_values_videos=video.image,
        video_grid_thw=torch.tensor([[1, 4, 4]]),
    )
    wanted = LatentSFTLoss()(tiny, batch)
    known = tiny.backbone.encode_images(batch.pixel_values, batch.image_grid_thw).detach()
    for known_batch in (
        replace(batch, image_features=known),
        replace(batch, image_features=known, pixel_values=None, image_grid_thw=None),
    ):
        assert LatentSFTLoss()(tiny, known_batch).loss.item() == wanted.loss.item()


def test_known_features_spare_the_tower(tiny, monkeypatch):
    batch = collate(eight_rows(tiny)[:2])
    wanted = LatentSFTLoss()(tiny, batch)
    known = replace(
        batch,
        image_features=tiny.encode(batch).images.detach(),
        hint_features=tiny.encode_hints(batch.hint_pixel_values, batch.hint_grid_thw),
    )
    monkeypatch.setattr(tiny.backbone, "encode_images", None)
    assert LatentSFTLoss()(tiny, known).loss.item() == wanted.loss.item()


def test_mismatches_of_hints_and_spans_name_the_numbers(tiny):
    loss = LatentSFTLoss()
    batch = collate(eight_rows(tiny)[:2])
    without = replace(batch, hint_pixel_values=None, hint_grid_thw=None)
    with pytest.raises(BatchError, match="3 spans with latents, but the batch has no hint frames"):
        loss(tiny, without)
    with pytest.raises(BatchError, match="1 hint frames for 2 spans with latents"):
        loss(tiny, collate([make_row(tiny, 0, (TALL,), latents=(2, 1))]))
    with pytest.raises(BatchError, match="2 hint frames for 0 spans"):
        loss(tiny, collate([make_row(tiny, 0, (TALL, SMALL), latents=())]))
    with pytest.raises(BatchError, match=r"hints have \[2, 1\] visual tokens but their spans \[1, 2\] latents"):
        loss(tiny, collate([make_row(tiny, 0, (TALL, SMALL), latents=(1, 2))]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_weight": -0.1}, "latent_weight must be at least 0, got -0.1"),
        ({"latent_weight": float("nan")}, "latent_weight must be at least 0, got nan"),
        ({"alignment": "l1"}, "alignment must be 'mse' or 'cosine', got 'l1'"),
        ({"latent_feedback": "own"}, "latent_feedback must be .* got 'own'"),
        ({"latent_gradient": "full"}, "latent_gradient must be .* got 'full'"),
        ({"feedback_passes": 0}, "feedback_passes must be at least 1, got 0"),
        ({"cross_entropy": "fast"}, "cross_entropy must be .* got 'fast'"),
    ],
)
def test_settings_outside_their_choices_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        LatentSFTLoss(**options)


# ---------------------------------------------------------------------------------------------------- packed records


@pytest.fixture
def widths(monkeypatch) -> list[tuple[int, ...]]:
    """Shape of the embeddings in every pass of the language model."""
    calls: list[tuple[int, ...]] = []
    original = Backbone.run

    def spy(backbone: Backbone, embeds: Tensor, *rest: Any) -> Tensor:
        calls.append(tuple(embeds.shape[:2]))
        return original(backbone, embeds, *rest)

    monkeypatch.setattr(Backbone, "run", spy)
    return calls


PACKED_OPTIONS: list[dict[str, Any]] = [
    {},
    {"latent_feedback": "self", "latent_gradient": "pathwise"},
    {"latent_feedback": "mixed", "alignment": "cosine"},
]


@pytest.mark.parametrize("options", PACKED_OPTIONS)
def test_packed_records_have_the_loss_and_gradients_of_padded_ones(headed, widths, options):
    batch = collate(eight_rows(headed))  # with images, so with DeepStack rows and two-dimensional positions
    lengths = batch.attention_mask.sum(dim=1)
    padded, packed = (
        LatentSFTLoss(**options, packing=packing)(headed, batch, feedback_share=0.5) for packing in (False, True)
    )
    assert widths[0] == (8, int(lengths.max()))
    assert widths[-1] == (1, int(lengths.sum()))
    for name in ("loss", "ce_sum", "latent_sum", "predicted", "target"):
        assert_same_but_rounding(getattr(packed, name), getattr(padded, name).detach(), name=name)
    assert (packed.num_tokens, packed.num_latents) == (padded.num_tokens, padded.num_latents)
    assert torch.equal(packed.span, padded.span)
    assert_same_gradients(gradients(headed, packed.loss), gradients(headed, padded.loss))


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_images_and_videos_of_every_family_that_packs(name, implementation):
    family = make_family(name)
    family.stock.set_attn_implementation(implementation)
    rows = [[5, ("image", 4, 8), 6, 7], [8, ("video", 2, 4, 8), 9, ("image", 4, 4), 10, 11], [3, 4]]
    prompt = family.batch(rows)
    batch = SFTBatch(
        prompt.input_ids, prompt.attention_mask, prompt.input_ids.masked_fill(prompt.attention_mask == 0, -100),
        prompt.pixel_values, prompt.image_grid_thw, prompt.pixel_values_videos, prompt.video_grid_thw,
    )  # fmt: skip
    padded, packed = (LatentSFTLoss(packing=packing)(family.reasoner, batch).loss for packing in (False, True))
    assert_same_but_rounding(packed, padded.detach())
    assert_same_gradients(gradients(family.reasoner, packed), gradients(family.reasoner, padded))


def test_packed_records_are_checkpointed_like_padded_ones():
    reasoner = LatentReasoner.from_pretrained("tiny@random").train()
    batch = collate(eight_rows(reasoner)[:3])
    wanted = gradients(reasoner, LatentSFTLoss()(reasoner, batch).loss)
    enable_gradient_checkpointing(reasoner)
    assert_same_gradients(gradients(reasoner, LatentSFTLoss(packing=True)(reasoner, batch).loss), wanted)


def test_packed_scores_are_those_of_padded_rows(headed):
    batch = collate([make_row(headed, 0), make_row(headed, 1, ()), make_row(headed, 2, labelled=False, text=9)])
    padded, packed = (LatentSFTLoss(packing=packing).scores(headed, batch) for packing in (False, True))
    for name, values in padded.items():
        assert torch.equal(packed[name].isnan(), values.isnan())
        assert_same_but_rounding(packed[name].nan_to_num(), values.nan_to_num(), size=1.0 if name == "cosine" else None)


def test_a_batch_without_padding_stays_as_it_is(tiny, widths):
    batch = collate([make_row(tiny, 0), make_row(tiny, 1)])
    assert bool(batch.attention_mask.all())
    LatentSFTLoss(packing=True)(tiny, batch)
    assert widths == [tuple(batch.input_ids.shape)]


@pytest.mark.parametrize(
    ("name", "implementation", "message"),
    [("qwen3_5", "sdpa", "recurrent layers; leave packing"), ("qwen3_vl", "flash_attention_2", "flash_attention_2")],
)
def test_backbones_that_cannot_keep_records_apart_are_refused(name, implementation, message, monkeypatch):
    family = make_family(name)
    config: Any = family.reasoner.backbone.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", implementation)
    prompt = family.batch([[3, 4]])
    batch = SFTBatch(prompt.input_ids, prompt.attention_mask, prompt.input_ids)
    with pytest.raises(ConfigError, match=f"records cannot be packed into one row.*{message}"):
        LatentSFTLoss(packing=True)(family.reasoner, batch)


# ---------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("alignment", ["mse", "cosine"])
@pytest.mark.parametrize("feedback", ["teacher", "self"])
def test_scores_are_the_losses_of_single_rows(headed, alignment, feedback):
    rows = eight_rows(headed)
    loss = LatentSFTLoss(alignment=alignment, latent_feedback=feedback)
    scores = loss.scores(headed, collate(rows))
    assert {name: tuple(value.shape) for name, value in scores.items()} == dict.fromkeys(
        ("ce", "latent", "cosine"), (8,)
    )
    for k, row in enumerate(rows):
        output = loss(headed, collate([row]))
        assert_same_but_rounding(scores["ce"][k], output.ce.detach())
        if row.hints:
            assert_same_but_rounding(scores["latent"][k], output.latent.detach())
            cosine = F.cosine_similarity(output.predicted, output.target, dim=-1).mean()
            assert_same_but_rounding(scores["cosine"][k], cosine, size=1.0)  # of a cosine
    assert not any(value.requires_grad for value in scores.values())


def test_scores_are_not_a_number_where_there_is_nothing(headed):
    rows = [make_row(headed, 0), make_row(headed, 1, ()), make_row(headed, 2, labelled=False)]
    scores = LatentSFTLoss().scores(headed, collate(rows))
    assert scores["ce"].isnan().tolist() == [False, False, True]
    assert scores["latent"].isnan().tolist() == scores["cosine"].isnan().tolist() == [False, True, False]
