r"""Write a pretrained tiny backbone into a folder, in fp16, with its system prompt and model card.

    python -m experiments.tiny_backbone runs/tiny-pretrain
    python -m experiments.tiny_backbone runs/atari-pretrain --out experiments/atari/backbone \
        --card experiments/atari/backbone.md

RUN is the last of three runs, such as one of `configs/tiny/pretrain.yaml`; the two runs before it are found by the
configurations. Names in braces in the card are replaced by numbers, such as the last `val/rms` of the first run for
`{tower/val/rms}`.
"""

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from futurel1.models import LatentReasoner
from futurel1.models.checkpoint_folders import TINY_FOLDER

ROOT = Path(__file__).resolve().parents[1]
CARD = Path(__file__).with_name("tiny_backbone.md")
MEGABYTES = 8


def last_values(run: Path) -> dict[str, float]:
    """The last value of every column of a run's `metrics.csv`."""
    values: dict[str, float] = {}
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values |= {name: float(value) for name, value in row.items() if value}
    return values


def configuration(run: Path) -> dict[str, Any]:
    """The configuration of a run."""
    settings: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return settings


def pack(run: Path, out: Path, model_card: Path) -> None:
    """Write the weights, the processor, the system prompt, the licence and the model card to `out`."""
    config = configuration(run)
    imagine = Path(config["model"]["init_args"]["init_from"])
    tower = Path(configuration(imagine)["model"]["init_args"]["init_from"])
    reasoner = LatentReasoner.from_pretrained(run / "huggingface", dtype=torch.float16)
    if reasoner.processor is None:
        raise SystemExit(f"{run}/huggingface has no tokenizer")
    reasoner.processor.system_prompt = (ROOT / config["data"]["init_args"]["system_prompt"]).read_bytes().decode()
    if out.exists():
        shutil.rmtree(out)
    reasoner.save_pretrained(out)
    shutil.copy(ROOT / "LICENSE", out / "LICENSE")

    numbers = {f"tower/{name}": value for name, value in last_values(tower).items()}
    numbers |= {f"imagine/{name}": value for name, value in last_values(imagine).items()}
    numbers |= {f"model/{name}": value for name, value in last_values(run).items()}
    numbers["parameters"] = sum(parameter.numel() for parameter in reasoner.parameters()) / 1e6
    card = model_card.read_text(encoding="utf-8")
    for name, value in numbers.items():
        card = card.replace(f"{{{name}}}", f"{value:.3f}")
    (out / "README.md").write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{out}: {numbers['parameters']:.2f} million parameters, {size:.1f} MB")
    if size > MEGABYTES:
        raise SystemExit(f"more than {MEGABYTES} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of the last of the three runs")
    parser.add_argument("--out", type=Path, default=TINY_FOLDER, help="folder to write (default: the package's own)")
    parser.add_argument("--card", type=Path, default=CARD, help="model card (default: that of the package's backbone)")
    options = parser.parse_args()
    pack(options.run, options.out, options.card)
