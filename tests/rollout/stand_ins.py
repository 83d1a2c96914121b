"""Stand-ins for what a collector works with: prompts, a policy whose answers follow from the index, several ranks."""

import io
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from futurel1.data.encoded import EncodedSample
from futurel1.data.samples import PromptInfo
from futurel1.losses import group_advantages
from futurel1.models import Vision, VisionFeatures
from futurel1.models.decoding import Rollout
from futurel1.models.policies import DeterministicLatents, LatentPolicy
from futurel1.rollout import Experience, Group, collector

PAD = 0
HIDDEN = 3
NAN = float("nan")


def prompt(name: str, length: int) -> EncodedSample:
    """A text prompt of some length that names itself."""
    ids = torch.arange(10, 10 + length)
    return EncodedSample(name, ids, torch.full_like(ids, -100), length, info=PromptInfo(question=name, answer="B"))


def rollout_of(seed: int, branches: int, policy: LatentPolicy) -> Rollout:
    """Random but consistent responses: 2 to 6 tokens, with a span of up to 2 latents from the second token on."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    lengths, counts = integers(2, 7, branches), integers(0, 3, branches)
    counts = torch.minimum(counts, lengths - 1)
    width, slots = int(lengths.max()), int(counts.max())
    places = torch.arange(width)
    response_mask = places < lengths[:, None]
    slot_mask = (places > 0) & (places <= counts[:, None])
    latent_mask = torch.arange(slots) < counts[:, None]
    rows = (counts > 0).nonzero()[:, 0]
    ends = torch.where(counts + 1 < lengths, counts + 1, -1)[rows]
    chosen_mask = response_mask & (torch.rand(branches, width, generator=generator) < 0.8)
    return Rollout(
        responses=torch.where(response_mask, integers(5, 100, branches, width), PAD),
        response_mask=response_mask,
        log_probs=torch.where(chosen_mask, -torch.rand(branches, width, generator=generator), 0.0),
        chosen_mask=chosen_mask,
        slot_mask=slot_mask,
        latents=torch.randn(branches, slots, HIDDEN, generator=generator) * latent_mask[..., None],
        latent_mask=latent_mask,
        span_ids=torch.where(latent_mask, 0, -1),
        latent_log_probs=torch.randn(branches, slots, generator=generator).double() * latent_mask,
        span_table=torch.stack([rows, torch.zeros_like(rows), counts[rows], ends, torch.zeros_like(rows)], dim=1),
        finish_reasons=["length" if int(length) == 6 else "eos" for length in lengths],
        num_branches=branches,
        temperature=0.9,
        policy=policy,
    )


class Prompts:
    """An endless stream over `size` records, some of which cannot be used."""

    def __init__(self, size: int = 1000, broken: Sequence[int] = ()) -> None:
        self.size = size
        self.broken = set(broken)

    def take(self, first: int, count: int, rank: int, world_size: int) -> Iterator[tuple[int, EncodedSample | None]]:
        for index in range(first + rank, first + count, world_size):
            number = index % self.size
            yield index, None if number in self.broken else prompt(f"records:{number}", 3 + number % 4)


class Policy:
    """Answers follow from the index and from `version`, which stands for the weights.

    Args:
        accuracy: accuracy of the branches of an index; NaN where the judge fails.
        branches: G.
        reference: whether there is a reference.
        broken: calls that raise, by name.
    """

    pad_token_id = PAD
    device = torch.device("cpu")
    reward_weights = {"accuracy": 0.9, "format": 0.1, "judge": 0.0}  # noqa: RUF012 (never changed)

    def __init__(
        self,
        accuracy: Callable[[int], Sequence[float]] = lambda index: (1.0, 0.0),
        *,
        reference: bool = True,
        broken: Sequence[str] = (),
    ) -> None:
        self.latent_policy = DeterministicLatents()
        self.version = 0
        self.broken = set(broken)
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self._accuracy = accuracy
        self._reference = reference

    def _note(self, call: str, ids: Sequence[str]) -> None:
        self.calls.append((call, tuple(ids)))
        if call in self.broken:
            raise RuntimeError(f"{call} failed")

    def called(self, name: str) -> list[tuple[str, ...]]:
        """Prompts of every call of a method."""
        return [ids for call, ids in self.calls if call == name]

    def on_collect(self) -> None:
        self._note("on_collect", [])

    def sample_groups(self, prompts: Sequence[tuple[int, EncodedSample]]) -> tuple[list[Group], list[dict[str, Any]]]:
        self._note("sample_groups", [sample.sample_id for _, sample in prompts])
        groups = [self.group(index, sample) for index, sample in prompts]
        return groups, [
            {"prompt_index": group.prompt_index, "row": row} for group in groups for row in range(len(group.rollout))
        ]

    def group(self, index: int, sample: EncodedSample | None = None) -> Group:
        """The group of an index under the current version."""
        accuracy = torch.tensor(self._accuracy(index), dtype=torch.float32)
        rollout = rollout_of(index * 1000 + self.version, len(accuracy), self.latent_policy)
        parts = {"accuracy": accuracy, "format": torch.arange(len(accuracy)) / 4}
        rewards = 0.9 * parts["accuracy"] + 0.1 * parts["format"]
        valid = rewards.isfinite()
        features = VisionFeatures(torch.full((2, HIDDEN), float(index)), (), torch.tensor([[1, 2, 4]]), (2,))
        return Group(
            prompt_index=index,
            sample=sample or prompt(f"records:{index}", 4),
            rollout=rollout,
            parts=parts,
            rewards=rewards,
            valid=valid,
            advantages=group_advantages(rewards, torch.zeros(len(rewards), dtype=torch.int64), valid),
            vision=Vision(features),
        )

    def prompt_features(self, sample: EncodedSample) -> None:
        return None

    def score_behaviour(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """The version in front of the point, the response behind it."""
        self._note("score_behaviour", experience.prompt.sample_ids)
        rollout = experience.rollout
        return -self.version - rollout.responses / 1000, self.version + rollout.latents.sum(dim=-1).double()

    def on_score_reference(self) -> None:
        pass

    def score_reference(self, experience: Experience) -> Tensor | None:
        self._note("score_reference", experience.prompt.sample_ids)
        return -experience.rollout.responses / 10 if self._reference else None


def stored(state: Any) -> Any:
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(found: Any, wanted: Any) -> None:
    """Nested values that are the very same, NaN included."""
    if isinstance(wanted, Tensor):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert_equal(found[name], wanted[name])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)
    elif isinstance(wanted, Rollout | VisionFeatures | Vision | EncodedSample):
        assert_equal(vars(found), vars(wanted))
    elif not isinstance(wanted, LatentPolicy):
        assert found == wanted or (found != found and wanted != wanted)  # NaN differs from itself


class Ranks:
    """Several ranks as threads of this process, which meet wherever the collector gathers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._local = threading.local()
        monkeypatch.setattr(collector, "gather", self._gather)

    def _gather(self, value: Any) -> list[Any]:
        if not hasattr(self._local, "rank"):
            return [value]
        slots, barrier = self._local.slots, self._local.barrier
        slots[self._local.rank] = pickle.dumps(value)
        barrier.wait(timeout=300)
        values = [pickle.loads(slot) for slot in slots]
        barrier.wait(timeout=300)
        return values

    def __call__(self, world_size: int, work: Callable[[int], Any]) -> list[Any]:
        """What `work` returns on each rank; its first error is raised here."""
        slots: list[bytes] = [b""] * world_size
        barrier = threading.Barrier(world_size)
        results: list[Any] = [None] * world_size
        errors: list[BaseException] = []

        def run(rank: int) -> None:
            self._local.rank, self._local.slots, self._local.barrier = rank, slots, barrier
            try:
                results[rank] = work(rank)
            except threading.BrokenBarrierError:
                pass
            except BaseException as error:
                errors.append(error)
                barrier.abort()

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=600)
        if errors:
            raise errors[0]
        assert not barrier.broken
        return results
