"""What every metric must do: add up over two processes, be pickled, cloned and moved, and show a true example."""

import doctest
import importlib
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from simulated import SPLITS, TOKENS, make_questions, make_rollouts

import futurel1.metrics
from futurel1.metrics import FutureBenchAccuracy, LatentUsage, Throughput, TwiFFBenchScore
from processes import run_ranks

FIRST, SECOND = 13, 5
"""Samples of the two ranks."""


def futurebench(seed):
    metric = FutureBenchAccuracy()
    return metric, [make_questions(FIRST, seed), make_questions(SECOND, seed + 1)]


def twiffbench(seed):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(-1, 7, (FIRST + SECOND, 2), generator=draw).tolist()
    return TwiFFBenchScore(), [{"scores": scores[:FIRST]}, {"scores": [None, *scores[FIRST:]]}]


def latent_usage(seed):
    return LatentUsage(TOKENS, splits=SPLITS), [make_rollouts(FIRST, seed)[0], make_rollouts(SECOND, seed + 1)[0]]


def throughput(seed):
    return Throughput(), [{"tokens": [3, 5, seed], "seconds": 1.25}, {"tokens": [7], "seconds": [0.5]}]


METRICS = [futurebench, twiffbench, latent_usage, throughput]


def plain(metric):
    return {key: value.item() for key, value in metric.compute().items()}


def single_process(make, batches_of=(0, 1)):
    metric, batches = make(seed=4)
    for index in batches_of:
        metric.update(**batches[index])
    return plain(metric)


def work(rank, folder):
    """What each process does: one batch each, then everything on rank 1 and nothing on rank 0."""
    report = {}
    for make in METRICS:
        metric, batches = make(seed=4)
        metric.update(**batches[rank])
        report[make.__name__] = plain(metric)
        metric.update(**batches[rank])  # after synchronising, a metric goes on from its own state
        report[f"{make.__name__} twice"] = plain(metric)
        lonely, _ = make(seed=4)
        if rank == 1:
            lonely.update(**batches[0])
            lonely.update(**batches[1])
        report[f"{make.__name__} on one rank"] = plain(lonely)
    Path(folder, f"rank{rank}.pickle").write_bytes(pickle.dumps(report))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(work, str(folder))
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("make", METRICS)
def test_two_processes_add_up_to_one(two_ranks, make):
    expected = pytest.approx(single_process(make), nan_ok=True)
    twice = pytest.approx(single_process(make, batches_of=(0, 1, 0, 1)), nan_ok=True)
    for report in two_ranks:
        assert report[make.__name__] == expected
        assert report[f"{make.__name__} twice"] == twice
        assert report[f"{make.__name__} on one rank"] == expected


@pytest.mark.parametrize("make", METRICS)
def test_pickles_and_clones_go_on_from_where_they_were(make):
    metric, batches = make(seed=4)
    metric.update(**batches[0])
    copies = [pickle.loads(pickle.dumps(metric)), metric.clone()]
    before = plain(metric)
    for copy in copies:
        copy.update(**batches[1])
        assert plain(copy) == pytest.approx(single_process(make), nan_ok=True)
    assert plain(metric) == pytest.approx(before, nan_ok=True)


@pytest.mark.parametrize("make", METRICS)
def test_state_dict_restores_a_metric(make):
    metric, batches = make(seed=4)
    metric.persistent(True)
    metric.update(**batches[0])
    other, _ = make(seed=4)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    other.update(**batches[1])
    assert plain(other) == pytest.approx(single_process(make), nan_ok=True)


@pytest.mark.parametrize("make", METRICS)
def test_reset_leaves_no_trace(make):
    metric, batches = make(seed=4)
    metric.update(**batches[0])
    metric.reset()
    for batch in batches:
        metric.update(**batch)
    assert plain(metric) == pytest.approx(single_process(make), nan_ok=True)


@pytest.mark.parametrize("make", METRICS)
def test_a_metric_used_in_inference_mode_can_be_used_outside(make):
    metric, batches = make(seed=4)
    with torch.inference_mode():
        metric.update(**batches[1])
        metric.compute()
        metric.reset()
        metric.update(**batches[0])
    metric.update(**batches[1])
    assert plain(metric) == pytest.approx(single_process(make), nan_ok=True)


@pytest.mark.parametrize("make", METRICS)
def test_forward_gives_the_batch_alone_and_adds_it(make):
    metric, batches = make(seed=4)
    metric.update(**batches[0])
    batch = {key: value.item() for key, value in metric(**batches[1]).items()}
    assert batch == pytest.approx(single_process(make, batches_of=[1]), nan_ok=True)
    assert plain(metric) == pytest.approx(single_process(make), nan_ok=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", METRICS)
def test_on_a_gpu_everything_is_the_same(make):
    metric, batches = make(seed=4)
    metric.to("cuda")
    for batch in batches:
        metric.update(
            **{key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        )
    assert all(value.device.type == "cuda" for value in metric.compute().values())
    assert plain(metric) == pytest.approx(single_process(make), nan_ok=True)


MODULES = [found.name for found in pkgutil.walk_packages(futurel1.metrics.__path__, "futurel1.metrics.")]


def test_examples_in_docstrings_are_true():
    results = {name: doctest.testmod(importlib.import_module(name)) for name in MODULES}
    assert {name: result.failed for name, result in results.items() if result.failed} == {}
    for name in ("futurebench", "twiffbench", "latent_usage", "throughput"):
        assert results[f"futurel1.metrics.{name}"].attempted > 0


def test_every_module_says_what_it_offers():
    for name in ("futurel1.metrics", *MODULES):
        module = importlib.import_module(name)
        assert [public for public in module.__all__ if not hasattr(module, public)] == []
        assert module.__all__ == sorted(module.__all__, key=lambda public: (not public.isupper(), public))


def test_parsers_load_neither_torchmetrics_nor_lightning():
    code = (
        "import sys, futurel1.metrics.functional; print({'torchmetrics', 'lightning', 'transformers'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
