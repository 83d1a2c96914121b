"""Short clips in which every frame shows which one it is, a folder of media to guard, and an encoder."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from codings import CODINGS, FRAGMENTED, LIVE, SUFFIX, encode, moving_frames, remux
from PIL import Image

from futurel1.data.chat import ChatEncoder
from futurel1.models import load_processor

NUM_FRAMES = 48
HEIGHT, WIDTH = 48, 64


def _grey(index: int) -> int:
    # 19 and 48 share no factor: every frame has a grey of its own, 4 levels from any other
    return 20 + 4 * (19 * index % NUM_FRAMES)


def _write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    fps: int = 8,
    codec: str = "libx264",
    container: dict[str, str] | None = None,
    **codec_options: str,
) -> Path:
    """Encode (H, W, 3) uint8 RGB frames; option names have - for _ and x264_params is passed on to the encoder."""
    with av.open(str(path), "w", options=container or {}) as output:
        height, width = frames[0].shape[:2]
        stream = output.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {name.replace("_", "-"): value for name, value in codec_options.items()}
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    return _write_clip


@pytest.fixture(scope="session")
def numbered_frames() -> list[np.ndarray]:
    return [np.full((HEIGHT, WIDTH, 3), _grey(index), np.uint8) for index in range(NUM_FRAMES)]


@pytest.fixture(scope="session")
def frame_number() -> Callable[[Image.Image], int]:
    """Read the number of a frame of `numbered_frames` off its grey; -1 if it shows none of them."""

    def number(image: Image.Image) -> int:
        pixels = np.asarray(image, dtype=np.float64)
        level = (pixels.mean() - 20) / 4
        if abs(level - round(level)) > 0.45 or pixels.std() > 2:
            return -1
        return next((index for index in range(NUM_FRAMES) if _grey(index) == 20 + 4 * round(level)), -1)

    return number


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory, numbered_frames: list[np.ndarray]) -> dict[str, Path]:
    """Clips of `numbered_frames` in many codings, by name."""
    folder = tmp_path_factory.mktemp("clips")
    closed = {"bf": "3", "g": "12", "crf": "10", "x264_params": "scenecut=0"}
    front = {"movflags": "+faststart"}

    def write(name: str, **options: object) -> Path:
        return _write_clip(folder / name, numbered_frames, **options)  # type: ignore[arg-type]

    return {
        "closed": write("closed.mp4", **closed),
        "index_first": write("index_first.mp4", container=front, **closed),
        "one_key": write("one_key.mp4", **{**closed, "g": "250"}),
        "pyramid": write("pyramid.mp4", **{**closed, "bf": "8", "x264_params": "scenecut=0:b-adapt=0"}),
        "open_gop": write("open_gop.mp4", **{**closed, "x264_params": "scenecut=0:open-gop=1:b-adapt=0"}),
        "scene_cuts": write("scene_cuts.mp4", bf="3", g="12", crf="10"),
        "mpeg4": write("mpeg4.mp4", codec="mpeg4", bf="2", g="12", b="8M", qmin="1", qmax="1"),
        "mkv": write("clip.mkv", **closed),
        "avi": write("clip.avi", **closed),
        "vp9": write("clip.webm", codec="libvpx-vp9", g="12", crf="10"),
        "transport": write("clip.ts", **closed),
    }


@pytest.fixture(scope="session")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a clip of `moving_frames` by its coding and form, once."""
    folder = tmp_path_factory.mktemp("coded")

    def make(coding: str, form: str = "written") -> Path:
        suffix = SUFFIX.get(coding, "mp4")
        name = f"{coding}.{suffix}" if form == "written" else f"{coding} {form}.{'mp4' if 'mp4' in form else 'mkv'}"
        path = folder / name
        if path.exists():
            return path
        if form == "written":
            codec, options = CODINGS[coding]
            return encode(path, moving_frames(), codec, options)
        source = make(coding)
        if form.startswith("cut"):
            return remux(source, path, start=1.6)
        return remux(source, path, muxer={"fragmented mp4": FRAGMENTED, "live mkv": LIVE}.get(form))

    return make


@pytest.fixture
def rooted(tmp_path):
    """A data root with a clip inside and one outside, which a link inside points to."""
    root = tmp_path / "root"
    (root / "clips").mkdir(parents=True)
    (root / "clips/a.mp4").touch()
    (tmp_path / "secret.mp4").touch()
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    return root


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor("tiny@random")


@pytest.fixture(scope="module")
def encoder(processor) -> ChatEncoder:
    return ChatEncoder(processor)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of image files: `now.png`, `soon.png`, `late.png` of 48 x 64, `wide.png` of 180 x 320."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, grey in (("now", 10), ("soon", 120), ("late", 240)):
        Image.new("RGB", (64, 48), (grey,) * 3).save(folder / f"{name}.png")
    Image.new("RGB", (320, 180), (60,) * 3).save(folder / "wide.png")
    return folder


@pytest.fixture(scope="module")
def older_processor(processor) -> Any:
    """A processor of Qwen2.5-VL."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    sizes: dict[str, Any] = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen2_5_VLProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": 1024, "longest_edge": 65536}, **sizes),
    )
