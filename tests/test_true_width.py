"""Every path at the true width of the 8B model: one layer of its language model, one of its tower, and its vocabulary.

The two tables of 151,936 rows are 5 of its 6 GB in float32. So one model goes through all paths, each path trains what
leaves memory for its optimizer, and `make test-width` runs this file in a process of its own.
"""

import gc
import resource
import shutil
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from futurel1.data import open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched, SFTCollator
from futurel1.data.prompts import prompt_batch
from futurel1.datamodules import RolloutPromptDataModule, VideoHintDataModule
from futurel1.losses import LatentSFTLoss
from futurel1.models import LatentReasoner, LatentTokens, SpanBudget
from futurel1.models.policies import VonMisesFisherLatents
from futurel1.modules import HuggingFaceExport, LADAPOModule, LatentSFTModule
from futurel1.rewards import CompositeReward
from futurel1.rollout import RolloutSettings, SamplingSettings
from futurel1.worlds import write_world
from rounding import assert_same_but_rounding

pytestmark = pytest.mark.width
NAME = "qwen3-vl-8b@random:layers=1,vision_layers=1"
ROWS, WIDTH = 151_936, 4_096
MEMORY = 14 * 2**30
"""Bytes that all paths together may take."""


@pytest.fixture(scope="module")
def models():
    """The one model, in a list that the last test empties."""
    return [LatentReasoner.from_pretrained(NAME)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, train=1, test=1, rl=1, size=64, task="next_zone", progress=False)
    (folder / "prompt.txt").write_text("Think, then answer.")
    return folder


@pytest.fixture(scope="module")
def encoder(models, world):
    return ChatEncoder(models[0].processor, system_prompt=world / "prompt.txt")


@pytest.fixture(autouse=True)
def _memory():
    yield
    gc.collect()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak < MEMORY, f"{peak / 2**30:.1f} GiB"


def tables(reasoner):
    return {"lm_head": reasoner.backbone.lm_head.weight, "embed": reasoner.backbone.model.get_input_embeddings().weight}


def alternating(inputs):
    """Half of the responses are better than the others, whatever they say."""
    return torch.arange(len(inputs)) % 2 * 1.0


def fit(module, data, folder: Path, *callbacks):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=1,
        enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 1
    return trainer.callback_metrics


def test_shape(models):
    (reasoner,) = models
    assert (reasoner.backbone.vocab_size, reasoner.hidden_size, reasoner.dtype) == (ROWS, WIDTH, torch.float32)
    assert reasoner.tokens == LatentTokens(start_id=151_670, latent_id=151_669, end_id=151_671)
    assert not reasoner.backbone.ties_embeddings
    assert reasoner.end_token_ids == [151_645, 151_643]
    assert sum(parameter.numel() for parameter in reasoner.parameters()) == 1_537_519_568


def test_generate_and_score(models, encoder, world):
    (reasoner,) = models
    prompt = prompt_batch(encoder, [open_records(world / "test.jsonl").sample(0)])
    rollout = reasoner.generate(
        prompt, num_branches=2, max_new_tokens=5, do_sample=True, budget=SpanBudget.fixed(2), force_start=True,
        latent_policy=VonMisesFisherLatents(0.9),
    )  # fmt: skip
    assert rollout.span_table[:, 2].tolist() == [2, 2]
    assert rollout.responses[:, :4].tolist() == [[151_670, 151_669, 151_669, 151_671]] * 2
    with torch.no_grad():
        scores = reasoner.score_rollout(prompt, rollout)
    assert_same_but_rounding(scores.log_probs, rollout.log_probs)
    assert_same_but_rounding(scores.latent_log_probs, rollout.latent_log_probs)


def test_gradients_of_both_tables(models, encoder, world):
    """No optimizer has memory for them beside the weights."""
    (reasoner,) = models
    sample = encoder.encode(open_records(world / "train.jsonl").sample(0))
    batch = SFTCollator(encoder.pad_token_id)([Fetched(samples=[sample], skipped=[])])
    reasoner.requires_grad_(False)
    for table in tables(reasoner).values():
        table.requires_grad_(True)
    LatentSFTLoss()(reasoner, batch).loss.backward()
    head, embed = (
        torch.maximum(table.grad.amax(dim=1), -table.grad.amin(dim=1)) for table in tables(reasoner).values()
    )
    reasoner.zero_grad()
    reasoner.requires_grad_(True)
    assert head.isfinite().all()
    assert (head > 0).all()  # every row is an alternative to the right token
    assert embed.isfinite().all()
    inputs = batch.input_ids[0, :-1]  # the last token predicts nothing
    vectors = {reasoner.tokens.latent_id, reasoner.config.image_token_id}  # stand for what is no row
    assert set(embed.nonzero()[:, 0].tolist()) == set(inputs.tolist()) - vectors


def test_supervised_step(models, world, tmp_path):
    (reasoner,) = models
    for table in tables(reasoner).values():
        table.requires_grad_(False)
    kept = {name: table[::1000].clone() for name, table in tables(reasoner).items()}
    before = {name: p.detach().clone() for name, p in reasoner.named_parameters() if p.requires_grad}
    module = LatentSFTModule(reasoner, freeze=[], learning_rate=1e-3, warmup_ratio=0.0, lr_schedule="constant")
    data = VideoHintDataModule(
        train=str(world / "train.jsonl"), batch_size=1, num_workers=0, system_prompt=str(world / "prompt.txt")
    )
    metrics = fit(module, data, tmp_path)
    assert metrics["train/ce"] == pytest.approx(torch.tensor(ROWS).log().item(), rel=0.2)
    after = dict(reasoner.named_parameters())
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    # DeepStack adds to visual positions behind the only layer, where nothing reads them: only decay changes it
    assert [name for name in still if "deepstack" not in name] == []
    assert all(torch.equal(table[::1000], kept[name]) for name, table in tables(reasoner).items())
    reasoner.zero_grad()


def test_la_dapo_with_lora_export_and_reload(models, world, tmp_path):
    reasoner = models.pop()
    module = LADAPOModule(
        reasoner,
        reward=CompositeReward({"toy": alternating}, {"toy": 1.0}),
        latent_policy=VonMisesFisherLatents(0.9),
        rollout=RolloutSettings(num_rollouts=2, batch_size=1, generation_batch_size=1, filter_key="none"),
        sampling=SamplingSettings(max_new_tokens=4, span_budget="loose", span_latents=2),
        lora_rank=2,
        learning_rate=1e-3,
    )
    data = RolloutPromptDataModule(
        train=str(world / "rl.jsonl"), system_prompt=str(world / "prompt.txt"), num_workers=0
    )
    fit(module, data, tmp_path, HuggingFaceExport())
    weights = {name: p for name, p in module.reasoner.named_parameters() if p.requires_grad}
    assert any(name.endswith("lora_B.default.weight") and p.abs().max() > 0 for name, p in weights.items())
    layer = module.reasoner.backbone.language_model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight.detach() + layer.get_delta_weight("default").detach()
    del module, reasoner, weights, layer, data
    gc.collect()
    again = LatentReasoner.from_pretrained(tmp_path / "huggingface")
    shutil.rmtree(tmp_path / "huggingface")  # pytest would keep its 6 GB for three runs
    assert_same_but_rounding(again.backbone.language_model.layers[0].self_attn.q_proj.weight, expected)
    assert (again.backbone.vocab_size, len(again.tokenizer)) == (ROWS, 151_672)
    assert again.tokens == LatentTokens(start_id=151_670, latent_id=151_669, end_id=151_671)
    assert again.end_token_ids == [151_645, 151_643]
    assert again.base_model == NAME
