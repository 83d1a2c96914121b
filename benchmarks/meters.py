"""What benchmarks of the model measure in the same way, on CPU and on CUDA: seconds, and peak memory."""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """`--device` and `--dtype`."""
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32, or bfloat16 on CUDA")


def seconds_now(device: str) -> float:
    """A clock that stands still until the device has done what it was asked to."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb(device: str) -> float:
    """Most MB held at any time since the start, or since `forget_peak`: tensors on CUDA, the whole process on CPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return _resident_mb("VmHWM")


def forget_peak(device: str) -> float:
    """Let the next peak begin here; returns the MB held now. The peak of a process is that of Linux."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _resident_mb("VmRSS")


def _resident_mb(field: str) -> float:
    """Memory of this process, `VmRSS` now or `VmHWM` at most since the last reset, from Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) / 1024


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def machine(device: str) -> str:
    """Device and PyTorch, for the head of a table."""
    name = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    return f"PyTorch {torch.__version__}, {name}"
