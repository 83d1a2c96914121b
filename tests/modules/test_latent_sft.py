from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from futurel1.datamodules import VideoHintDataModule
from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.models import LatentReasoner
from futurel1.modules import HuggingFaceExport, JSONLinesWriter, LatentSFTModule
from rounding import assert_same_after_training, assert_same_but_rounding

QUICK = {"lr_schedule": "constant", "warmup_ratio": 0.0, "learning_rate": 1e-3}


def make_data(world: Path, **options: Any) -> VideoHintDataModule:
    defaults = {
        "train": str(world / "train.jsonl"), "batch_size": 2, "num_workers": 0,
        "system_prompt": str(world / "prompt.txt"), "cache_dir": str(world / "cache"),
    }  # fmt: skip
    return VideoHintDataModule(**{**defaults, **options})


def make_trainer(tmp_path: Path, **options: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": tmp_path, "max_steps": 2, "log_every_n_steps": 1,
    }  # fmt: skip
    return Trainer(**{**defaults, **options})


class Recorder(LatentSFTModule):
    """Keeps what is logged in every optimizer step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        row = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if "train/loss" in row and (not self.rows or self.global_step > len(self.rows)):
            self.rows.append(row)


def weights(module: LatentSFTModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.reasoner.named_parameters()}


@pytest.mark.parametrize("options", [
    {"freeze": []},
    {"freeze": ["vision", "merger"], "projection_head": "swiglu", "projection_hidden_dim": 32},
    {"freeze": ["llm"], "projection_head": "lvr"},
    {"freeze": ["vision"], "projection_head": "lvr", "gradient_checkpointing": True, "latent_feedback": "self"},
    {"lora_rank": 4, "projection_head": "lvr"},
], ids=["all", "paper", "no-llm", "self-checkpointing", "lora"])  # fmt: skip
def test_every_trainable_parameter_changes_and_no_frozen_one_does(
    world: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    module = LatentSFTModule(**QUICK, **options)
    module.configure_model()
    before = weights(module)
    assert {p.requires_grad for p in module.parameters()} == ({True} if options.get("freeze") == [] else {True, False})
    make_trainer(tmp_path, max_steps=3).fit(module, make_data(world, batch_size=4))
    # Table rows of tokens that never occur have no gradient; the tensor as a whole changes.
    for name, parameter in module.reasoner.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    assert module.training


def test_overfits_four_samples(world: Path, tmp_path: Path) -> None:
    few = world / "few.jsonl"
    few.write_text("".join((world / "test.jsonl").read_text().splitlines(keepends=True)[:4]))
    module = Recorder(learning_rate=6e-3, weight_decay=0.0, lr_schedule="cosine", warmup_ratio=0.05, latent_weight=1.0)
    data = make_data(world, train=str(few), batch_size=4)
    make_trainer(tmp_path, max_steps=44, gradient_clip_val=1.0).fit(module, data)
    first, last = module.rows[0], module.rows[-1]
    assert last["train/ce"] < 0.6  # 0.28 here, and 0.05 after 72 steps
    assert last["train/latent"] < first["train/latent"] / 20
    assert last["train/cosine"] > 0.9


def test_one_batch_of_eight_equals_eight_of_one(world: Path, tmp_path: Path) -> None:
    runs = []
    for batch_size, accumulate, steps, packing in ((8, 1, 2, 0), (1, 8, 2, 0), (4, 2, 2, 1), (3, 3, 1, 1)):
        module = Recorder(**QUICK, packing=bool(packing))
        trainer = make_trainer(tmp_path, max_steps=steps, accumulate_grad_batches=accumulate, gradient_clip_val=0.5)
        trainer.fit(module, make_data(world, batch_size=batch_size))
        runs.append((module.rows, weights(module)))
    (rows, final), *same, (rows_3x3, _) = runs
    assert len(rows) == 2
    for others, final_other in same:
        for row, other in zip(rows, others, strict=True):
            for name in ("train/loss", "train/ce", "train/latent", "train/cosine", "train/grad_norm"):
                assert other[name] == pytest.approx(row[name], rel=1e-5), name
            assert other["train/latents_per_sample"] == row["train/latents_per_sample"]
        assert_same_after_training(final_other, final, learning_rate=1e-3)
    # Nine rows a step is another batch: the comparison above would notice.
    assert rows_3x3[0]["train/loss"] != pytest.approx(rows[0]["train/loss"], rel=1e-5)


def test_batches_without_totals_are_refused_under_accumulation(world: Path, tmp_path: Path) -> None:
    data = make_data(world, processor="tiny@random", batch_size=1)
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(4), strict=False)]
    from dataclasses import replace

    bare = [replace(batch, total_tokens=None, total_latents=None) for batch in batches]
    loader: Any = DataLoader(bare, batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="total_tokens"):
        make_trainer(tmp_path, accumulate_grad_batches=2).fit(LatentSFTModule(**QUICK), loader)
    module = Recorder(**QUICK)
    make_trainer(tmp_path, max_steps=1).fit(module, loader)  # without accumulation a batch is its own total
    assert len(module.rows) == 1


def test_validation_logs_means_and_retrieval(world: Path, tmp_path: Path) -> None:
    module = LatentSFTModule(**QUICK, latent_feedback="mixed", feedback_share=0.5)
    data = make_data(world, val=str(world / "test.jsonl"), batch_size=3)
    trainer = make_trainer(tmp_path)
    results = trainer.validate(module, data, verbose=False)[0]
    for name in ("loss", "ce", "latent", "cosine", "retrieval", "retrieval_chance", "ce_own_latents"):
        assert f"val/{name}" in results, name
    assert results["val/loss"] == pytest.approx(results["val/ce"] + 0.1 * results["val/latent"], rel=1e-6)
    # 8 records of 1 to 3 hints in batches of 3, 3 and 2: three batches share out all hints.
    hints = sum(len(json.loads(line)["reasoning_image"]) for line in (world / "test.jsonl").read_text().splitlines())
    assert results["val/retrieval_chance"] == pytest.approx(3 / hints)
    one = make_trainer(tmp_path).validate(
        LatentSFTModule(**QUICK), make_data(world, val=str(world / "test.jsonl"), batch_size=1), verbose=False
    )[0]
    assert one["val/ce"] == pytest.approx(results["val/ce"], rel=1e-5)  # token means do not depend on batching
    assert one["val/ce_own_latents"] == pytest.approx(results["val/ce_own_latents"], rel=1e-5)
    assert results["val/ce_own_latents"] != pytest.approx(results["val/ce"], rel=1e-5)
    tested = make_trainer(tmp_path).test(LatentSFTModule(**QUICK), data, verbose=False)[0]
    assert tested["test/ce"] == pytest.approx(results["val/ce"], rel=1e-5)


def test_feedback_share_follows_its_schedule() -> None:
    module = LatentSFTModule(latent_feedback="mixed", feedback_share=0.8, feedback_start=10, feedback_ramp=4)
    shares = {}
    for step in (0, 9, 10, 11, 13, 50):
        module.__class__ = type("At", (LatentSFTModule,), {"global_step": step})
        shares[step] = module.current_feedback_share()
    assert shares == pytest.approx({0: 0.0, 9: 0.0, 10: 0.2, 11: 0.4, 13: 0.8, 50: 0.8})


def test_settings_that_cannot_work_are_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="feedback_share"):
        LatentSFTModule(feedback_share=1.5)
    with pytest.raises(ConfigError, match="float64"):
        LatentSFTModule(dtype="float64")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data\.max_latent_tokens is 2 but model\.max_latent_tokens is 4"):
        make_trainer(tmp_path).fit(LatentSFTModule(**QUICK, max_latent_tokens=4), make_data(world, max_latent_tokens=2))
    with pytest.raises(ConfigError, match="max_steps"):
        make_trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(LatentSFTModule(), make_data(world))
    with pytest.raises(ConfigError, match="matches no linear layer"):
        LatentSFTModule(lora_rank=2, lora_targets="nowhere").configure_model()


class Counted(LatentSFTModule):
    """Takes steps that learn nothing: how many there are, and their learning rates, do not depend on losses."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return next(parameter for parameter in self.parameters() if parameter.requires_grad).sum()


@pytest.mark.parametrize(("limit", "max_steps", "steps"), [
    (1.0, -1, 6), (3, -1, 4), (0.5, -1, 4), (1.0, 1000, 6), (3, 1000, 4), (0.5, 3, 3), (1.0, 5, 5),
])  # fmt: skip
@pytest.mark.parametrize("given", ["data", "loader"])
def test_schedule_ends_where_training_ends(
    world: Path, tmp_path: Path, limit: float, max_steps: int, steps: int, given: str
) -> None:
    module = Counted("tiny@random", learning_rate=1e-3, lr_schedule="linear", warmup_ratio=0.0)
    options = {"max_steps": max_steps, "max_epochs": 2, "accumulate_grad_batches": 2, "limit_train_batches": limit}
    trainer = make_trainer(tmp_path, **options)
    data = make_data(world, batch_size=4, processor="tiny@random")
    if given == "data":
        trainer.fit(module, data)
    else:
        loader: Any = data.train_dataloader()
        trainer.fit(module, loader)
    assert trainer.global_step == steps  # 24 records / 4 = 6 batches an epoch, 2 batches a step
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_export_carries_weights_settings_and_tokens(world: Path, tmp_path: Path) -> None:
    module = LatentSFTModule(**QUICK, projection_head="lvr", alignment="cosine")
    data = make_data(world, max_latent_tokens=2)
    make_trainer(tmp_path, callbacks=[HuggingFaceExport()]).fit(module, data)
    loaded = LatentReasoner.from_pretrained(tmp_path / "huggingface")
    assert loaded.settings.max_latent_tokens == 2
    assert loaded.settings.latent_loss == "cosine"
    assert loaded.settings.projection_head_type == "lvr"
    state = module.reasoner.state_dict()
    assert all(torch.equal(state[name], value) for name, value in loaded.state_dict().items())


def test_spans_are_the_datas_unless_the_model_says_otherwise(world: Path, tmp_path: Path) -> None:
    def settled(module: LatentSFTModule) -> tuple[int, bool]:
        return module.reasoner.settings.max_latent_tokens, module.reasoner.settings.fixed_latent_budget

    data = make_data(world, max_latent_tokens=2, fixed_latents=True)
    # also when the model was loaded before it met its data, and with the data module's settings in the same log
    for early in (False, True):
        module = LatentSFTModule(**QUICK)
        if early:
            module.configure_model()
            assert settled(module) == (1, True)  # the start checkpoint's own
        trainer = make_trainer(tmp_path, max_steps=1, logger=CSVLogger(tmp_path))
        trainer.fit(module, data)
        assert settled(module) == (2, True)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    alone = LatentSFTModule.load_from_checkpoint(tmp_path / "run.ckpt")
    assert settled(alone) == (2, True)
    # a trained model is evaluated on whatever data there are
    other = make_data(world, val=str(world / "test.jsonl"), max_latent_tokens=4)
    make_trainer(tmp_path, limit_val_batches=1).validate(alone, other, verbose=False)
    assert settled(alone) == (2, True)


def test_a_run_killed_before_its_export_is_exported_when_it_is_resumed(world: Path, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True, every_n_train_steps=1)
    first = LatentSFTModule(**QUICK)
    make_trainer(tmp_path, callbacks=[checkpoint], enable_checkpointing=True).fit(first, make_data(world))
    assert not (tmp_path / "huggingface").exists()
    second = LatentSFTModule(**QUICK)
    last = tmp_path / "checkpoints" / "last.ckpt"
    make_trainer(tmp_path, callbacks=[HuggingFaceExport()]).fit(second, make_data(world), ckpt_path=last)
    loaded = LatentReasoner.from_pretrained(tmp_path / "huggingface").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in first.reasoner.state_dict().items())


def test_lora_saves_an_adapter_and_merged_weights(world: Path, tmp_path: Path) -> None:
    module = LatentSFTModule(**QUICK, lora_rank=4, lora_alpha=16)
    make_trainer(tmp_path, max_steps=3).fit(module, make_data(world, batch_size=4))
    module.export(tmp_path / "out")
    merged = LatentReasoner.from_pretrained(tmp_path / "out")
    base = LatentReasoner.from_pretrained("tiny")
    ids = torch.arange(20, 60)[None]
    module.eval()
    with torch.no_grad():
        trained = module.reasoner.logits(module.reasoner(ids, torch.ones_like(ids)))
        exported = merged.logits(merged(ids, torch.ones_like(ids)))
        untouched = base.logits(base(ids, torch.ones_like(ids)))
    assert_same_but_rounding(exported, trained)
    assert (trained - untouched).abs().max() > 1e-2
    # peft reads the adapter on the stock base, latent token rows included
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(base.backbone.model, str(tmp_path / "out" / "adapter")).eval()
    with torch.no_grad():
        by_peft = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert_same_but_rounding(by_peft, trained)
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_lora_adapts_the_rows_of_latent_tokens_in_an_untied_head() -> None:
    golden = Path(__file__).parents[1] / "golden" / "public_mse"
    module = LatentSFTModule(backbone=str(golden), lora_rank=2)
    module.configure_model()
    rows = module.reasoner.backbone.token_rows
    assert rows is not None
    assert {name for name, p in rows.named_parameters() if p.requires_grad} == {"embedding", "projection"}


def test_init_from_takes_a_run_an_export_or_a_checkpoint(world: Path, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    first = LatentSFTModule(**QUICK)
    run = tmp_path / "run"
    callbacks = [HuggingFaceExport(), ModelCheckpoint(dirpath=run / "checkpoints", save_last=True)]
    make_trainer(run, callbacks=callbacks, enable_checkpointing=True, val_check_interval=1).fit(first, make_data(world))
    trained = weights(first)
    for start in (run, run / "huggingface", run / "checkpoints" / "last.ckpt"):
        module = LatentSFTModule(init_from=str(start))
        module.configure_model()
        assert all(torch.equal(trained[name], value) for name, value in weights(module).items()), start
    # a run that was killed has no export: its newest checkpoint stands for it
    import shutil

    shutil.rmtree(run / "huggingface")
    module = LatentSFTModule(init_from=str(run))
    module.configure_model()
    assert all(torch.equal(trained[name], value) for name, value in weights(module).items())
    with pytest.raises(MissingFileError, match=r"nowhere\.ckpt"):
        LatentSFTModule(init_from=str(tmp_path / "nowhere.ckpt")).configure_model()
    other = LatentSFTModule(init_from=str(run / "checkpoints" / "last.ckpt"), projection_head="lvr")
    with pytest.raises(CheckpointError, match="another model, LoRA or head"):
        other.configure_model()


def test_liger_changes_the_modules_of_this_model_only() -> None:
    from transformers.models.qwen3_vl import modeling_qwen3_vl

    from futurel1.modules.adapters import apply_liger

    classes = (modeling_qwen3_vl.Qwen3VLTextRMSNorm, modeling_qwen3_vl.Qwen3VLTextMLP)
    before = [cls.forward for cls in classes]
    module, other = LatentSFTModule(), LatentReasoner.from_pretrained("tiny@random")
    module.configure_model()
    # four layers with two norms, query and key norms and an MLP each, and the final norm
    assert apply_liger(module.reasoner, torch.device("cuda")) == 4 * 5 + 1
    assert [cls.forward for cls in classes] == before
    assert all("forward" not in vars(part) for part in other.modules())
    assert all("forward" not in vars(part) for part in module.reasoner.backbone.vision_tower.modules())


def test_learning_rates_of_zero_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("futurel1.modules.base.total_steps", lambda trainer: 10)
    module = LatentSFTModule(freeze=[], vision_learning_rate=0.0, merger_learning_rate=3e-4, learning_rate=1e-3)
    module.configure_model()
    module._trainer = object()  # type: ignore[assignment]
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {group["name"].removesuffix("_no_decay"): group["initial_lr"] for group in groups}
    assert rates == {"vision": 0.0, "merger": 3e-4, "llm": 1e-3}


def test_a_longer_resumed_run_starts_with_its_own_rates(world: Path, tmp_path: Path) -> None:
    options = {"learning_rate": 1e-3, "lr_schedule": "linear", "warmup_ratio": 0.0}
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(LatentSFTModule(**options), make_data(world))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    module = Recorder(**options)
    make_trainer(tmp_path, max_steps=4).fit(module, make_data(world), ckpt_path=str(tmp_path / "end.ckpt"))
    assert [row["train/lr"] for row in module.rows] == pytest.approx([5e-4, 2.5e-4])


def test_liger_kernels_are_never_applied_on_cpu(caplog: pytest.LogCaptureFixture) -> None:
    module = LatentSFTModule(liger_kernel=True)
    with caplog.at_level(logging.INFO, logger="futurel1"):
        module.configure_model()
    assert "not applied on cpu" in caplog.text
    assert all("liger" not in type(part).__module__ for part in module.reasoner.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_liger_kernels_keep_the_loss_on_cuda(world: Path, tmp_path: Path) -> None:
    rows = []
    for liger in (False, True):
        module = Recorder(**QUICK, liger_kernel=liger, cross_entropy="liger" if liger else "chunked")
        make_trainer(tmp_path, accelerator="gpu", devices=1).fit(module, make_data(world))
        rows.append(module.rows)
    for plain, fused in zip(*rows, strict=True):
        assert fused["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-4)


def test_true_half_precision_of_the_trainer_runs(world: Path, tmp_path: Path) -> None:
    module = Recorder(**QUICK, backbone="tiny@random")
    data = make_data(world, batch_size=1, vision_cache=str(tmp_path / "features"), on_error="skip")
    make_trainer(tmp_path, max_steps=1, precision="bf16-true").fit(module, data)
    assert module.reasoner.backbone.lm_head.weight.dtype == torch.bfloat16
    assert module.rows[0]["train/ce"] == pytest.approx(7.0, abs=0.5)


def test_predict_writes_one_line_per_record(world: Path, tmp_path: Path) -> None:
    writer = JSONLinesWriter()
    data = make_data(world, predict=str(world / "test.jsonl"), batch_size=3)
    make_trainer(tmp_path, callbacks=[writer]).predict(LatentSFTModule(backbone="tiny@random"), data)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test.jsonl:{number}" for number in range(1, 9)]
    records = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    assert [row["record_id"] for row in rows] == [record["id"] for record in records]
    single = make_data(world, predict=str(world / "test.jsonl"), batch_size=1)
    alone = make_trainer(tmp_path / "single").predict(LatentSFTModule(backbone="tiny@random"), single)
    assert alone is not None
    for row, (other,) in zip(rows, alone, strict=True):
        assert row["ce"] == pytest.approx(other["ce"], rel=1e-4)
        assert row["latent"] == pytest.approx(other["latent"], rel=1e-4)
        assert 5 < row["ce"] < 9  # an untrained model is near log(1024)


def test_throughput_leaves_validation_out(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("futurel1.modules.latent_sft.time.perf_counter", lambda: clock["now"])

    class Clocked(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            clock["now"] += 1.0
            self.tokens = int(batch.attention_mask.sum())
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            clock["now"] += 100.0
            super().validation_step(batch, batch_idx)

    module = Clocked(**QUICK)
    data = make_data(world, val=str(world / "test.jsonl"))
    make_trainer(tmp_path, max_steps=3, val_check_interval=1, limit_val_batches=1, num_sanity_val_steps=0).fit(
        module, data
    )
    assert module.rows[-1]["train/tokens_per_second"] == pytest.approx(module.tokens)
