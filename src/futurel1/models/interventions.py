"""Causal controls do(z): replace latents while decoding, to see whether they are used (`docs/evaluation.md`).

Shapes: B prompts, K latents of one decoding step, N responses of a bank with up to S latents, H hidden size.
"""

import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from futurel1.errors import CheckpointError, ConfigError, MissingFileError
from futurel1.files import replacing
from futurel1.models.noise import RowNoise, mix, normal, row_keys

__all__ = [
    "FutureLatents",
    "Intervention",
    "LatentBank",
    "LatentIntervention",
    "LatentPlaces",
    "MeanLatents",
    "NoiseLatents",
    "OtherLatents",
    "ZeroLatents",
    "make_intervention",
]

Intervention = Literal["none", "zero", "mean", "noise", "other", "markers", "oracle", "swap"]
WITH_BANK = ("mean", "noise", "other")
"""Interventions that take latents from a bank."""
WITH_FUTURE = ("oracle", "swap")
"""Interventions that feed features of future frames."""

BANK_FILES = "latents*.safetensors"
"""Pattern of the bank files in a run folder, one file per rank."""


@dataclass(frozen=True, eq=False)
class LatentBank:
    """Latents of a set of responses.

    Args:
        ids: N unique sample ids.
        latents: (N, S, H) latents in order of emission, padded on the right.
        counts: (N,) int64 latents of each response.
        sources: for each of the N responses, names of the videos and images in its prompt; None if unknown.

    Raises:
        ConfigError: shapes that do not match, duplicate ids, counts out of range, or latents that are not finite.
    """

    ids: tuple[str, ...]
    latents: Tensor
    counts: Tensor
    sources: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.latents.shape)
        if len(shape) != 3 or not len(self.ids) == shape[0] == self.counts.numel() or self.counts.dim() != 1:
            raise ConfigError(
                f"a bank of {len(self.ids)} responses needs latents (N, S, H) and counts (N,), got {shape} and "
                f"{tuple(self.counts.shape)}"
            )
        if self.sources is not None and len(self.sources) != len(self.ids):
            raise ConfigError(f"a bank of {len(self.ids)} responses has the sources of {len(self.sources)}")
        if len(set(self.ids)) < len(self.ids):
            twice = next(name for place, name in enumerate(self.ids) if name in self.ids[:place])
            raise ConfigError(f"a bank holds one response per sample, but {twice!r} is there twice")
        if not bool(((self.counts >= 0) & (self.counts <= shape[1])).all()):
            raise ConfigError(f"counts must be between 0 and {shape[1]}, got {self.counts.tolist()}")
        if not bool(self.real.isfinite().all()):
            raise ConfigError("the bank has latents that are not finite")

    @classmethod
    def from_responses(
        cls, ids: Sequence[str], latents: Sequence[Tensor], sources: Sequence[Sequence[str]] | None = None
    ) -> Self:
        """Build a bank from the latents of N >= 1 responses, each (number of latents, H)."""
        counts = torch.tensor([len(own) for own in latents])
        known = None if sources is None else tuple(map(tuple, sources))
        return cls(tuple(ids), pad_sequence(list(latents), batch_first=True), counts, known)

    @classmethod
    def merge(cls, banks: Sequence["LatentBank"]) -> Self:
        """Merge banks. The last bank with a sample wins; sources are kept only if every bank has them.

        Raises:
            ConfigError: no bank, or banks of different widths.
        """
        widths = sorted({bank.width for bank in banks})
        if len(widths) != 1:
            raise ConfigError(f"banks to merge must have one width, got {widths}")
        found = {
            name: own[:count]
            for bank in banks
            for name, own, count in zip(bank.ids, bank.latents, bank.counts.tolist(), strict=True)
        }
        known = [dict(zip(bank.ids, bank.sources, strict=True)) for bank in banks if bank.sources is not None]
        merged = {name: own for sources in known for name, own in sources.items()}
        sources = [merged[name] for name in found] if len(known) == len(banks) else None
        return cls.from_responses(tuple(found), tuple(found.values()), sources)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a bank.

        Args:
            path: a file, or a run folder whose `latents*.safetensors` (one per rank) are merged.

        Raises:
            MissingFileError: no such file, or a folder without one.
            CheckpointError: a file that is damaged or not a bank, or files of different widths.
        """
        place = Path(path).expanduser()
        files = sorted(place.glob(BANK_FILES)) if place.is_dir() else [place]
        if not files or not files[0].is_file():
            raise MissingFileError(
                f"{place} is no bank of latents and no folder with {BANK_FILES}; write one with "
                "model.init_args.save_latents: true"
            )
        banks = [cls._read(file) for file in files]
        try:
            return banks[0] if len(banks) == 1 else cls.merge(banks)
        except ConfigError as error:
            raise CheckpointError(f"{place}: {error}") from error

    @classmethod
    def _read(cls, file: Path) -> Self:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as handle:
                metadata = handle.metadata() or {}
                ids = tuple(map(str, json.loads(metadata["ids"])))
                # Banks of earlier versions have no sources.
                stored = json.loads(metadata.get("sources", "null"))
                sources = None if stored is None else tuple(tuple(map(str, own)) for own in stored)
                return cls(ids, handle.get_tensor("latents"), handle.get_tensor("counts"), sources)
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            raise CheckpointError(
                f"{file} is damaged or no bank of latents ({error}); write it anew with save_latents"
            ) from error

    def save(self, path: str | Path) -> Path:
        """Write the bank as safetensors, atomically; returns the file."""
        from safetensors.torch import save_file

        file = Path(path).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"latents": self.latents.contiguous(), "counts": self.counts.contiguous()}
        metadata = {"ids": json.dumps(self.ids), "sources": json.dumps(self.sources)}
        with replacing(file) as partial:
            save_file(tensors, partial, metadata=metadata)
        return file

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """H, width of a latent."""
        return self.latents.shape[-1]

    @property
    def real(self) -> Tensor:
        """(L, H) all latents without padding."""
        places = torch.arange(self.latents.shape[1], device=self.counts.device)
        return self.latents[places < self.counts[:, None]]

    @cached_property
    def mean(self) -> Tensor:
        """(H,) float32 mean over all latents."""
        self._require_latents()
        return self.real.double().mean(dim=0).float()

    @cached_property
    def std(self) -> Tensor:
        """(H,) float32 standard deviation of each dimension over all latents, without Bessel's correction."""
        self._require_latents()
        return self.real.double().std(dim=0, correction=0).float()

    def _require_latents(self) -> None:
        if not int(self.counts.sum()):
            raise ConfigError(
                f"the bank has {len(self)} responses without a single latent; decode it with a span budget that gives "
                "latents (span_budget: fixed)"
            )

    def require_width(self, width: int) -> None:
        """Check that the latents fit a model.

        Raises:
            ConfigError: this bank's latents are not `width` wide.
        """
        if self.width != width:
            raise ConfigError(
                f"the bank's latents are {self.width} wide and the model's {width}; write a bank with this model"
            )


class LatentPlaces(NamedTuple):
    """Where the K latents of a decoding step stand.

    Attributes:
        rows: (K,) int64 row of each latent.
        numbers: (K,) int64 0-based number of each latent within its response, counted across spans.
        spans: (K,) int64 0-based number of its span within its response, empty spans counted.
        steps: (K,) int64 0-based number of each latent within its span.
    """

    rows: Tensor
    numbers: Tensor
    spans: Tensor
    steps: Tensor


class LatentIntervention(ABC):
    """Replaces every latent of a response, just before it is recorded and fed."""

    kind: ClassVar[str]
    """Name of the intervention in settings and tables."""

    sample_ids: tuple[str, ...] = ()
    num_branches: int = 1

    def begin(self, sample_ids: Sequence[str], num_branches: int) -> None:
        """Remember a batch's samples; called once before it is decoded.

        Args:
            sample_ids: B names of the prompts.
            num_branches: G; row r is a response to prompt r // G.
        """
        self.sample_ids = tuple(sample_ids)
        self.num_branches = num_branches

    @abstractmethod
    def __call__(self, latents: Tensor, at: LatentPlaces) -> Tensor:
        """Replace the latents of one decoding step.

        Args:
            latents: (K, H) sampled latents.
            at: where these K latents stand.

        Returns:
            (K, H) latents to feed instead.
        """


class ZeroLatents(LatentIntervention):
    """Zeros instead of latents."""

    kind: ClassVar[str] = "zero"

    def __call__(self, latents: Tensor, at: LatentPlaces) -> Tensor:
        """(K, H) zeros."""
        return torch.zeros_like(latents)


class MeanLatents(LatentIntervention):
    """The mean latent of a bank: correct on average, and independent of the input.

    Args:
        bank: latents of the same model.

    Raises:
        ConfigError: the bank has no latents, or (when called) another width.
    """

    kind: ClassVar[str] = "mean"

    def __init__(self, bank: LatentBank) -> None:
        self.bank = bank
        self.mean = bank.mean

    def __call__(self, latents: Tensor, at: LatentPlaces) -> Tensor:
        """(K, H) mean in every row."""
        self.bank.require_width(latents.shape[-1])
        return self.mean.to(latents).expand_as(latents)


class NoiseLatents(LatentIntervention):
    """Gaussian noise with a bank's mean and standard deviation of each dimension.

    The noise depends only on the seed, the sample and the number of the latent: all branches of a prompt get the same
    noise, in any batch.

    Args:
        bank: latents of the same model.
        seed: seed of the noise.

    Raises:
        ConfigError: the bank has no latents, or (when called) another width.
    """

    kind: ClassVar[str] = "noise"

    def __init__(self, bank: LatentBank, seed: int = 0) -> None:
        self.bank = bank
        self.seed = seed
        self.mean, self.std = bank.mean, bank.std

    def begin(self, sample_ids: Sequence[str], num_branches: int) -> None:
        """Remember a batch's samples and compute one key per prompt."""
        super().begin(sample_ids, num_branches)
        # One call per sample, so that a repeated sample has one key. The prefix keeps the key apart from that of the
        # sample's tokens and latents.
        self._keys = torch.cat([row_keys(self.seed, [f"do(z):{name}"], 1) for name in sample_ids])

    def __call__(self, latents: Tensor, at: LatentPlaces) -> Tensor:
        """(K, H) noise."""
        self.bank.require_width(latents.shape[-1])
        keys = self._keys.to(at.rows.device)[at.rows // self.num_branches]
        draws = normal(RowNoise(mix(keys + at.numbers), 0), latents.shape[-1])
        mean, std = (value.to(draws) for value in (self.mean, self.std))
        return (mean + std * draws).to(latents.dtype)


class OtherLatents(LatentIntervention):
    """Real latents, but of a sample about another video.

    The donor is the bank's next sample in the order of ids (as strings, wrapping around) that shares no video and no
    image with the decoded one. Its latents are used number by number; if it has too few, its last one repeats.

    Args:
        bank: latents of the same model, with sources; samples without latents cannot be donors.

    Raises:
        ConfigError: the bank has no sources; (at `begin`) a sample is not in the bank, or no sample of another video
            has latents; (when called) the bank has another width.
    """

    kind: ClassVar[str] = "other"

    def __init__(self, bank: LatentBank) -> None:
        if bank.sources is None:
            raise ConfigError(
                "the bank does not say which videos its samples are of, so latents of another video cannot be chosen; "
                "write it anew with save_latents: true, or give LatentBank its sources"
            )
        self.bank = bank
        self._sources = {name: frozenset(own) for name, own in zip(bank.ids, bank.sources, strict=True)}
        self._donors = sorted((name, row) for row, name in enumerate(bank.ids) if int(bank.counts[row]))

    def donor(self, sample_id: str) -> str:
        """Id of the bank's sample that gives its latents to a sample.

        Raises:
            ConfigError: the sample is not in the bank, or no sample of another video has latents.
        """
        return self._donor(sample_id)[0]

    def _donor(self, sample_id: str) -> tuple[str, int]:
        if sample_id not in self._sources:
            raise ConfigError(
                f"the bank does not have the sample {sample_id!r}, so its video is not known; give the bank of a run "
                "over the same records"
            )
        own = self._sources[sample_id]
        start = bisect_right(self._donors, sample_id, key=itemgetter(0))
        for name, row in chain(self._donors[start:], self._donors[:start]):
            if name != sample_id and own.isdisjoint(self._sources[name]):
                return name, row
        raise ConfigError(
            f"the bank has no latents of another video than that of {sample_id!r}, of {len(self.bank)} responses; "
            "give a bank with more videos"
        )

    def begin(self, sample_ids: Sequence[str], num_branches: int) -> None:
        """Remember a batch's samples and choose the donor of each prompt."""
        super().begin(sample_ids, num_branches)
        self._rows = torch.tensor([self._donor(name)[1] for name in sample_ids])

    def __call__(self, latents: Tensor, at: LatentPlaces) -> Tensor:
        """(K, H) latents of the donors."""
        self.bank.require_width(latents.shape[-1])
        given = self._rows[(at.rows // self.num_branches).cpu()]
        last = self.bank.counts[given] - 1
        return self.bank.latents[given, torch.minimum(at.numbers.cpu(), last)].to(latents)


class FutureLatents(LatentIntervention):
    """Features of future frames instead of latents: latent i of span m becomes feature i of frame m.

    A latent beyond the known ones, in a span after the last frame or after the last feature of its frame, stays the
    model's own and is counted.

    Args:
        kind: ``oracle`` for the future that came, ``swap`` for another one.
        features: by sample id, the (L, H) features of each frame, made as the targets of supervised training are.

    Attributes:
        kept: (B * G,) int64, how many latents of each row stayed the model's own.

    Raises:
        ConfigError: a kind that feeds no features; (at `begin`) a sample without features, or (when called) features of
            another width.
    """

    def __init__(self, kind: Literal["oracle", "swap"], features: Mapping[str, Sequence[Tensor]]) -> None:
        if kind not in WITH_FUTURE:
            raise ConfigError(f"FutureLatents is one of {', '.join(WITH_FUTURE)}, got {kind!r}")
        self.kind = kind  # type: ignore[misc]  # of the object here, of the class in the others
        self.features = features
        self.kept = torch.zeros(0, dtype=torch.int64)

    def begin(self, sample_ids: Sequence[str], num_branches: int) -> None:
        """Remember a batch's samples and lay out their features."""
        super().begin(sample_ids, num_branches)
        unknown = [name for name in sample_ids if not self.features.get(name)]
        if unknown:
            raise ConfigError(
                f"no future frames are known of {unknown[0]!r} ({len(unknown)} of {len(sample_ids)} prompts); "
                f"{self.kind} needs features of every prompt"
            )
        frames = [self.features[name] for name in sample_ids]
        self._features = pad_sequence([feature for own in frames for feature in own], batch_first=True)
        device = self._features.device
        self._lengths = torch.tensor([len(feature) for own in frames for feature in own], device=device)
        self._spans = torch.tensor([len(own) for own in frames], device=device)
        self._first = self._spans.cumsum(0) - self._spans  # of each prompt among all frames
        self.kept = torch.zeros(len(sample_ids) * num_branches, dtype=torch.int64, device=device)

    def __call__(self, latents: Tensor, at: LatentPlaces) -> Tensor:
        """(K, H) features, and latents where none is known."""
        if self._features.shape[-1] != latents.shape[-1]:
            raise ConfigError(
                f"the features are {self._features.shape[-1]} wide and the model's latents {latents.shape[-1]}"
            )
        rows, spans, steps = (place.to(self._features.device) for place in (at.rows, at.spans, at.steps))
        prompts = rows // self.num_branches
        frame = self._first[prompts] + torch.minimum(spans, self._spans[prompts] - 1)
        known = (spans < self._spans[prompts]) & (steps < self._lengths[frame])
        given = self._features[frame, torch.minimum(steps, self._lengths[frame] - 1)].to(latents)
        self.kept.index_add_(0, rows, (~known).long())
        return torch.where(known.to(latents.device)[:, None], given, latents)


def make_intervention(kind: Intervention, bank: LatentBank | None, seed: int) -> LatentIntervention | None:
    """Build an intervention by name; None if it replaces no latents.

    Args:
        kind: name; ``markers`` does not replace latents but removes them, by a budget of 0, and ``oracle`` and ``swap``
            depend on the batch, see :class:`FutureLatents`.
        bank: latents for ``mean``, ``noise`` and ``other``.
        seed: seed of the noise.

    Raises:
        ConfigError: an unknown name, or a missing bank.
    """
    if kind not in get_args(Intervention):
        raise ConfigError(f"intervention must be one of {get_args(Intervention)}, got {kind!r}")
    if kind == "zero":
        return ZeroLatents()
    if kind not in WITH_BANK:
        return None
    if bank is None:
        raise ConfigError(f"the intervention {kind!r} needs a bank of latents (latents.safetensors of an earlier run)")
    if kind == "noise":
        return NoiseLatents(bank, seed)
    return MeanLatents(bank) if kind == "mean" else OtherLatents(bank)
