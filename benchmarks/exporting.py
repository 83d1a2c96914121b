"""Peak memory of `futurel1 export` from a sharded checkpoint, against PyTorch's own conversion.

    python benchmarks/exporting.py [--width 1024] [--layers 16] [--vocabulary 32768]

The checkpoint has fp32 masters and AdamW's two moments, as FSDP2 saves them; the export is bfloat16. Every way runs in
a process of its own, and exports a small model first, so that imports do not count.

    plain     `dcp_to_torch_save`, `torch.load`, `load_state_dict` into the fp32 model, cast, `save_pretrained`
    futurel1  `futurel1.export.export`

Memory is that of the whole process (Linux), pages of mapped files included. Weights of both ways are compared.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from futurel1.export import export
from futurel1.models import LatentReasoner, LatentTokens
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.tiny import tiny_model, tiny_processor
from futurel1.models.checkpoints import register_tokens
from meters import forget_peak, in_fresh_process, machine, peak_mb


def write_run(run: Path, text: dict[str, Any]) -> tuple[int, int]:
    """A base model in bfloat16, and a sharded checkpoint of a run that started from it.

    Returns the number of its parameters, and that of the largest.
    """
    processor = tiny_processor()
    register_tokens(processor.tokenizer)
    tokens = LatentTokens.from_tokenizer(processor.tokenizer)
    assert tokens is not None
    reasoner = LatentReasoner(Qwen3VLBackbone(tiny_model(**text)), tokens, processor=processor)
    reasoner.save_pretrained(run / "base", dtype=torch.bfloat16)
    state = {f"reasoner.{name}": weight for name, weight in reasoner.state_dict().items()}
    moments = {name: {"exp_avg": weight, "exp_avg_sq": weight} for name, weight in state.items()}
    checkpoint = run / "checkpoints" / "last.ckpt"
    with warnings.catch_warnings(action="ignore"):  # torch says that it writes in a single process
        dcp.save({"state_dict": state, "optimizer_0": {"state": moments}}, checkpoint_id=checkpoint, no_dist=True)
    hparams = {"backbone": str(run / "base"), "init_from": None, "dtype": "float32", "compute_dtype": "bfloat16"}
    torch.save({"global_step": 1, "hyper_parameters": hparams}, checkpoint / "meta.pt")
    sizes = [weight.numel() for weight in reasoner.parameters()]
    return sum(sizes), max(sizes)


def plain(run: Path, out: Path) -> None:
    """PyTorch's conversion to one file, and a model that is loaded from it."""
    dcp_to_torch_save(run / "checkpoints" / "last.ckpt", out.with_suffix(".pt"))
    state = torch.load(out.with_suffix(".pt"), weights_only=True)["state_dict"]
    reasoner = LatentReasoner.from_pretrained(run / "base")
    reasoner.load_state_dict({name.removeprefix("reasoner."): weight for name, weight in state.items()})
    reasoner.to(torch.bfloat16).save_pretrained(out)


def ours(run: Path, out: Path) -> None:
    """The command."""
    export(str(run), str(out))


def measured(way: Callable[[Path, Path], None], small: Path, run: Path, out: Path) -> tuple[float, float]:
    """Seconds, and MB that the process grew by at most."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    way(small, out.with_name(f"{out.name}-small"))
    before = forget_peak("cpu")
    began = time.perf_counter()
    way(run, out)
    return time.perf_counter() - began, peak_mb("cpu") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=32768)
    given = parser.parse_args()
    sizes = {
        "hidden_size": given.width, "intermediate_size": 3 * given.width, "num_hidden_layers": given.layers,
        "vocab_size": given.vocabulary, "num_attention_heads": given.width // 32,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        in_fresh_process(write_run, work / "small", {})
        parameters, largest = in_fresh_process(write_run, work / "run", sizes)
        copy, shard = 2 * parameters / 2**20, 4 * largest / 2**20
        print(f"{parameters / 1e6:.0f} M parameters, {copy:.0f} MB in bfloat16; largest shard {shard:.0f} MB")
        print(machine("cpu"))
        print(f"{'way':<10}{'seconds':>9}{'peak MB':>9}{'copies in bfloat16':>20}")
        for name, way in {"plain": plain, "futurel1": ours}.items():
            seconds, peak = in_fresh_process(measured, way, work / "small", work / "run", work / name)
            print(f"{name:<10}{seconds:>9.1f}{peak:>9.0f}{peak / copy:>20.2f}")
        one, two = (load_file(work / name / "model.safetensors") for name in ("plain", "futurel1"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


if __name__ == "__main__":
    main()
