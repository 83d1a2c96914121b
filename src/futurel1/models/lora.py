"""LoRA adapters of a reasoner: added with `peft`, disabled, merged, saved."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from futurel1.errors import ConfigError
from futurel1.models.reasoner import LatentReasoner
from futurel1.models.token_rows import TokenRows

NAME = "default"
"""What `peft` calls an adapter without a name."""
ROWS_PREFIX = "backbone.token_rows."
ADAPTER_FILE = "adapter_model.safetensors"


class LoRAAdapters:
    """LoRA adapters in the linear layers of a reasoner's stock model, and rows of the three latent tokens.

    Without rows of their own, a checkpoint that was never trained on these tokens could not learn when to start a span.
    `peft` would copy the whole table at every call for them; :class:`futurel1.models.token_rows.TokenRows` does not.

    All other weights of the stock model are frozen. This is no module: the adapters are in the reasoner.

    Args:
        reasoner: the model, changed in place.
        rank: rank of the adapters.
        alpha: scale, divided by the rank.
        dropout: dropout before the adapters.
        targets: pattern of the names of linear layers that get an adapter.

    Raises:
        ConfigError: the pattern matches nothing, or layers that are not linear.
    """

    def __init__(self, reasoner: LatentReasoner, *, rank: int, alpha: int, dropout: float, targets: str) -> None:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import Linear, LoraLayer

        backbone = reasoner.backbone
        tied, table = backbone.ties_embeddings, backbone.lm_head.weight
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
        try:
            with warnings.catch_warnings():  # peft asks transformers 5.23 for a name that version 6 will not have
                warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
                self.adapted: Any = get_peft_model(backbone.model, config)
        except ValueError as error:
            raise ConfigError(f"lora_targets={targets!r} matches no linear layer of the model: {error}") from error
        layers = {name: part for name, part in self.adapted.named_modules() if isinstance(part, LoraLayer)}
        others = [
            name.removeprefix("base_model.model.") for name, part in layers.items() if not isinstance(part, Linear)
        ]
        if others:
            raise ConfigError(f"lora_targets={targets!r} matches {others[0]}, which is no linear layer; narrow it")
        tokens = reasoner.tokens
        backbone.model = self.adapted.get_base_model()
        backbone.token_rows = TokenRows(
            (tokens.start_id, tokens.latent_id, tokens.end_id), reasoner.hidden_size, tied=tied, device=table.device
        )
        self._rows = backbone.token_rows
        self._layers: list[Any] = list(layers.values())

    @property
    def weights(self) -> list[nn.Parameter]:
        """The frozen weights that have adapters."""
        return [layer.get_base_layer().weight for layer in self._layers]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the model is the one without adapters."""
        with self.adapted.disable_adapter(), self._rows.disabled():
            yield

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it, adapters are merged into the weights, so that the model is as fast as without them.

        The weights before are set aside and come back bit for bit; until then the adapted layers are held twice. The
        rows of the latent tokens stay apart: they cost nothing.
        """
        before: dict[nn.Parameter, Tensor] = {}
        try:
            for layer in self._layers:
                weight = layer.get_base_layer().weight
                before[weight] = weight.data
                weight.data = weight.data.clone()
                layer.merge()
            yield
        finally:
            for layer in self._layers:
                layer.merged_adapters.clear()
            for weight, data in before.items():
                weight.data = data

    def state(self) -> dict[str, Tensor]:
        """Weights of the adapters as `peft` names them, whole, on the CPU; all ranks have to call it."""
        return {
            name: whole(parameter.detach()).cpu()
            for name, parameter in self.adapted.named_parameters()
            if is_adapter(name)
        }

    def save(self, folder: Path, state: dict[str, Tensor], stock: dict[str, Tensor]) -> None:
        """Write the adapters as `peft` does; `PeftModel.from_pretrained` loads them on the start checkpoint.

        The rows of the latent tokens are `peft`'s trainable tokens there, which hold whole rows.

        Args:
            folder: folder to write.
            state: what :meth:`state` returned.
            stock: merged weights, see :func:`futurel1.models.whole_weights.whole_state`.
        """
        from safetensors.torch import load_file, save_file

        ids, config, tables = self._rows.ids.cpu(), self.adapted.peft_config[NAME], self._tables()
        config.trainable_token_indices = dict.fromkeys((name.rpartition(".")[2] for name in tables), ids.tolist())
        try:
            self.adapted.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        finally:
            config.trainable_token_indices = None
        rows = {
            f"base_model.model.{name}.token_adapter.trainable_tokens_delta": stock[f"backbone.model.{name}.weight"][ids]
            for name in tables
        }
        tensors = load_file(folder / ADAPTER_FILE) | {name: row.contiguous() for name, row in rows.items()}
        save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})

    def _tables(self) -> list[str]:
        """Names of the modules whose rows are trained: the embedding table, and `lm_head` unless they are one."""
        model = self.adapted.get_base_model()
        tables = [model.get_input_embeddings()]
        if self._rows.projection is not None:
            tables.append(model.get_output_embeddings())
        return [name for table in tables for name, part in model.named_modules() if part is table]


def is_adapter(name: str) -> bool:
    """Whether a weight of a reasoner belongs to its adapters."""
    return ".lora_" in name or name.startswith(ROWS_PREFIX)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered if it is sharded, which all ranks have to take part in."""
    sharded: Any = tensor
    return sharded.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def lora_delta(layer: Any) -> Tensor:
    """What an adapter adds to the weight of its linear layer, (out, in); gathered if it is sharded."""
    down, up = (whole(part[NAME].weight.detach()) for part in (layer.lora_A, layer.lora_B))
    return torch.as_tensor(up @ down * layer.scaling[NAME])
