"""The model card of a checkpoint folder: a README.md with the hub's metadata, and how the folder is loaded."""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from futurel1.files import write_whole
from futurel1.folders import place_of
from futurel1.models.backbones.random_weights import is_random
from futurel1.models.checkpoint_folders import TINY
from futurel1.models.settings import LatentSettings
from futurel1.models.tokens import LATENT, LATENT_END, LATENT_START, LatentTokens
from futurel1.version import __version__

logger = logging.getLogger(__name__)
CARD_FILE = "README.md"
ANY_FOLDER = "path/to/this/folder"
"""Stands for the checkpoint in the examples of a card until the card is pushed and the repository's name is known."""
_SIGNATURE = re.compile(r"\n<!-- futurel1 wrote this card, sha256 ([0-9a-f]{64})\. [^\n]*-->\n$")


@dataclass(frozen=True)
class TrainingRun:
    """What a model card says about the run that a checkpoint comes from.

    Attributes:
        module: class of the training module.
        steps: optimizer steps that were taken.
        settings: hyper-parameters of the module.
        data: class of the data, and its settings.
        metrics: metric to the value that was logged last.
    """

    module: str
    steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """What a model card describes.

    Attributes:
        stock_class: class of `transformers` that loads the folder.
        parameters: number of parameters, the projection head's included.
        tokens: ids of the latent tokens.
        settings: latent settings.
        has_processor: tokenizer and processor are in the folder.
        base_model: what it started from: hub name, ``tiny``, or random weights (``tiny@random``); None: not known.
        training: the run that it comes from; None: not known.
    """

    stock_class: str
    parameters: int
    tokens: LatentTokens
    settings: LatentSettings
    has_processor: bool
    base_model: str | None = None
    training: TrainingRun | None = None


def describe(reasoner: Any, training: TrainingRun | None) -> Described:
    """What the card of a reasoner says.

    Args:
        reasoner: a :class:`futurel1.models.LatentReasoner`.
        training: the run that it comes from; None: not known.
    """
    return Described(
        stock_class=reasoner.backbone.stock_class,
        parameters=sum(parameter.numel() for parameter in reasoner.parameters()),
        tokens=reasoner.tokens,
        settings=reasoner.settings,
        has_processor=reasoner.processor is not None,
        base_model=reasoner.base_model,
        training=training,
    )


def write_card(folder: Path, described: Described) -> bool:
    """Write `README.md`, unless there is one that somebody has written or edited.

    Args:
        folder: the checkpoint folder, or the one that will replace it (:func:`futurel1.folders.replacing_folder`).
        described: what is in it.

    Returns:
        Whether the card was written; a file that is kept is named in the log.
    """
    there = place_of(folder) / CARD_FILE
    if there.is_file() and not is_generated(there.read_text(encoding="utf-8", errors="replace")):
        logger.warning("%s was not written by futurel1, or was edited since: it is kept, check what it says", there)
        return False
    write_whole(folder / CARD_FILE, model_card(described))
    return True


def model_card(described: Described, name: str = ANY_FOLDER) -> str:
    """The text of a model card: metadata as YAML, then Markdown. Absolute paths of this machine are not in it.

    Args:
        described: what the card is for.
        name: folder or repository in the examples.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base = described.base_model
    on_hub = None if base is None or base == TINY or is_random(base) else base
    metadata = ModelCardData(
        base_model=on_hub,
        library_name="futurel1",
        pipeline_tag="video-text-to-text",
        tags=["futurel1", "latent-reasoning", "video-event-prediction", "arxiv:2606.05769"],
    )
    if base is not None and on_hub is None:
        metadata["futurel1_backbone"] = base
    sections = [_what_it_is(described), _latents(described), _loading(described, name)]
    if described.training is not None:
        sections += [_training(described.training), _metrics(described.training)]
    body = "\n\n".join(sections)
    return _signed(str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n")))


def is_generated(card: str) -> bool:
    """Whether a card is as :func:`model_card` wrote it; False for one that was edited afterwards."""
    card = card.replace("\r\n", "\n")
    found = _SIGNATURE.search(card)
    return found is not None and found[1] == _digest(card[: found.start()])


def renamed(card: str, name: str) -> str:
    """A generated card whose examples load `name`; another card as it is.

    Args:
        card: text of a card.
        name: repository on the hub.
    """
    if not is_generated(card):
        return card
    card = card.replace("\r\n", "\n")
    return _signed(_SIGNATURE.sub("", card).replace(f'"{ANY_FOLDER}"', f'"{name}"'))


def base_model_of(path: str | Path) -> str | None:
    """What a checkpoint started from, for the card of one that starts from it.

    Args:
        path: what the checkpoint was loaded from: hub name, ``tiny``, random weights, or folder.

    Returns:
        Hub name, ``tiny``, or name of random weights; None for a folder that has no card of this library.
    """
    from huggingface_hub import ModelCard

    folder = Path(path).expanduser()
    if str(path) == TINY or is_random(path) or not folder.is_dir():
        return str(path)
    file = folder / CARD_FILE
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if not is_generated(text):
        return None  # a card of somebody else names the model that theirs started from
    metadata = ModelCard(text).data
    base = metadata.get("base_model") or metadata.get("futurel1_backbone")
    return None if base is None else str(base)


def _what_it_is(described: Described) -> str:
    base = described.base_model
    if base is None:
        origin = "The model that it started from is not known: it was loaded from a folder that does not say."
    elif base == TINY:
        origin = f"It started from `{base}`, a small model for tests and demonstrations that `futurel1` ships."
    elif is_random(base):
        origin = f"It started from random weights, `{base}` of `futurel1`."
    else:
        origin = f"It started from [{base}](https://huggingface.co/{base})."
    return f"""# Latent reasoner

A `{described.stock_class}` with {described.parameters:,} parameters for video event prediction by interleaved latent
visual reasoning ([arXiv 2606.05769](https://arxiv.org/abs/2606.05769)): between words it imagines future frames as
continuous latents, and then answers. {origin} It was saved by `futurel1` {__version__}."""


def _latents(described: Described) -> str:
    settings, tokens, budget = described.settings, described.tokens, described.settings.budget()
    head = settings.projection_head_type
    projection = "none, a latent is the hidden state" if head == "none" else f"`{head}`"
    longest = "" if budget.kind == "fixed" else " at most"
    return f"""## Latents

- Tokens: `{LATENT_START}` {tokens.start_id}, `{LATENT}` {tokens.latent_id}, `{LATENT_END}` {tokens.end_id}.
- Latents of a hint frame in training: at most {settings.max_latent_tokens}.
- Latents of a span when decoding:{longest} {budget.latents}.
- Projection head: {projection}.
- Alignment loss: `{settings.latent_loss}`, weight {settings.latent_lambda:g}.
- A response begins with a span: {"always" if settings.force_initial_latent_mode else "when the model says so"}."""


def _loading(described: Described, name: str) -> str:
    stock = described.stock_class
    with_processor = "AutoProcessor, " if described.has_processor else ""
    processor = f'\nprocessor = AutoProcessor.from_pretrained("{name}")' if described.has_processor else ""
    lost = "The stock class knows no latents: its `generate` feeds the embedding of the latent token, not a vector."
    if described.settings.projection_head_type != "none":
        lost += " It does not load the projection head (`projection_head.safetensors`) either."
    return f"""## How to load it

With `futurel1`, latents included:

```python
from futurel1 import LatentReasoner

reasoner = LatentReasoner.from_pretrained("{name}")
```

With `transformers` alone:

```python
from transformers import {with_processor}{stock}

model = {stock}.from_pretrained("{name}"){processor}
```

{lost}"""


def _training(training: TrainingRun) -> str:
    import yaml

    parts = {"model": dict(training.settings), "data": dict(training.data)}
    settings = yaml.safe_dump(_shown(parts), sort_keys=False, allow_unicode=True, width=110).rstrip()
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", settings) or [""]))
    return f"""## Training

`{training.module}`, {training.steps:,} optimizer steps. Of absolute paths only the last part is shown.

{fence}yaml
{settings}
{fence}"""


def _metrics(training: TrainingRun) -> str:
    if not training.metrics:
        return "## Metrics\n\nThe run logged none."
    rows = "\n".join(f"| `{name}` | {value:.6g} |" for name, value in sorted(training.metrics.items()))
    return f"""## Metrics

The values that the run logged last. A value of `train` is that of one batch.

| metric | value |
|---|---|
{rows}"""


def _shown(value: Any) -> Any:
    """A setting as YAML can hold it, without folders of the machine it was used on."""
    if isinstance(value, Mapping):
        return {str(key): _shown(of) for key, of in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_shown(of) for of in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return f".../{kind(text).name}"
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _signed(text: str) -> str:
    text = text.rstrip("\n") + "\n"
    what = "The next save replaces it, unless it was edited."
    return f"{text}\n<!-- futurel1 wrote this card, sha256 {_digest(text)}. {what} -->\n"
