"""Decoding whose tokens come from a script, for tests of what happens around the choice of tokens."""

from types import SimpleNamespace

import torch
from families import TOKENS

from futurel1.data import PromptBatch
from futurel1.models.decoding.runners import RUNNERS, Runner


class Scripted(Runner):
    """In the place of the backbone: the hidden state of a row says its number and the step, nothing else."""

    def admit(self, prompt, slot):
        self.admitted = getattr(self, "admitted", -1) + 1
        return torch.tensor([float(self.admitted), 0.0])

    def feed(self, rows, embeds, prompts, columns, places):
        going = ~rows.done
        self.reasoner.fed.append((rows.name[going].tolist(), rows.step[going].tolist(), embeds[going].clone()))
        return torch.stack([rows.name.float(), rows.step.float()], dim=1)

    def keep_rows(self, order):
        pass


class Script:
    """A reasoner that picks tokens from a script: scripts[row][step]."""

    tokens = TOKENS
    hidden_size = 2
    processor = None

    def __init__(self, scripts):
        self.scripts = scripts
        self.fed = []
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.rand(len(scripts), len(scripts[0]), 120, generator=generator)
        self.backbone = SimpleNamespace(
            embed_tokens=lambda ids: -ids[..., None].float().expand(*ids.shape, 2),
            positions=lambda ids, mask, vision: torch.zeros(3, *ids.shape, dtype=torch.long),
            config=SimpleNamespace(
                image_token_id=0, video_token_id=0, vision_config=SimpleNamespace(spatial_merge_size=2)
            ),
            lm_head=SimpleNamespace(weight=torch.zeros(1)),
            shares_prompt=True,
            attn_implementation="sdpa",
        )

    def encode(self, prompt):
        return None

    def embed(self, ids, vision):
        return torch.zeros(*ids.shape, 2), None

    def logits(self, hidden):
        out = torch.stack([self.noise[int(row), int(step)] for row, step in hidden.tolist()])
        for i, (row, step) in enumerate(hidden.tolist()):
            out[i, self.scripts[int(row)][int(step)]] += 3
        return out

    def predict_latents(self, hidden):
        return hidden * 10 + 1


def written(monkeypatch, reasoner, texts, **options):
    """Have a reasoner with a tokenizer write given texts, one per row; `options` are those of `generate`."""
    tokenizer = reasoner.tokenizer
    scripts = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    longest = max(map(len, scripts))
    script = Script([ids + [tokenizer.eos_token_id] * (longest - len(ids)) for ids in scripts])
    script.noise = torch.zeros(len(scripts), longest, len(tokenizer))
    monkeypatch.setattr(reasoner.backbone, "embed_tokens", script.backbone.embed_tokens)
    monkeypatch.setitem(RUNNERS, "shared", Scripted)
    monkeypatch.setattr(type(reasoner), "logits", lambda _, hidden: script.logits(hidden))
    monkeypatch.setattr(reasoner, "fed", [], raising=False)
    prompt = PromptBatch(torch.full((len(texts), 2), 5), torch.ones(len(texts), 2, dtype=torch.long))
    return reasoner.generate(prompt, **{"max_new_tokens": longest, **options})


def response_texts(rollout, tokenizer):
    """What each row of a rollout wrote, its end token included."""
    lengths = rollout.response_mask.sum(1).tolist()
    return [tokenizer.decode(ids[:length]) for ids, length in zip(rollout.responses, lengths, strict=True)]
