"""What pip installs: a wheel, and an editable installation, each in an environment of its own."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import av
import numpy as np
import pytest
import yaml

from browsing import Visit

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(file.relative_to(ROOT) for file in (ROOT / "configs").rglob("*") if file.is_file())


def test_a_built_package_holds_every_data_file() -> None:
    """An editable installation reads them from here whatever is declared; others have what is declared."""
    package = ROOT / "src" / "futurel1"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    declared = {file for pattern in settings["package-data"]["futurel1"] for file in package.glob(pattern)}
    files = {file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert sorted(files - declared) == []
    assert package / "models" / "backbones" / "tiny_weights" / "model.safetensors" in declared


def run(*command: str | Path, folder: Path) -> str:
    """Output of a process that knows nothing of this repository's path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path) -> Path:
    """Python of a fresh environment without futurel1 that finds the packages of this one."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    places = [place for place in sys.path if place.endswith(("site-packages", "dist-packages"))]
    (Path(paths["purelib"]) / "packages.pth").write_text("\n".join(places) + "\n")
    return Path(paths["scripts"]) / "python"


def pip(python: Path, *options: str | Path, folder: Path) -> None:
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, *options, folder=folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, so that builds leave nothing in the repository and find nothing of older builds."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


@pytest.fixture(scope="module")
def installed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment with the wheel, which was built from the unpacked source distribution."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path / "sdist", folder=sources)
    (archive,) = (tmp_path / "sdist").glob("*.tar.gz")
    with tarfile.open(archive) as stream:
        stream.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (path for path in (tmp_path / "sdist").iterdir() if path.is_dir())
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, folder=unpacked)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as built:
        shipped = sorted(name for name in built.namelist() if name.startswith("futurel1/configs/"))
    assert shipped == [f"futurel1/{file.as_posix()}" for file in CONFIGS]
    python = environment(tmp_path / "fresh")
    pip(python, wheel, folder=tmp_path)
    return python


@pytest.mark.slow
def test_a_wheel_runs_shipped_configurations_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    python = installed
    empty = tmp_path / "empty"
    empty.mkdir()
    code = """
from futurel1.shipped_configs import shipped_file
print(shipped_file("configs/tiny/brief.txt"))  # named so by configurations
"""
    prompt = Path(run(python, "-c", code, folder=empty).strip())
    assert prompt.is_relative_to(python.parents[1])
    assert prompt.read_bytes() == (ROOT / "configs" / "tiny" / "brief.txt").read_bytes()
    listed = run(python, "-m", "futurel1.cli", "configs", folder=empty).splitlines()
    assert len(listed) == sum(file.suffix == ".yaml" for file in CONFIGS)
    run(python, "-m", "futurel1.cli", "configs", "tiny/sft", "--out", "my.yaml", folder=empty)
    assert (empty / "my.yaml").read_bytes() == (ROOT / "configs" / "tiny" / "sft.yaml").read_bytes()
    printed = run(python, "-m", "futurel1.cli", "fit", "--config", "tiny/rl_sft", "--print_config", folder=empty)
    given = yaml.safe_load((ROOT / "configs" / "tiny" / "rl_sft.yaml").read_text())
    found = yaml.safe_load(printed)["data"]["init_args"]
    assert found | given["data"]["init_args"] == found


def write_clip(file: Path, shade: int) -> None:
    """Two seconds of footage that is not of the library's worlds: a lit pole sways before a wall."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        rows, columns = np.mgrid[:96, :128]
        for number in range(24):
            pole = np.abs(columns - 64 - 40 * math.sin(number / 6) * (1 - rows / 96)) < 5
            picture = np.stack([shade + rows, 60 + columns, np.where(pole, 250, 40)], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.slow
def test_a_new_user_goes_from_videos_of_their_own_to_a_page(installed: Path, tmp_path: Path, browser: Any) -> None:
    """As the README says, without the repository: ask, train, answer, report."""
    question = "".join(f"frame_{index}\n<image>\n" for index in (1, 2, 3, 4)) + "Where does the pole lean?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "THOUGHT 0: It sways. <image>"}]
    with (tmp_path / "own.jsonl").open("w") as file:
        for number in range(4):
            write_clip(tmp_path / f"{number}.mp4", 20 * number)
            record = {"id": number, "video": f"{number}.mp4", "image": [1, 2, 3, 4], "reasoning_image": [6],
                      "conversations": turns, "answer": "To the left."}  # fmt: skip
            file.write(json.dumps(record) + "\n")

    def futurel1(*arguments: str) -> str:
        return run(installed, "-m", "futurel1.cli", *arguments, folder=tmp_path)

    assert "answer" in futurel1("ask", "0.mp4", "Imagine what comes next.", "--pool_frames", "[1, 2, 3, 4]")
    data = ["--data.init_args.train", "own.jsonl", "--data.init_args.val", "own.jsonl"]
    futurel1("fit", "--config", "tiny/sft", *data, "--trainer.max_steps", "4", "--run_name", "own")
    start = ["--model.init_args.init_from", "runs/own", "--model.init_args.save_latents", "true"]
    futurel1(
        "predict", "--config", "tiny/predict", *start, "--data.init_args.predict", "own.jsonl", "--run_name", "told"
    )
    futurel1("report", "runs/told")
    visit = Visit(browser, tmp_path / "runs" / "told" / "report.html")
    assert visit.names() == ["0", "1", "2", "3"]
    assert "Where does the pole lean?" in visit.text("body")
    visit.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_an_editable_installation_reads_the_configurations_of_the_repository(
    sources: Path, tmp_path: Path, mode: str
) -> None:
    python = environment(tmp_path / "fresh")
    pip(python, "--config-settings", f"editable_mode={mode}", "--editable", sources, folder=tmp_path)
    edited = sources / "configs" / "tiny" / "grpo.yaml"
    edited.write_text(f"# Edited after the {mode} installation.\nmodel:\n")
    listed = run(python, "-m", "futurel1.cli", "configs", folder=tmp_path).splitlines()
    assert [line.split() for line in listed if line.startswith("tiny/grpo ")] == [
        ["tiny/grpo", "Edited", "after", "the", mode, "installation."]
    ]
    assert len(listed) == sum(file.suffix == ".yaml" for file in CONFIGS)
