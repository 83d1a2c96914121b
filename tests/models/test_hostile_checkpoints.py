"""Checkpoints from somewhere else: nothing of them is run, nobody is asked, and one line says what is wrong."""

import builtins
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import edit_config
from safetensors.torch import load_file, save_file

from futurel1.errors import CheckpointError
from futurel1.models import LatentReasoner, load_processor
from futurel1.models.checkpoint_folders import checkpoint_folder

HAPPENED = "it-ran"
CODE = """
from pathlib import Path
from transformers import Qwen3VLConfig, Qwen3VLProcessor
Path({mark!r}).touch()
class Config(Qwen3VLConfig): pass
class Processor(Qwen3VLProcessor): pass
"""
AUTO_MAP = {
    "AutoConfig": "evil.Config",
    **{f"Auto{part}": "evil.Processor" for part in ("Processor", "Tokenizer", "ImageProcessor", "VideoProcessor")},
}


class Evil:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / HAPPENED


@pytest.fixture(autouse=True)
def nothing_runs(mark, monkeypatch):
    """No code of a checkpoint runs, and nobody is asked whether it may."""
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("a question was asked"))
    yield
    assert not mark.exists()


def shards(folder, name="model-00001-of-00001.safetensors", metadata=True):
    """Move the weights into one shard with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(weights, name)} | ({"metadata": {}} if metadata else {})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def refused(folder):
    """The error, which is one line."""
    with pytest.raises(CheckpointError) as caught:
        LatentReasoner.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200
    return str(caught.value)


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "../elsewhere.safetensors", "sub/model.safetensors", "/tmp/elsewhere.safetensors",
        "https://host/model.safetensors", "C:model.safetensors", "..\\elsewhere.safetensors", "..", "", 7, None, ["a"],
        "\x1b[2J/../x.safetensors", "x" * 5000,
    ],
)  # fmt: skip
def test_an_index_names_safetensors_of_its_own_folder_only(stock_folder, mark, name):
    weights = load_file(stock_folder / "model.safetensors")
    for place in (stock_folder, stock_folder / "sub", stock_folder.parent):
        place.mkdir(exist_ok=True)
        for file in ("model.safetensors", "elsewhere.safetensors"):
            save_file(weights, place / file, metadata={"format": "pt"})
    torch.save({"weight": Evil(mark)}, stock_folder / "pytorch_model.bin")
    shards(stock_folder, name)
    said = refused(stock_folder)
    assert "index.json names " in said
    assert "only *.safetensors of the same folder are loaded, never pickled weights" in said
    assert said.isprintable()


def test_shards_that_are_links_are_loaded(stock_folder, tmp_path):
    """The hub's cache consists of links to ../../blobs."""
    shards(stock_folder)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(stock_folder.glob("model*"))):
        shutil.move(file, blobs / str(number))
        file.symlink_to(Path("..") / "blobs" / str(number))
    loaded = LatentReasoner.from_pretrained(stock_folder).state_dict()
    name = "model.visual.merger.norm.weight"
    assert torch.equal(loaded[f"backbone.model.{name}"], load_file(blobs / "0")[name])


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": 3, "metadata": {}}', "no weight_map"),
        ('{"metadata": {}}', "no weight_map"),
        ('{"weight_map": {"a": "a.safetensors"}}', "and metadata"),
        ("[]", "holds list"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"weight_map": {"a": "\\u0000.safetensors"}, "metadata": {}}', r"has no \x00.safetensors"),
    ],
)
def test_broken_indices(stock_folder, index, told):
    (stock_folder / "model.safetensors").unlink()
    (stock_folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError) as caught:
        checkpoint_folder(stock_folder)
    assert told in str(caught.value).replace("\0", r"\x00")


def test_weights_that_config_json_names_are_not_followed(stock_folder, mark):
    torch.save({"weight": Evil(mark)}, stock_folder / "adapter_model.bin")
    for name in ("adapter_model.bin", "other.safetensors.index.json"):
        edit_config(stock_folder, transformers_weights=name)
        assert "transformers_weights, which is not followed" in refused(stock_folder)


def test_adapters_are_not_loaded(stock_folder, mark):
    settings = {"peft_type": "LORA", "base_model_name_or_path": "elsewhere", "r": 4, "target_modules": ["q_proj"]}
    (stock_folder / "adapter_config.json").write_text(json.dumps(settings))
    (stock_folder / "adapter_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    assert "adapters are not loaded; merge the adapter" in refused(stock_folder)


# ---------------------------------------------------------------------- code


def brings_code(folder, mark, *places):
    """Write a module into a checkpoint, and name its classes in JSON files."""
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)))
    for place in places:
        content = json.loads((folder / place).read_text())
        content["auto_map"] = AUTO_MAP
        content.pop("processor_class", None)
        for part in ("image_processor", "video_processor"):
            if isinstance(content.get(part), dict):
                content[part] |= {"auto_map": AUTO_MAP, f"{part}_type": "Processor"}
        (folder / place).write_text(json.dumps(content))


def test_code_of_an_unknown_family_is_not_run(stock_folder, mark):
    brings_code(stock_folder, mark, "config.json", "tokenizer_config.json", "processor_config.json")
    edit_config(stock_folder, model_type="evil_type")
    assert refused(stock_folder).startswith("no backbone adapter for model_type 'evil_type'; there are")


def test_code_of_a_processor_is_not_run(stock_folder, mark):
    brings_code(stock_folder, mark, "config.json", "tokenizer_config.json", "processor_config.json")
    assert "it asks for code of its own, and such code is never run" in refused(stock_folder)
    with pytest.raises(CheckpointError, match="such code is never run"):
        load_processor(stock_folder)


def test_code_of_a_known_family_is_left_aside(stock_folder, mark):
    """Many folders on the hub name code for older releases of transformers beside classes that it has by now."""
    (stock_folder / "evil.py").write_text(CODE.format(mark=str(mark)))
    (stock_folder / "custom_generate").mkdir()
    shutil.copy(stock_folder / "evil.py", stock_folder / "custom_generate" / "generate.py")
    edit_config(stock_folder, auto_map=AUTO_MAP)
    assert LatentReasoner.from_pretrained(stock_folder).processor is not None


@pytest.mark.slow
def test_the_command_line_asks_nothing(stock_folder, mark, tmp_path):
    """A process with a `y` on its standard input, as at a terminal."""
    brings_code(stock_folder, mark, "config.json", "tokenizer_config.json", "processor_config.json")
    clip = str(Path(__file__).parents[1] / "data" / "clips" / "edit_list.mp4")
    command = [sys.executable, "-m", "futurel1.cli", "ask", clip, "What next?", "--model", str(stock_folder)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, input="y\ny\ny\ny\n", text=True, capture_output=True, timeout=600, env=environment)
    assert done.returncode == 1
    assert "Do you wish to run" not in done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("futurel1: error: ")
    assert "such code is never run" in done.stderr.strip().splitlines()[-1]


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("tokenizer.json", "{}", "its processor cannot be loaded"),
        ("tokenizer.json", "hello", "its processor cannot be loaded"),
        ("tokenizer.json", "[" * 100_000, "its processor cannot be loaded"),
        ("processor_config.json", '{"image_processor": 3}', "its processor cannot be loaded"),
        ("config.json", "[]", "holds list, no object"),
        ("config.json", '{"a":' * 100_000, "not JSON"),
        ("generation_config.json", "[]", "cannot be made of config.json"),
    ],
)
def test_files_of_another_kind_are_one_line(stock_folder, file, content, told):
    (stock_folder / file).write_text(content)
    assert told in refused(stock_folder)


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 0}, {"hidden_size": -4}, {"rope_parameters": 3}, {"hidden_act": "evil"}]
)
def test_values_that_make_no_model_are_one_line(stock_folder, change):
    config = json.loads((stock_folder / "config.json").read_text())
    config["text_config"] |= change
    (stock_folder / "config.json").write_text(json.dumps(config))
    assert str(stock_folder) in refused(stock_folder)


def test_a_system_prompt_that_is_no_text(stock_folder):
    (stock_folder / "system_prompt.txt").write_bytes(b"\xff\xfe")
    assert "system_prompt.txt is not UTF-8" in refused(stock_folder)


# ---------------------------------------------------------------------- the sources


def test_every_reader_says_what_it_trusts():
    """No call in this repository leaves to a library's default whether a file may run code."""
    root = Path(__file__).parents[2]
    wanted = {
        r"\bAuto\w+\.from_pretrained\(": "trust_remote_code=False",
        r"\bstock\.from_pretrained\(": "trust_remote_code=False",
        r"\btorch\.load\(": "weights_only=True",
        r"\bnp\.load\(": "allow_pickle=False",
    }
    card = root / "src/futurel1/models/model_card.py"  # shows others how to load a model
    tasks = (
        root / "src/futurel1/engines/ray_data.py"
    )  # reads what tasks of the same run sent, which Ray unpickles as well
    seen = set()
    for folder in ("src", "website", "experiments", "benchmarks"):
        for file in sorted((root / folder).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            if file != tasks:
                assert "pickle.load" not in text, file
            assert not re.search(r"trust_remote_code=True|yaml\.(unsafe_|full_)?load\(", text), file
            for call, said in wanted.items() if file != card else ():
                for found in re.finditer(call, text):
                    seen.add(call)
                    assert said in text[found.start() : found.start() + 300], (file, found[0])
    assert seen == set(wanted)
