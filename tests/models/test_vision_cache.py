"""Cached features are those of the tower, and an entry is only ever served for exactly what it was made of."""

import errno
import os
import shutil
from copy import deepcopy

import pytest
import torch
from safetensors import safe_open

from futurel1.errors import BatchError, ConfigError
from futurel1.models import vision_cache
from futurel1.models.vision_cache import VisionFeatureCache, tower_fingerprint
from leaving import leave_half


@pytest.fixture(scope="module")
def frozen(families):
    reasoner = deepcopy(families["qwen3_vl"].reasoner)
    reasoner.backbone.vision_tower.requires_grad_(False)
    return reasoner


@pytest.fixture
def images(families):
    """Three images of two sizes: pixel values and grids."""
    batch = families["qwen3_vl"].batch([[("image", 4, 4), ("image", 2, 6), ("image", 4, 4)]])
    return batch.pixel_values, batch.image_grid_thw


KEYS = ("a.mp4|1700000000|4096|1", "a.mp4|1700000000|4096|26", "b.mp4|1700000000|4096|1")


def parts_of(features):
    return [features.embeds, *features.deepstack]


def assert_same(one, other):
    assert one.counts == other.counts
    assert torch.equal(one.grid_thw, other.grid_thw)
    assert len(one.deepstack) == len(other.deepstack) == 2
    assert all(torch.equal(a, b) for a, b in zip(parts_of(one), parts_of(other), strict=True))


def entry(cache, key, grid, device="cpu"):
    return cache._file(cache._full_key(key, grid, torch.device(device)))


def test_what_a_killed_run_was_writing_is_removed_when_it_is_written_again(frozen, images, tmp_path):
    cache = VisionFeatureCache(tmp_path, frozen)
    files = {entry(cache, key, grid) for key, grid in zip(KEYS, images[1].tolist(), strict=True)}
    for file in files:
        file.parent.mkdir()
        leave_half(file)
    others = leave_half(next(iter(files)), pid=os.getppid())
    cache.encode(*images, KEYS)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*files, others}


def test_cold_and_warm_features_are_those_of_the_tower(frozen, images, tmp_path):
    direct = frozen.backbone.encode_images(*images)
    cache = VisionFeatureCache(tmp_path, frozen)
    cold = cache.encode(*images, KEYS)
    assert (cache.hits, cache.misses) == (0, 3)
    warm = cache.encode(*images, KEYS)
    assert (cache.hits, cache.misses) == (3, 3)
    for features in (cold, warm):
        assert_same(features, direct)
        assert not features.embeds.requires_grad
    # A second process finds them too.
    other = VisionFeatureCache(tmp_path, deepcopy(frozen))
    assert_same(other.encode(*images, KEYS), direct)
    assert (other.hits, other.misses) == (3, 0)


def test_a_hit_does_not_run_the_tower(frozen, images, tmp_path, monkeypatch):
    cache = VisionFeatureCache(tmp_path, frozen)
    direct = cache.encode(*images, KEYS)
    seen = []
    encode = frozen.backbone.encode_images
    monkeypatch.setattr(
        frozen.backbone, "encode_images", lambda pixels, grid: seen.append(grid.tolist()) or encode(pixels, grid)
    )
    cache.encode(*images, KEYS)
    assert seen == []
    mixed = cache.encode(*images, (KEYS[0], "new", KEYS[2]))
    assert seen == [[[1, 2, 6]]]
    assert (cache.hits, cache.misses) == (5, 4)
    assert mixed.counts == direct.counts
    for ours, expected in zip(parts_of(mixed), parts_of(direct), strict=True):
        torch.testing.assert_close(ours, expected)


def test_entries_are_served_in_the_order_asked_for(frozen, images, tmp_path):
    cache = VisionFeatureCache(tmp_path, frozen)
    pixels, grid = images
    direct = cache.encode(pixels, grid, KEYS)
    turned = cache.encode(pixels.split([16, 12, 16])[2].repeat(2, 1), grid[[2, 0]], (KEYS[2], KEYS[0]))
    assert cache.misses == 3
    first, _, third = direct.embeds.split(direct.counts)
    assert torch.equal(turned.embeds, torch.cat([third, first]))


@pytest.mark.parametrize(
    "key",
    [
        "a.mp4|1700000001|4096|1",  # file time
        "a.mp4|1700000000|4097|1",  # file size
        "a.mp4|1700000000|4096|2",  # frame
        "c.mp4|1700000000|4096|1",  # file
    ],
)
def test_another_key_is_a_miss(frozen, images, tmp_path, key):
    pixels, grid = images
    cache = VisionFeatureCache(tmp_path, frozen)
    cache.encode(pixels[:16], grid[:1], KEYS[:1])
    # Other pixels under the other key: old features would show.
    features = cache.encode(pixels[-16:], grid[-1:], (key,))
    assert (cache.hits, cache.misses) == (0, 2)
    assert torch.equal(features.embeds, frozen.backbone.encode_images(pixels[-16:], grid[-1:]).embeds)


def test_another_grid_is_a_miss(frozen, images, tmp_path):
    pixels, grid = images
    cache = VisionFeatureCache(tmp_path, frozen)
    cache.encode(pixels[:16], grid[:1], KEYS[:1])
    features = cache.encode(pixels[16:28], grid[1:2], KEYS[:1])
    assert (cache.hits, cache.misses) == (0, 2)
    assert features.counts == (3,)
    assert torch.equal(features.embeds, frozen.backbone.encode_images(pixels[16:28], grid[1:2]).embeds)


def test_another_tower_is_a_miss(frozen, images, tmp_path):
    old = VisionFeatureCache(tmp_path, frozen)
    old.encode(*images, KEYS)
    changed = deepcopy(frozen)
    with torch.no_grad():
        next(iter(changed.backbone.mergers()[0].parameters())).view(-1)[0] += 1e-3
    cache = VisionFeatureCache(tmp_path, changed)
    assert cache.fingerprint != old.fingerprint
    features = cache.encode(*images, KEYS)
    assert (cache.hits, cache.misses) == (0, 3)
    assert_same(features, changed.backbone.encode_images(*images))


def test_fingerprint_covers_dtype_and_tower_but_not_the_language_model(frozen):
    fingerprint = tower_fingerprint(frozen)
    assert tower_fingerprint(deepcopy(frozen)) == fingerprint
    assert tower_fingerprint(deepcopy(frozen).to(torch.bfloat16)) != fingerprint
    other = deepcopy(frozen)
    with torch.no_grad():
        other.backbone.lm_head.weight += 1
    assert tower_fingerprint(other) == fingerprint


def test_autocast_features_are_kept_apart(frozen, images, tmp_path):
    cache = VisionFeatureCache(tmp_path, frozen)
    with torch.autocast("cpu", torch.bfloat16):
        cache.encode(*images, KEYS)
    exact = cache.encode(*images, KEYS)
    assert (cache.hits, cache.misses) == (0, 6)
    assert_same(exact, frozen.backbone.encode_images(*images))


def test_an_entry_with_another_key_inside_is_never_served(frozen, images, tmp_path):
    pixels, grid = images
    cache = VisionFeatureCache(tmp_path, frozen)
    cache.encode(pixels[:16], grid[:1], KEYS[:1])
    source, target = entry(cache, KEYS[0], [1, 4, 4]), entry(cache, KEYS[2], [1, 4, 4])
    assert source.is_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    features = cache.encode(pixels[-16:], grid[-1:], KEYS[2:])
    assert (cache.hits, cache.misses) == (0, 2)
    assert torch.equal(features.embeds, frozen.backbone.encode_images(pixels[-16:], grid[-1:]).embeds)
    with safe_open(target, framework="pt") as handle:
        assert KEYS[2] in handle.metadata()["key"]


def test_leftovers_and_damage(frozen, images, tmp_path, caplog):
    pixels, grid = images
    cache = VisionFeatureCache(tmp_path, frozen)
    file = entry(cache, KEYS[0], [1, 4, 4])
    file.parent.mkdir(parents=True)
    leftover = file.with_suffix(".4242.part")
    leftover.write_bytes(b"half an entry")
    direct = cache.encode(pixels[:16], grid[:1], KEYS[:1])
    assert (cache.hits, cache.misses) == (0, 1)
    assert leftover.read_bytes() == b"half an entry"
    assert sorted(os.listdir(file.parent)) == sorted([file.name, leftover.name])
    # A full disk or a power cut: the entry is made anew, and that is said.
    file.write_bytes(file.read_bytes()[:100])
    again = cache.encode(pixels[:16], grid[:1], KEYS[:1])
    assert (cache.hits, cache.misses) == (0, 2)
    assert "damaged" in caplog.text
    assert torch.equal(again.embeds, direct.embeds)
    cache.encode(pixels[:16], grid[:1], KEYS[:1])
    assert cache.hits == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written_is_said_once(frozen, images, tmp_path, caplog, monkeypatch, number):
    pixels, grid = images
    direct = VisionFeatureCache(tmp_path / "sound", frozen).encode(pixels, grid, KEYS)

    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    cache = VisionFeatureCache(tmp_path / "refused", frozen)
    monkeypatch.setattr(vision_cache, "replacing", refused)
    for misses in (3, 6):
        assert torch.equal(cache.encode(pixels, grid, KEYS).embeds, direct.embeds)
        assert (cache.hits, cache.misses) == (0, misses)
    (record,) = caplog.records
    assert f"vision_cache {tmp_path / 'refused'} cannot be written" in record.message
    assert os.strerror(number) in record.message


def test_a_file_in_the_place_of_the_cache_is_refused(frozen, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"vision_cache .* is a file; name a folder"):
        VisionFeatureCache(tmp_path / "file", frozen)


def test_a_trainable_tower_is_refused(frozen, tmp_path):
    trainable = deepcopy(frozen)
    next(iter(trainable.backbone.mergers()[-1].parameters())).requires_grad_(True)
    with pytest.raises(ConfigError, match="frozen vision tower, mergers included: freeze"):
        VisionFeatureCache(tmp_path, trainable)


def test_keys_and_images_in_other_numbers(frozen, images, tmp_path):
    cache = VisionFeatureCache(tmp_path, frozen)
    with pytest.raises(ConfigError, match="2 cache keys for 3 images"):
        cache.encode(*images, KEYS[:2])
    with pytest.raises(BatchError, match="need 44 patches, pixel values have 43"):
        cache.encode(images[0][:-1], images[1], KEYS)
