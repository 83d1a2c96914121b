"""The other readers: the right frames, or a refusal that names the reader and the setting."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from clip_checks import CARRIED, CLIPS, pixels_of
from codings import encode, moving_frames, plain_decode, set_matrix

from futurel1.data.frames import read_frames
from futurel1.errors import ConfigError, MediaError


@pytest.mark.parametrize("backend", ["", "opencv", "PyAV", None])
def test_a_wrong_backend_lists_the_choices(coded, backend):
    with pytest.raises(ConfigError, match="video_backend must be one of auto, pyav, decord, torchcodec, got"):
        read_frames(coded("closed"), [0], backend)


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
class TestOtherBackends:
    """Each gives the right frames or names itself and what to set."""

    @pytest.fixture(autouse=True)
    def needs_package(self, backend):
        if backend == "decord":
            pytest.importorskip("decord")
        else:
            pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))

    def frames_or_refusal(self, path: Path, backend: str, numbers: list[int]) -> list[np.ndarray] | None:
        try:
            return [np.asarray(picture) for picture in read_frames(path, numbers, backend)]
        except MediaError as refusal:
            message = str(refusal)
        assert backend in message
        assert "video_backend: pyav" in message
        return None

    @pytest.mark.parametrize(("coding", "form"), [clip for clip in CLIPS if clip[1] in ("written", "plain mkv")])
    def test_frames_are_close_to_a_plain_decode(self, coded, backend, coding, form):
        path = coded(coding, form)
        plain = plain_decode(path)
        numbers = [0, 11, 12, 13, 35, 59]
        frames = self.frames_or_refusal(path, backend, numbers)
        if coding in ("closed", "open", "pyramid", "one_key"):
            assert frames is not None
        for number, frame in zip(numbers, frames or [], strict=False):
            # Another decoder's conversion to RGB differs by a few levels, a neighbouring frame by far more.
            assert np.abs(frame.astype(int) - plain[number]).mean() < 3

    @pytest.mark.parametrize("form", ["cut mp4", "cut mkv"])
    @pytest.mark.parametrize("coding", ["closed", "open", "hevc", "one_key"])
    def test_cut_clips_are_right_or_refused(self, coded, backend, coding, form):
        path = coded(coding, form)
        plain = plain_decode(path)
        numbers = [0, 1, len(plain) // 2, len(plain) - 1]
        frames = self.frames_or_refusal(path, backend, numbers)
        for number, frame in zip(numbers, frames or [], strict=False):
            assert np.abs(frame.astype(int) - plain[number]).mean() < 3

    @pytest.mark.parametrize("width", [2, 6, 8, 12, 16, 18, 24, 30, 48, 72, 80])
    def test_narrow_clips_are_right_or_refused(self, tmp_path, backend, width):
        path = encode(tmp_path / "narrow.mp4", moving_frames(3, 48, width), options={"crf": "12"})
        frames = self.frames_or_refusal(path, backend, [0, 2])
        plain = plain_decode(path)
        for frame, right in zip(frames or [], [plain[0], plain[2]], strict=False):
            assert frame.shape == right.shape
            assert np.abs(frame.astype(int) - right).mean() < 3

    def test_turned_clips_are_refused(self, coded, tmp_path, backend):
        path = set_matrix(coded("closed"), tmp_path / "turned.mp4", (0, 1, -1, 0))
        assert self.frames_or_refusal(path, backend, [0]) is None

    def test_names_that_are_no_utf8_are_refused(self, coded, tmp_path, backend):
        path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
        try:
            path.write_bytes(coded("closed").read_bytes())
        except OSError:
            pytest.skip("this file system does not take the name")
        assert self.frames_or_refusal(path, backend, [0]) is None


def test_decord_does_not_report_damage():
    """If this fails, decord reports damage, and `auto` may use it."""
    decord = pytest.importorskip("decord")
    path = CARRIED / "damaged_h264.mp4"
    reader = decord.VideoReader(str(path), num_threads=1, fault_tol=1e-9)
    assert len([reader.next() for _ in range(len(reader))]) == 120
    with pytest.raises(MediaError):
        pixels_of(path)


def test_without_a_package_the_error_says_how_to_install_it(coded, monkeypatch):
    for package in ("decord", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, package, None)
    for backend in ("decord", "torchcodec"):
        with pytest.raises(ConfigError, match=rf"'{backend}'.*pip install {backend}"):
            read_frames(coded("closed"), [0], backend)
