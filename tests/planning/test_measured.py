"""What is measured on shapes against runs on the CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from families import make_family
from measured_runs import medium_reasoner, on_meta, peak_of, require_close

from futurel1.errors import ConfigError
from futurel1.losses import LatentSFTLoss, PolicyLoss
from futurel1.models import LatentReasoner
from futurel1.models.decoding import PromptSource
from futurel1.models.policies import VonMisesFisherLatents
from futurel1.modules import adapters
from futurel1.modules.optimization import freeze_parts
from futurel1.planning.fabricated import Size, experience, prompt_batch, sft_batch
from futurel1.planning.measured import Measured, decoding, optimizer_step, policy_step, sft_step
from futurel1.rollout.policy_models import rollout_scores

POLICY = VonMisesFisherLatents()


def tiny_reasoner() -> LatentReasoner:
    return LatentReasoner.from_pretrained("tiny")


def prepared(make: Callable[[], LatentReasoner], recomputed: bool) -> LatentReasoner:
    reasoner = make()
    freeze_parts(reasoner, ["vision", "merger"])
    if recomputed:
        adapters.enable_gradient_checkpointing(reasoner)
    return reasoner.train()


def predicted(reasoner: LatentReasoner, measured: Measured) -> int:
    """Bytes of an optimizer step beside the weights."""
    trained = [parameter for parameter in reasoner.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    state, stepping = optimizer_step(trained, foreach=False)
    update = measured.activations + measured.logits + measured.gradients
    return state + max(update, gradients + stepping)


def test_the_state_is_that_of_the_optimizer() -> None:
    weights = [torch.nn.Parameter(torch.empty(10, 10, device="meta"))]
    assert optimizer_step(weights, foreach=False)[0] == 2 * 400 + 4  # two moments, and a counter
    momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert optimizer_step(weights, False, momentum)[0] == 400
    lbfgs = partial(torch.optim.LBFGS, lr=0.1)
    with pytest.raises(ConfigError, match="no plan for LBFGS"):
        optimizer_step(weights, False, lbfgs)


def two_steps(reasoner: LatentReasoner, loss: Callable[[], Any]) -> int:
    trained = [parameter for parameter in reasoner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=False)

    def steps() -> None:
        for _ in range(2):  # the second has the optimizer's state from the first
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

    return peak_of(steps)


@pytest.mark.parametrize(
    ("make", "size", "recomputed"),
    [
        pytest.param(tiny_reasoner, Size(8, 300, 80), False, id="tiny"),
        pytest.param(tiny_reasoner, Size(2, 1000, 150), True, id="tiny-recomputed"),
        pytest.param(medium_reasoner, Size(1, 500, 100), True, id="medium"),
    ],
)
def test_a_supervised_step(make: Callable[[], LatentReasoner], size: Size, recomputed: bool) -> None:
    reasoner, loss = prepared(make, recomputed), LatentSFTLoss(cross_entropy="chunked")
    real = two_steps(reasoner, lambda: loss(reasoner, sft_batch(reasoner, size)).loss)
    meta = on_meta(reasoner)
    require_close(predicted(meta, sft_step(meta, loss, size, None, "kept")), real)


def policy_loss(reasoner: LatentReasoner, size: Size) -> torch.Tensor:
    batch = experience(reasoner, size, POLICY, 0.9)
    return batch.loss(PolicyLoss(), rollout_scores(reasoner, batch)).loss


@pytest.mark.parametrize(
    ("make", "size", "recomputed"),
    [
        pytest.param(tiny_reasoner, Size(2, 400, 100, 8), False, id="tiny"),
        pytest.param(medium_reasoner, Size(1, 300, 60, 8), True, id="medium"),
    ],
)
def test_an_update_of_reinforcement_learning(
    make: Callable[[], LatentReasoner], size: Size, recomputed: bool
) -> None:  # fmt: skip
    reasoner = prepared(make, recomputed)
    real = two_steps(reasoner, lambda: policy_loss(reasoner, size))
    meta = on_meta(reasoner)
    found = policy_step(meta, PolicyLoss(), POLICY, size, 0.9, None, "kept")
    require_close(predicted(meta, found), real)


def test_decoding() -> None:
    reasoner, size, slots = tiny_reasoner(), Size(1, 600, 40, 8), 3
    settings: dict[str, Any] = {
        "do_sample": True, "temperature": 0.9, "top_p": 0.99, "latent_policy": POLICY,
    }  # fmt: skip

    def sample() -> None:
        sources = (PromptSource(prompt_batch(reasoner, size), seed) for seed in range(slots))
        for _ in reasoner.generate_each(
            sources, slots=slots, num_branches=8, max_new_tokens=size.response, eos_token_id=[-1], **settings
        ):
            pass

    with torch.no_grad():
        real = peak_of(sample)
    found = decoding(on_meta(reasoner), size, slots, None, **settings)
    require_close(found.memory.activations + found.memory.logits + found.cache, real)
    assert found.operations > 100


def test_layers_of_linear_attention_keep_no_keys() -> None:
    reasoner = on_meta(make_family("qwen3_5").reasoner)
    config: Any = reasoner.backbone.language_model.config
    found = decoding(reasoner, Size(1, 200, 40, 2), 1, None, do_sample=False)
    assert list(config.layer_types).count("full_attention") == 1
    assert found.cache == (200 + 2 * 40) * 2 * config.num_key_value_heads * config.head_dim * 4
