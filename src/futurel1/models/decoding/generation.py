"""Interleaved decoding of text and latents, many branches per prompt (Future-L1, arXiv 2606.05769, Section 3).

Prompts wait in a queue. A slot decodes all branches of a prompt; when all of them have ended, the next prompt takes the
slot, so that the batch stays full whatever the lengths are. A sample depends on its seed, its prompt and its branch,
not on what is decoded beside it.

Shapes: B prompts of P tokens, G branches each, N = B * G responses, A rows in use, H hidden size.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.models.backbones import Vision
from futurel1.models.decoding.advance import Emitted, advance, latent_noise, may_be_latent
from futurel1.models.decoding.branching import choose_layout
from futurel1.models.decoding.decoding_settings import DecodingSettings
from futurel1.models.decoding.prompts import PromptSource, QueuedPrompt, contents, queue
from futurel1.models.decoding.protocol import PromptLike, Reasoner
from futurel1.models.decoding.responses import Response, as_rollout
from futurel1.models.decoding.rollout import REASONS, DecodingError, DecodingStep, FinishReason, Rollout
from futurel1.models.decoding.rows import NOT_BAD, Rows
from futurel1.models.decoding.runners import RUNNERS, moves
from futurel1.models.decoding.sizes import Sizes

logger = logging.getLogger(__name__)
LOOK_EVERY = {"cpu": 1}
"""Steps between two looks of the host, by device. On a CPU nothing waits for the device, and rows leave at once."""
LOOK_EVERY_ELSEWHERE = 8
READ_AHEAD = 4
"""Most prompts that are begun but not given yet, in multiples of the slots: a long response holds back those after it.

With exponential lengths, a quarter of the longest on average, this costs 1% of the time that no bound would take.
"""
SECONDS_OF_COMPILING = 1.0
"""A size that takes longer at warm-up was compiled, and is told in the log."""
COMPILED_SIZES = 64
"""Most sizes of a step that are compiled; see :class:`Sizes`."""


@torch.no_grad()
def generate(
    reasoner: Reasoner,
    prompt: PromptLike,
    settings: DecodingSettings,
    *,
    seed: int | Tensor = 0,
    share_prompt: bool | None = None,
    vision: Vision | None = None,
    on_step: Callable[[DecodingStep], None] | None = None,
) -> Rollout:
    """Decode responses; see :meth:`futurel1.models.LatentReasoner.generate`, which fills in the defaults."""
    source, ids = PromptSource(prompt, seed, vision), prompt.input_ids
    if on_step is not None and settings.slots is not None and settings.slots < len(ids):
        raise ConfigError(f"on_step needs all {len(ids)} prompts at once, not slots={settings.slots}; leave slots out")
    if settings.intervention is not None:
        settings.intervention.begin(contents(reasoner, prompt), settings.num_branches)
    decoder = Decoder(reasoner, settings, len(ids), share_prompt, ids.shape[1], on_step)
    return decoder.rollout([response for group in decoder.run([source]) for response in group])


@torch.no_grad()
def generate_each(
    reasoner: Reasoner, sources: Iterable[PromptSource], settings: DecodingSettings, *, share_prompt: bool | None = None
) -> Iterator[Rollout]:
    """Decode a stream of prompts; see :meth:`futurel1.models.LatentReasoner.generate_each`."""
    if settings.intervention is not None:
        for source in sources:  # an intervention has to know all prompts of a queue beforehand
            yield generate(
                reasoner, source.prompt, settings, seed=source.seed, share_prompt=share_prompt, vision=source.vision
            )
        return
    decoder = Decoder(reasoner, settings, settings.slots or 1, share_prompt)
    lengths: deque[int] = deque()

    def counted() -> Iterator[PromptSource]:
        for source in sources:
            lengths.append(len(source.prompt.input_ids))
            yield source

    responses: list[Response] = []
    for group in decoder.run(counted()):
        responses += group
        if len(responses) == lengths[0] * settings.num_branches:
            lengths.popleft()
            yield decoder.rollout(responses)
            responses = []


@dataclass
class _Slot:
    """A prompt that is being decoded.

    Attributes:
        number: its number in the queue.
        name: its sample id; None if it has none.
        responses: G, one per branch.
        going: number of responses that have not ended.
    """

    number: int
    name: str | None
    responses: list[Response]
    going: int


@dataclass
class _Row:
    """What the host knows of a row: its response, its slot, its branch, and the step in which it began."""

    response: Response
    slot: _Slot
    branch: int
    began: int
    done: bool = False


class Decoder:
    """Decodes a queue of prompts.

    Args:
        reasoner: the model.
        settings: how responses are decoded.
        prompts: most prompts at once, if `settings.slots` is not lower.
        share_prompt: whether branches share a prompt; None: if the backbone supports it.
        prompt_columns: expected length of the longest prompt; 0 if it is not known.
        on_step: called after every step.
    """

    def __init__(
        self,
        reasoner: Reasoner,
        settings: DecodingSettings,
        prompts: int,
        share_prompt: bool | None = None,
        prompt_columns: int = 0,
        on_step: Callable[[DecodingStep], None] | None = None,
    ) -> None:
        self.reasoner = reasoner
        self.settings = settings
        self._sizes = Sizes(
            min(prompts, settings.slots or prompts), settings.num_branches, settings.max_new_tokens,
            compiled=settings.compile,
        )  # fmt: skip
        self._sizes.see_prompt(prompt_columns)
        layout = choose_layout(reasoner.backbone, share_prompt)
        if settings.compile and layout == "rows":
            raise ConfigError("compile needs branches that share a prompt; set compile=False for this backbone")
        self.runner = RUNNERS[layout](reasoner, self._sizes)
        self._one_step = self._compiled_step() if settings.compile else self._plain_step
        self._on_step = on_step
        self._slots: list[_Slot] = []
        self._used: list[_Row] = []
        self._rows: Rows
        self._eos: Tensor
        self._in_order = True  # whether row r is at place r, for all rows
        self._step = 0
        self._admitted = 0
        self._given = 0
        self._finished: dict[int, list[Response]] = {}

    def rollout(self, responses: Sequence[Response]) -> Rollout:
        """Responses of whole prompts as a rollout."""
        settings = self.settings
        return as_rollout(
            responses, tokens=self.reasoner.tokens, num_branches=settings.num_branches,
            temperature=settings.sampling.scale, policy=settings.latent_policy, pad_token_id=settings.pad_token_id,
            no_latents=self._rows.latent[:0],
        )  # fmt: skip

    def run(self, sources: Iterable[PromptSource]) -> Iterator[list[Response]]:
        """The responses of every prompt, in the order of the prompts."""
        waiting = queue(self.reasoner, sources, self.settings.num_branches)
        more = True
        while more or self._used:
            # 1. The next prompts take the free slots, and their rows take the first step.
            while more and self._free_slots:
                more = self._admit_all(waiting)
                self._leave()
            # 2. All rows take the next steps.
            if self._used:
                self._take_steps()
                # 3. Rows that are done leave, and slots without rows are free.
                self._leave()
            while self._given in self._finished:
                self._given += 1
                yield self._finished.pop(self._given - 1)

    @property
    def _free_slots(self) -> int:
        """Number of slots that may take a prompt now."""
        slots = self._sizes.slots
        return min(slots - len(self._slots), READ_AHEAD * slots - (self._admitted - self._given))

    # ------------------------------------------------------------------ steps

    def _admit_all(self, waiting: Iterator[QueuedPrompt]) -> bool:
        """Fill the free slots, and let the new rows take their first step; False if no prompt is left."""
        branches, free = self.settings.num_branches, self._free_slots
        first = len(self._used)
        hidden: list[Tensor] = []
        for prompt in islice(waiting, free):
            place = len(self._slots)
            found = self.runner.admit(prompt, place)
            if not self._admitted:
                self._start(found)
                if self.settings.compile:
                    self.warm_up()
            hidden.append(found)
            self._begin_rows(prompt, place)
        if hidden:
            embeds = torch.stack(hidden).repeat_interleave(branches, dim=0)
            rows = self._rows[first : len(self._used)]
            noise = self._noise(rows, 1)
            self._look([self._advance(rows, embeds, None if noise is None else noise[0])], self._used[first:])
        return len(hidden) == free

    def _start(self, hidden: Tensor) -> None:
        """Make the rows, once the dtype and the device of latents are known."""
        settings = self.settings
        latent = self.reasoner.predict_latents(hidden[None])
        self._rows = Rows.empty(self._sizes.all_rows, settings.max_new_tokens, latent)
        self._rows.place.fill_(self._sizes.all_rows)
        self._eos = torch.tensor(list(settings.eos_token_ids), device=hidden.device)

    def warm_up(self) -> None:
        """Compile the step for all its sizes, on rows that are not in use; :meth:`run` calls it after the first prompt.

        Buffers of responses then have their full width, because each width would be compiled again. A prompt that is
        longer than the first one by so much that its columns do not suffice has the step compiled anew when it comes.
        """
        buckets, device = self._sizes.buckets(), self._rows.key.device
        for number, (count, columns) in enumerate(buckets, start=1):
            began = time.monotonic()
            self.runner.grow(columns)
            with self.runner.attention(), self._compiling():
                for _ in range(1 if device.type == "cpu" else 2):  # the second run of a size records its CUDA graph
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                    noise = latent_noise(
                        self.settings, self._rows[:count], self._rows.inside[:count], 1, self._rows.latent.shape[-1]
                    )
                    self._one_step(self._rows, count, self._sizes.slots, columns, False, noise[0])
            seconds = time.monotonic() - began
            if seconds > SECONDS_OF_COMPILING:
                logger.info(
                    "decoding: size %d of %d of a step (%d rows, %d columns) is compiled, in %.0f s",
                    number, len(buckets), count, columns, seconds,
                )  # fmt: skip

    def _begin_rows(self, prompt: QueuedPrompt, place: int) -> None:
        branches, first = self.settings.num_branches, len(self._used)
        in_span = prompt.last_token == self.reasoner.tokens.start_id
        slot = _Slot(self._admitted, prompt.name, [Response(in_span) for _ in range(branches)], branches)
        self._slots.append(slot)
        self._used += [_Row(response, slot, branch, self._step) for branch, response in enumerate(slot.responses)]
        numbers = torch.arange(branches, device=prompt.keys.device)
        self._rows[first : first + branches].begin(
            self._admitted * branches + numbers, prompt.keys, place * branches + numbers,
            prompt.next_position, prompt.last_token,
        )  # fmt: skip
        self._admitted += 1

    @property
    def _look_every(self) -> int:
        settings = self.settings
        if self._on_step is not None or settings.stop_strings or settings.intervention is not None:
            return 1
        if settings.look_every is not None:
            return settings.look_every
        return LOOK_EVERY.get(self._rows.key.device.type, LOOK_EVERY_ELSEWHERE)

    def _take_steps(self) -> None:
        """Feed the newest tokens and choose the next ones, as often as the host need not look."""
        sizes, steps = self._sizes, self._look_every
        count, prompts = sizes.rows(len(self._used)), sizes.prompts(len(self._slots))
        noise = self._noise(self._rows[:count], steps)
        aligned = self._in_order and count == prompts * sizes.branches and not sizes.compiled
        emitted = []
        with self.runner.attention(), self._compiling():
            for step in range(steps):
                self._step += 1
                longest = min(self._step - min(row.began for row in self._used), sizes.max_new_tokens)
                columns = sizes.columns(longest)
                self.runner.grow(columns)
                own = None if noise is None else noise[step]
                if sizes.compiled:
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                found = self._one_step(self._rows, count, prompts, columns, aligned, own)
                emitted.append(found.copy() if sizes.compiled and steps > 1 else found)
        self._look(emitted, self._used)

    def _plain_step(
        self, all_rows: Rows, count: int, prompts: int, columns: int, aligned: bool, noise: Tensor | None
    ) -> Emitted:
        """Feed the newest tokens and choose the next ones: a token goes in as its embedding, a latent as it is.

        Args:
            all_rows: all rows.
            count: A, number of rows that take part.
            prompts: number of slots in use.
            columns: columns of responses.
            aligned: whether row r is at place r and no place is empty.
            noise: (A, D) random numbers of the latents; None: no row is inside a span.
        """
        rows = all_rows[:count]
        embeds = self.reasoner.backbone.embed_tokens(rows.last)
        embeds = torch.where(rows.inside[:, None], rows.latent.to(embeds.dtype), embeds)
        hidden = self.runner.feed(rows, embeds, prompts, columns, None if aligned else rows.place)
        return self._advance(rows, hidden, noise)

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Allow one compiled step for each of the sizes; PyTorch's limit is meant for sizes that nobody planned."""
        if not self._sizes.compiled:
            yield
            return
        with torch._dynamo.config.patch(recompile_limit=COMPILED_SIZES):
            yield

    def _compiled_step(self) -> Callable[..., Emitted]:
        """The step as one graph; on CUDA it is recorded once per size and replayed."""
        on_cuda = next(self.reasoner.backbone.language_model.parameters()).device.type == "cuda"
        mode = "reduce-overhead" if on_cuda else "default"
        compiled: Callable[..., Emitted] = torch.compile(self._plain_step, fullgraph=True, dynamic=False, mode=mode)
        return compiled

    def _noise(self, rows: Rows, steps: int) -> Tensor | None:
        """Random numbers of the latents of the next steps; None if there will be no latent."""
        wanted = may_be_latent(self.reasoner, rows) if steps == 1 else ~rows.done
        if steps == 1 and not self.settings.compile and not bool(wanted.any()):
            return None
        return latent_noise(self.settings, rows, wanted, steps, rows.latent.shape[-1])

    def _advance(self, rows: Rows, hidden: Tensor, noise: Tensor | None) -> Emitted:
        return advance(self.reasoner, self.settings, self._eos, rows, hidden, noise)

    # ------------------------------------------------------------------ looks

    def _look(self, emitted: Sequence[Emitted], used: Sequence[_Row]) -> None:
        """See what some rows did in the last steps: latents to keep, rows that ended, numbers that are not finite."""
        first = len(self._used) - len(used)
        rows = self._rows[first : len(self._used)]
        for step in emitted:
            self._keep_latents(step, used)
        if bool((rows.bad_step != NOT_BAD).any()):
            self._raise_not_finite(rows, used)
        if self.settings.stop_strings:
            self._stop_at_strings(rows)
        if self._on_step is not None:
            self._tell(emitted[0], rows)
        states = zip(used, rows.done.tolist(), rows.step.tolist(), rows.reason.tolist(), strict=True)
        for place, (row, done, length, reason) in enumerate(states):
            if done and not row.done:
                self._end(row, rows[place : place + 1], length, REASONS[reason])

    def _keep_latents(self, step: Emitted, used: Sequence[_Row]) -> None:
        if step.latents is None or step.densities is None:
            return
        at = step.is_latent.nonzero()[:, 0]
        for place, latent, density in zip(
            at.tolist(), step.latents[at].unbind(), step.densities[at].unbind(), strict=True
        ):
            used[place].response.latents.append(latent)
            used[place].response.densities.append(density)

    def _raise_not_finite(self, rows: Rows, used: Sequence[_Row]) -> None:
        bad = (rows.bad_step != NOT_BAD).nonzero()[:, 0]
        place = int(bad[rows.bad_step[bad].argmin()])
        what = "a latent" if bool(rows.bad_latent[place]) else "the logits"
        name = used[place].slot.name
        whose = f"row {int(rows.name[place])}" if name is None else f"branch {used[place].branch} of {name}"
        raise DecodingError(
            f"{what} of {whose} at step {int(rows.bad_step[place])} is not finite; check the weights, or decode in "
            "float32"
        )

    def _stop_at_strings(self, rows: Rows) -> None:
        """End the rows whose newest token completes a stop string; the token may extend beyond it."""
        stops = self.settings.stop_strings
        if self.reasoner.processor is None:
            raise ConfigError("stop_strings need a tokenizer; this checkpoint has none")
        # A token is at least one byte, so the last `longest` tokens contain any stop string that the newest completes.
        longest = max(len(text.encode()) for text in stops)
        columns = rows.step[:, None] - torch.arange(longest, 0, -1, device=rows.step.device)
        newest = rows.tokens.gather(1, columns.clamp(min=0)).tolist()
        tails = [own[max(0, longest - length) :] for own, length in zip(newest, rows.step.tolist(), strict=True)]
        texts = self.reasoner.processor.tokenizer.batch_decode(tails, skip_special_tokens=False)
        found = torch.tensor([any(stop in text for stop in stops) for text in texts], device=rows.done.device)
        ended = rows.reason == REASONS.index("eos")
        rows.reason.masked_fill_(found & ~ended, REASONS.index("stop"))
        rows.done.logical_or_(found)

    def _tell(self, step: Emitted, rows: Rows) -> None:
        going = step.going.nonzero()[:, 0]
        going = going[rows.name[going].argsort()]
        if self._on_step is not None:
            self._on_step(DecodingStep(self._step, rows.name[going], step.tokens[going], step.is_latent[going]))

    def _end(self, row: _Row, own: Rows, length: int, reason: FinishReason) -> None:
        response = row.response
        response.tokens, response.log_probs = own.tokens[0, :length].clone(), own.log_probs[0, :length].clone()
        response.chosen, response.slots = own.chosen[0, :length].clone(), own.slots[0, :length].clone()
        response.reason = reason
        row.done = True
        row.slot.going -= 1
        if not row.slot.going:
            self._finished[row.slot.number] = row.slot.responses

    def _leave(self) -> None:
        """Move the rows and the slots that go on into the places of those that are done."""
        done = sum(row.done for row in self._used)
        if not done or (done < self.runner.drops_at * len(self._used) and all(slot.going for slot in self._slots)):
            return
        slots = _closed_up([bool(slot.going) for slot in self._slots])
        self.runner.keep_slots(slots)
        self._slots = [self._slots[place] for place in slots]
        order = _closed_up([not row.done for row in self._used])
        self.runner.keep_rows(order)
        found = moves(order, self._rows.key.device)
        if found is not None:
            self._rows.move(*found)
        self._used = [self._used[place] for place in order]
        index = {slot.number: place for place, slot in enumerate(self._slots)}
        places = [index[row.slot.number] * self.settings.num_branches + row.branch for row in self._used]
        self._in_order = places == list(range(len(places)))
        self._rows.place[: len(places)] = torch.tensor(places, dtype=torch.int64, device=self._rows.place.device)
        self._rows.place[len(places) :] = self._sizes.all_rows
        self._rows.done[len(places) :] = True


def _closed_up(stays: Sequence[bool]) -> list[int]:
    """Which entry goes to each place, so that those that stay fill the first places and few of them move."""
    count = sum(stays)
    movers = (place for place in range(count, len(stays)) if stays[place])
    return [place if stays[place] else next(movers) for place in range(count)]
