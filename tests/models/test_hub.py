"""Pushing to a stand-in of the hub; nothing leaves this machine."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_server import TOKEN, StandInHub, serve
from huggingface_hub import HfApi, ModelCard, constants

from futurel1.errors import ConfigError, MissingFileError
from futurel1.models import LatentReasoner, push_folder
from futurel1.models.model_card import is_generated


@pytest.fixture(scope="module")
def reasoner() -> LatentReasoner:
    return LatentReasoner.from_pretrained("tiny@random", projection_head="swiglu", projection_hidden_dim=8)


@pytest.fixture(scope="module")
def folder(reasoner: LatentReasoner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reasoner.save_pretrained(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    look_up = socket.getaddrinfo

    def look_up_here(host: Any, *args: Any, **options: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"asked for {host}"
        return look_up(host, *args, **options)

    with serve(StandInHub()) as hub:
        monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
        monkeypatch.setattr(huggingface_hub, "HfApi", partial(HfApi, endpoint=hub.url))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has the older way of uploading
        yield hub


def test_what_is_saved_arrives_in_one_commit(hub: StandInHub, reasoner: LatentReasoner, folder: Path) -> None:
    url = reasoner.push_to_hub("me/imagines", private=True, token=TOKEN, commit_message="First")
    assert url == f"{hub.url}/me/imagines"
    assert hub.commits == [("me/imagines", "main", "First")]
    assert hub.private["me/imagines"] in (True, "private")
    arrived = dict(hub.repositories["me/imagines"]["main"])
    assert arrived.pop(".gitattributes") == b""
    card = arrived.pop("README.md").decode()
    assert arrived == {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "README.md"}
    assert {"model.safetensors", "projection_head.safetensors", "config.json", "tokenizer.json"} <= arrived.keys()
    assert 'LatentReasoner.from_pretrained("me/imagines")' in card
    assert "path/to/this/folder" not in card
    assert is_generated(card)
    assert ModelCard(card).data.library_name == "futurel1"


def test_a_later_push_removes_weights_that_it_does_not_have(
    hub: StandInHub, reasoner: LatentReasoner, folder: Path, tmp_path: Path
) -> None:
    push_folder(folder, "imagines", token=TOKEN)
    files = hub.repositories["someone/imagines"]["main"]  # the account's own name goes before
    assert "projection_head.safetensors" in files
    files |= {"notes.txt": b"mine", "system_prompt.txt": b"old", "model-00001-of-00002.safetensors": b"old"}
    plain = LatentReasoner.from_pretrained("tiny@random").save_pretrained(tmp_path / "plain")
    (plain / "adapter").mkdir()
    (plain / "adapter" / "adapter_config.json").write_text("{}")
    (plain / ".cache").mkdir()
    (plain / ".cache" / "lock").write_text("")
    push_folder(plain, "someone/imagines", token=TOKEN)
    assert "model.safetensors" in files
    assert files["notes.txt"] == b"mine"
    assert files["adapter/adapter_config.json"] == b"{}"
    gone = {"projection_head.safetensors", "system_prompt.txt", "model-00001-of-00002.safetensors", ".cache/lock"}
    assert not gone & files.keys()
    assert len(hub.commits) == 2


def test_a_branch_is_made_once(hub: StandInHub, folder: Path) -> None:
    for _ in range(2):
        url = push_folder(folder, "me/imagines", token=TOKEN, revision="step-100")
        assert url == f"{hub.url}/me/imagines/tree/step-100"
    branches = hub.repositories["me/imagines"]
    assert "model.safetensors" in branches["step-100"]
    assert list(branches["main"]) == [".gitattributes"]


def test_a_card_that_somebody_wrote_is_kept_and_a_generated_one_replaced(
    hub: StandInHub, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push_folder(folder, "me/imagines", token=TOKEN)
    files = hub.repositories["me/imagines"]["main"]
    generated = files["README.md"]
    files["README.md"] = b"# Mine"
    with caplog.at_level(logging.WARNING, "futurel1"):
        push_folder(folder, "me/imagines", token=TOKEN)
    assert files["README.md"] == b"# Mine"
    assert "README.md of me/imagines was not written by futurel1" in caplog.text
    files["README.md"] = generated.replace(b"Latent reasoner", b"My reasoner")
    push_folder(folder, "me/imagines", token=TOKEN)
    assert files["README.md"].startswith(b"---\n")
    assert b"My reasoner" in files["README.md"]
    files["README.md"] = generated
    caplog.clear()
    push_folder(folder, "me/imagines", token=TOKEN)
    assert files["README.md"] == generated
    assert not caplog.records
    # A card of one's own in the folder is there to be pushed.
    own = tmp_path / "own"
    own.mkdir()
    for file in folder.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    (own / "README.md").write_text("# Also mine")
    push_folder(own, "me/imagines", token=TOKEN)
    assert files["README.md"] == b"# Also mine"


def test_what_the_hub_refuses_is_one_error(hub: StandInHub, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"me/imagines cannot be pushed: .*401.*hf auth login"):
        push_folder(folder, "me/imagines", token="hf_wrong")
    with pytest.raises(ConfigError, match=r"no/such/name cannot be pushed: .*check the name"):
        push_folder(folder, "no/such/name", token=TOKEN)
    assert hub.repositories == {}
    with pytest.raises(MissingFileError, match=r"config\.json"):
        push_folder(folder / "nowhere", "me/imagines", token=TOKEN)


def test_offline_nothing_is_sent_or_saved(
    hub: StandInHub, reasoner: LatentReasoner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(LatentReasoner, "save_pretrained", lambda *_, **__: pytest.fail("saved"))
    for push in (lambda: push_folder(folder, "me/imagines"), lambda: reasoner.push_to_hub("me/imagines")):
        with pytest.raises(ConfigError, match=r"me/imagines cannot be pushed: HF_HUB_OFFLINE .* is set"):
            push()
    assert hub.requests == []
