"""What a configuration asks of a machine, read without loading weights or data."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch

from futurel1.errors import ConfigError
from futurel1.models import LatentReasoner
from futurel1.models.policies import LatentPolicy
from futurel1.modules import LADAPOModule, LatentPredictor, LatentSFTModule
from futurel1.planning.fabricated import Size
from futurel1.planning.meta_model import meta_reasoner
from futurel1.planning.trainer_settings import Sharing, TrainerSettings, shards_of, sharing_of
from futurel1.runs import DTYPES
from futurel1.shipped_configs import config_file


@dataclass
class ConfiguredRun:
    """A configuration, and the model that it trains or decodes with.

    Attributes:
        module: the module, without weights.
        reasoner: the model on the meta device, prepared as the run prepares it, in the dtype that it computes in.
        dtype: dtype of the weights that are trained.
        devices: number of devices.
        sharing: how they share the model.
        shards: number of devices that share one copy of what is sharded.
        autocast: dtype of autocast; None without.
        accumulate: micro-batches per optimizer step and device.
        on_gpu: whether the run is for GPUs.
        data: hyper-parameters of the data module.
    """

    module: Any
    reasoner: LatentReasoner
    dtype: torch.dtype
    devices: int
    sharing: Sharing
    shards: int
    autocast: torch.dtype | None
    accumulate: int
    on_gpu: bool
    data: dict[str, Any]

    @classmethod
    def read(cls, config: str, settings: Sequence[str] = (), devices: int | None = None) -> Self:
        """Read a configuration.

        Args:
            config: YAML file, or the name of a configuration that ships.
            settings: further options of `futurel1 fit`.
            devices: number of devices of each node; None: the configuration's.

        Raises:
            ConfigError: a module or a strategy that cannot be planned.
        """
        from futurel1.cli.trainer import make_cli  # the command line imports this package

        args = ["--config", config_file(config), *settings]
        asked = TrainerSettings.read(args, devices)
        with TemporaryDirectory() as folder, _quiet():
            made = make_cli([*args, *asked.arguments(), "--runs_dir", folder], run=False)
        module, trainer, data = made.model, made.trainer, made.datamodule
        if not isinstance(module, LatentSFTModule | LADAPOModule | LatentPredictor):
            raise ConfigError(
                f"{config}: {type(module).__name__} has no plan; LatentSFTModule, LADAPOModule and LatentPredictor do"
            )
        if asked.devices is None and not isinstance(module, LatentPredictor):
            raise ConfigError(f"{config} takes all devices of its machine; say how many there are by --devices")
        if not data.hparams.get("max_length"):
            raise ConfigError(
                f"{config}: {type(data).__name__} has no max_length, so no batch is the longest to plan for"
            )
        hparams = module.hparams
        dtype = DTYPES[hparams["dtype"]]
        sharing = sharing_of(trainer)
        compute = DTYPES[hparams.get("compute_dtype") or hparams["dtype"]] if sharing == "FSDP2" else dtype
        return cls(
            module=module,
            reasoner=_prepared(module, compute),
            dtype=dtype,
            devices=trainer.num_devices * trainer.num_nodes,
            sharing=sharing,
            shards=shards_of(trainer, resized=devices is not None) if sharing == "FSDP2" else 1,
            autocast=asked.autocast,
            accumulate=trainer.accumulate_grad_batches,
            on_gpu=asked.accelerator != "cpu",
            data=dict(data.hparams),
        )

    @property
    def trains(self) -> bool:
        """Whether weights are trained."""
        return not isinstance(self.module, LatentPredictor)

    @property
    def longest(self) -> tuple[int, int]:
        """Most tokens of a prompt and of a response that the configuration allows."""
        length = int(self.data["max_length"])
        if self.tokens:
            length = min(length, self.tokens)  # a longer record is an error
        if isinstance(self.module, LatentSFTModule):
            response = min(512, length // 4)  # of a record that is as long as it may be
            return length - response, response
        return length, int(self.module.sampling.max_new_tokens)

    @property
    def branches(self) -> int:
        """Responses to a prompt."""
        if isinstance(self.module, LADAPOModule):
            return self.module.rollout.num_rollouts
        return int(self.module.hparams["num_branches"]) if isinstance(self.module, LatentPredictor) else 1

    @property
    def policy(self) -> LatentPolicy:
        """How latents are sampled."""
        policy: LatentPolicy = (
            self.module.latent_policy if isinstance(self.module, LADAPOModule) else self.module.policy
        )
        return policy

    @property
    def slots(self) -> int:
        """Prompts that a device decodes at once; 0 in a run that does not decode."""
        if isinstance(self.module, LatentSFTModule):
            return 0
        if isinstance(self.module, LADAPOModule):
            return self.module.rollout.generation_batch_size
        return int(self.module.sampling.slots or self.data["batch_size"])

    @property
    def rows(self) -> int:
        """Records or groups of a micro-batch of the greatest lengths."""
        return self.rows_of(sum(self.longest))

    def rows_of(self, length: int) -> int:
        """Records or groups of a micro-batch, by the tokens of each."""
        if isinstance(self.module, LADAPOModule):
            rollout = self.module.rollout
            parts = self.devices * rollout.num_minibatches * self.accumulate
            return -(-rollout.batch_size // parts)
        return self.tokens // length if self.tokens else int(self.data["batch_size"])

    @property
    def tokens(self) -> int:
        """Most tokens of a batch of records; 0 where their number is given instead."""
        return int(self.data.get("tokens_per_batch") or 0)

    def size(self, rows: int, prompt: int, response: int) -> Size:
        """A batch of this run."""
        latents = int(self.data.get("max_latent_tokens") or self.reasoner.settings.max_latent_tokens)
        return Size(rows, prompt, response, self.branches, latents)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what a Trainer says of the devices that it is not going to use."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _prepared(module: Any, dtype: torch.dtype) -> LatentReasoner:
    """The module's model on the meta device."""
    hparams = module.hparams
    reasoner = meta_reasoner(hparams, dtype)
    if not isinstance(module, LatentPredictor):
        hparams["liger_kernel"] = False  # kernels that the meta device does not have, and that change no shape
        if isinstance(module, LatentSFTModule) and module.objective.cross_entropy == "liger":
            module.objective.cross_entropy = "chunked"
        module.prepare(reasoner, reasoner.device)
        module.reasoner = reasoner
        module.before_sharding()
    return reasoner
