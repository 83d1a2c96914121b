"""Sizes of hint frames and of frames of videos."""

import pytest
from chat_samples import pathed
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from futurel1.data.picture_sizes import hint_size, video_frame_size
from futurel1.errors import ConfigError, MediaError


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(4, 64))
def test_video_frames_never_exceed_their_tokens(height, width, budget):
    rows, columns = (side // 32 for side in video_frame_size(height, width, budget))
    assert 1 <= rows * columns <= budget
    if max(height, width) <= 2 * min(height, width) and budget >= 12:
        assert rows * columns >= 4


@pytest.mark.parametrize(("height", "width"), [(180, 320), (360, 640), (720, 1280), (1080, 1920)])
def test_sixteen_to_nine_gives_the_reference_numbers(height, width):
    assert hint_size(height, width, 4) == (32, 64)
    if height >= 360:
        assert hint_size(height, width, 32) == (128, 224)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 64), st.sampled_from([28, 32]))
@example(32, 5000, 2, 32)
@example(5000, 1, 1, 32)
@example(40, 3200, 32, 32)
def test_hint_size_keeps_the_budget_in_whole_units_without_enlarging(height, width, budget, unit):
    rows, columns = hint_size(height, width, budget, unit)
    assert rows % unit == columns % unit == 0
    assert unit * unit <= rows * columns <= budget * unit * unit
    assert rows <= max(height, unit)
    assert columns <= max(width, unit)


def test_small_frames_are_not_enlarged_and_multiples_stay():
    assert hint_size(10, 10, 64) == (32, 32)
    assert hint_size(33, 63, 64) == (32, 32)
    assert hint_size(96, 96, 64) == (96, 96)
    assert hint_size(96, 96, 9) == (96, 96)
    assert hint_size(480, 480, 9) == (96, 96)


def test_hint_size_refuses_no_budget():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        hint_size(100, 100, 0)


def test_pictures_too_thin_for_the_processor_are_media_errors(encoder, tmp_path, pictures):
    Image.new("RGB", (2010, 10)).save(tmp_path / "thin.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "now.png")
    sample = pathed(tmp_path, image=["thin.png"], reasoning_image=["now.png"])
    for call in (encoder.encode, encoder.encode_prompt, encoder.length):
        with pytest.raises(MediaError, match=r"thin\.png: a picture of 2010 x 10 pixels"):
            call(sample)
    # as a hint it goes through our own resizing
    hinted = encoder.encode(pathed(tmp_path, reasoning_image=["thin.png"]))
    assert hinted.hint_grid_thw.tolist() == [[1, 2, 8]]
