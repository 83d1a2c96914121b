"""Candidates per second of `futurel1 curate` by engine, and where the time goes.

    python benchmarks/curation.py [--candidates 1000] [--clips 50] [--size 128] [--rollouts 8] [--tokens 32]
        [--latency 1.0] [--concurrency 32] [--workers 1] [--engines own server ray]

Candidates are questions about clips of the procedural world. The first table is the work of one candidate in this
process: decoding its frames, encoding both prompts, decoding responses with the tiny model (`--tokens` new tokens, in
batches of 4), and writing its line to the disk.

The second table is what engines add to a model's time. Every engine answers all candidates twice over:

    own loop  the model is a pause of as many seconds for a batch as the tiny model took
    ray       the same in one actor of a local cluster
    server    a server in a process of its own answers each request after `--latency` seconds, `--concurrency` at a time

Whatever is not the pause is overhead: decoding, encoding, messages, counting and writing, as far as they do not
happen while the model is busy anyway. `added` is (seconds - model's seconds) / model's seconds.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from futurel1.curation import Candidate, CandidateDataset, ProbeFolder, Prober, ProbeResult, Share, probe
from futurel1.data import PromptBatch, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched
from futurel1.data.fetching import fetch
from futurel1.data.prompts import PromptCollator, parse_prompt
from futurel1.engines import Decoding, Engine, OwnLoop, SampledResponses, Server
from futurel1.models import load_processor
from futurel1.models.transcript import Transcript
from futurel1.rollout import SamplingSettings
from futurel1.runs import load_reasoner
from futurel1.worlds import write_world
from meters import machine

MODEL = "tiny"
BATCH = 4
SAID = "<reason>It moves.</reason>\n<answer>left</answer>"


class Pause:
    """A model that takes as long as it is told and always says the same."""

    def __init__(self, rollouts: int, seconds_per_prompt: float) -> None:
        self.rollouts, self.seconds_per_prompt = rollouts, seconds_per_prompt

    def __call__(self, prompts: Iterable[PromptBatch]) -> Iterator[list[Transcript]]:
        for prompt in prompts:
            time.sleep(self.seconds_per_prompt * len(prompt))
            yield [Transcript(SAID, SAID, (), 16, "eos")] * (self.rollouts * len(prompt))


@dataclass(frozen=True)
class PausingModel:
    """What an actor of Ray loads."""

    encoder: ChatEncoder
    pause: Pause

    def load(self) -> Pause:
        return self.pause


def write_candidates(folder: Path, candidates: int, clips: int, size: int) -> Path:
    """Records about so many clips, repeated."""
    write_world(folder, train=clips, test=1, size=size, progress=False)
    lines = (folder / "train.jsonl").read_text().splitlines()
    file = folder / "candidates.jsonl"
    file.write_text("".join(f"{lines[number % len(lines)]}\n" for number in range(candidates)))
    return file


def stages(file: Path, encoder: ChatEncoder, decoding: Decoding, folder: Path, number: int) -> dict[str, float]:
    """Seconds of one candidate in each stage, one after the other in this process."""
    source = open_records(file)
    number = min(number, len(source))
    candidates = CandidateDataset(source, encoder)
    respond = SampledResponses(load_reasoner(MODEL, device="cpu"), decoding)
    collate = PromptCollator(encoder.pad_token_id)
    seconds = dict.fromkeys(("decode", "encode", "model", "write"), 0.0)
    results = ProbeFolder(folder, source.id, len(source))
    results.settle({"rollouts": decoding.num_branches})
    with results.shard_file(0, 1) as stream:
        for start in range(0, number, BATCH):
            numbers = range(start, min(start + BATCH, number))
            began = time.perf_counter()
            for place in numbers:
                for _ in range(2):  # hint frames take about as long as the observed ones
                    encoder.convert_pictures(parse_prompt(source.raw(place)), lambda frame, picture: None)
            decoded = time.perf_counter()
            made = [candidates[place] for place in numbers]
            encoded = time.perf_counter()
            for probe_name in ("base", "hint"):
                samples: list[Any] = [getattr(each, probe_name) for each in made if isinstance(each, Candidate)]
                list(respond([collate([Fetched(samples, [])])]))
            answered = time.perf_counter()
            results.append(stream, [ProbeResult(place, source.id(place), "probed", 1) for place in numbers])
            written = time.perf_counter()
            seconds["decode"] += decoded - began
            seconds["encode"] += encoded - decoded - (decoded - began)
            seconds["model"] += answered - encoded
            seconds["write"] += written - answered
    return {name: spent / number for name, spent in seconds.items()}


def timed(file: Path, engine: Engine[Any], folder: Path, workers: int) -> float:
    """Seconds of a curation by an engine, without starting it."""
    source = open_records(file)
    results = ProbeFolder(folder, source.id, len(source))
    results.settle({"rollouts": 1})
    prober = Prober(engine)
    with engine:
        candidates = CandidateDataset(source, engine.encoder)
        for _ in fetch([0], [[0]], list, num_workers=workers):  # workers of any engine start within the time
            pass
        began = time.perf_counter()
        table = probe(candidates, prober, results, Share(0, 1), batch_size=BATCH, num_workers=workers)
        seconds = time.perf_counter() - began
    assert table.num_open == 0
    return seconds


@contextmanager
def pausing_server(latency: float, concurrency: int, rollouts: int) -> Iterator[str]:
    """A server in a process of its own that answers after a pause, so many requests at a time."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(there, latency, concurrency, rollouts), daemon=True
    )
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def _serve(there: Any, latency: float, concurrency: int, rollouts: int) -> None:
    async def run() -> None:
        places = asyncio.Semaphore(concurrency)
        message = {"role": "assistant", "content": SAID}
        choices = [{"index": place, "finish_reason": "stop", "message": message} for place in range(rollouts)]
        body = json.dumps({"choices": choices}).encode()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
                await reader.readexactly(int(fields.get(b"content-length", b"0")))
                if head.startswith(b"GET") or b"/tokenize" in head.split(b"\r\n", 1)[0]:
                    writer.write(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n")
                    continue
                async with places:
                    await asyncio.sleep(latency)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await answer(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()  # the client has gone

        server = await asyncio.start_server(served, "127.0.0.1", 0, limit=2**26)
        there.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def engine_named(name: str, encoder: ChatEncoder, decoding: Decoding, pause: float, url: str, room: int) -> Engine[Any]:
    """An engine whose model pauses."""
    if name == "own":
        return OwnLoop(Pause(decoding.num_branches, pause), encoder)
    if name == "server":
        return Server(url, MODEL, concurrency=room).engine(MODEL, encoder, decoding)
    from futurel1.engines import Ray, RayEngine

    return RayEngine(Ray(device="cpu"), PausingModel(encoder, Pause(decoding.num_branches, pause)))


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"candidates": 1000, "clips": 50, "size": 128, "rollouts": 8, "tokens": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--staged", type=int, default=64, help="candidates of the first table")
    parser.add_argument("--engines", nargs="+", choices=["own", "server", "ray"], default=["own", "server"])
    options = parser.parse_args(args)
    logging.getLogger("futurel1.engines").setLevel(logging.ERROR)  # the server counts no tokens
    folder = Path(tempfile.mkdtemp())
    try:
        report(options, folder)
    finally:
        shutil.rmtree(folder)


def report(options: argparse.Namespace, folder: Path) -> None:
    """Print both tables."""
    file = write_candidates(folder / "world", options.candidates, options.clips, options.size)
    (folder / "prompt.txt").write_text("Think, then answer.")
    encoder = ChatEncoder(load_processor(MODEL), system_prompt=folder / "prompt.txt")
    decoding = Decoding(SamplingSettings(max_new_tokens=options.tokens), options.rollouts)
    print(f"{machine('cpu')}; {options.candidates} candidates, {options.rollouts} responses of {options.tokens} tokens")
    spent = stages(file, encoder, decoding, folder / "stages", options.staged)
    for name, seconds in spent.items():
        print(f"{name:>8} {1000 * seconds:8.2f} ms a candidate {seconds / sum(spent.values()):6.1%}")
    pause = spent["model"] / 2
    with pausing_server(options.latency, options.concurrency, options.rollouts) as url:
        for name in options.engines:
            engine = engine_named(name, encoder, decoding, pause, url, options.concurrency)
            seconds = timed(file, engine, folder / name, options.workers)
            probes = 2 * options.candidates
            model = probes * (options.latency / options.concurrency if name == "server" else pause)
            rate, added = options.candidates / seconds, seconds / model - 1
            print(f"{name:>8} {rate:8.1f} candidates/s, model {model:6.1f} s, all {seconds:6.1f} s, added {added:6.1%}")


if __name__ == "__main__":
    main()
