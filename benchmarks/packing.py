"""Speed and memory of supervised batches whose records are packed into one row, against padded ones.

    python benchmarks/packing.py [--records 8] [--batches 6] [--mean 350] [--repeats 5] [--threads 2]
                                 [--device cuda --dtype bfloat16]

Lengths are exponential between 100 and 1,000 tokens, a tenth of what records of video have; the last quarter of each
record is labelled. Forward and backward of :class:`LatentSFTLoss` over all batches are timed, with the model of
`benchmarks/update.py`. The two ways take turns in one process, so that a noisy machine slows both; memory is that of a
fresh process for each way, above that process before its first batch. ``sorted`` gives the padded way batches of
records of similar length, as `tokens_per_batch` does.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.utils.rnn import pad_sequence

from futurel1.data import SFTBatch
from futurel1.losses import LatentSFTLoss
from meters import add_device_options, in_fresh_process, machine, peak_mb, seconds_now
from update import make_reasoner

SHORTEST, LONGEST = 100, 1000
WAYS = ("padded", "sorted", "packed")


def make_lengths(options: argparse.Namespace) -> torch.Tensor:
    """(batches, records) tokens of each record, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batches, options.records)
    drawn = torch.empty(shape).exponential_(1 / (options.mean - SHORTEST), generator=generator)
    return (SHORTEST + drawn).clamp(max=LONGEST).long()


def make_batch(lengths: list[int], device: str) -> SFTBatch:
    """Records of random words."""
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = [torch.randint(0, 256, (length,), generator=generator) for length in lengths]
    labels = [torch.where(torch.arange(len(row)) < len(row) * 3 // 4, -100, row) for row in ids]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    padded = pad_sequence(ids, batch_first=True), mask, pad_sequence(labels, batch_first=True, padding_value=-100)
    return SFTBatch(*padded).to(device)


def make_pass(way: str, options: argparse.Namespace) -> Callable[[], float]:
    """A function that runs forward and backward of all batches and returns the summed cross entropy."""
    torch.set_num_threads(options.threads)
    reasoner = make_reasoner(LONGEST).to(options.device, getattr(torch, options.dtype))
    lengths = make_lengths(options)
    if way == "sorted":
        lengths = lengths.flatten().sort().values.view_as(lengths)
    batches = [make_batch(row, options.device) for row in lengths.tolist()]
    loss = LatentSFTLoss(packing=way == "packed")

    def run() -> float:
        total = 0.0
        for batch in batches:
            reasoner.zero_grad()
            output = loss(reasoner, batch)
            output.loss.backward()
            total += float(output.ce_sum)
        return total

    return run


def measure_speed(options: argparse.Namespace) -> dict[str, tuple[list[float], list[float], float]]:
    """Of each way, seconds of the clock and of the processor in every repeat, and the cross entropy."""
    passes = {way: make_pass(way, options) for way in WAYS}
    found: dict[str, tuple[list[float], list[float], float]] = {way: ([], [], run()) for way, run in passes.items()}
    for _ in range(options.repeats):
        for way, run in passes.items():
            begin, begin_busy = seconds_now(options.device), time.process_time()
            run()
            found[way][0].append(seconds_now(options.device) - begin)
            found[way][1].append(time.process_time() - begin_busy)
    return found


def measure_memory(way: str, options: argparse.Namespace) -> float:
    """Peak MB of a pass above the process that is ready to run it."""
    run = make_pass(way, options)
    idle = peak_mb(options.device)
    run()
    return peak_mb(options.device) - idle


def main() -> None:
    """Print a line per way, and ratios to the padded one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("records", 8), ("batches", 6), ("mean", 350), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_device_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{vars(options)}, {machine(options.device)}")
    lengths = make_lengths(options)
    real, padded = int(lengths.sum()), int(lengths.amax(dim=1).sum()) * options.records
    print(f"records of {int(lengths.min())} to {int(lengths.max())} tokens; {1 - real / padded:.0%} of rows is padding")
    speed = in_fresh_process(measure_speed, options)
    memory = {way: in_fresh_process(measure_memory, way, options) for way in WAYS}
    for way, (seconds, busy, entropy) in speed.items():
        faster, by_processor = (
            statistics.median(a / b for a, b in zip(base, own, strict=True))
            for base, own in zip(speed["padded"][:2], (seconds, busy), strict=True)
        )
        print(
            f"  {way:<8}{statistics.median(seconds):>8.3f} s  spread {max(seconds) - min(seconds):.3f}  processor "
            f"{statistics.median(busy):.3f} s  peak {memory[way]:>5.0f} MB  cross entropy {entropy:.2f}  "
            f"{faster:.2f}x by the clock, {by_processor:.2f}x by the processor, {memory[way] / memory['padded']:.0%} "
            "of the memory"
        )


if __name__ == "__main__":
    main()
