"""Emulation of Atari games by ale-py: long seeded games, and takes from them that end without action.

Emulation works with integers from a saved state, so that the same arguments give the same frames on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from futurel1.errors import ConfigError
from futurel1.worlds.atari_games import FIELD, GAMES, LEFT, NOOP, RIGHT, Game, GameName, Tracks
from futurel1.worlds.look import LAST_SEEN, NUM_STEPS

__all__ = ["FRAMES_PER_STEP", "LATEST", "Poke", "Take", "emulate", "play", "require_emulator"]

FRAMES_PER_STEP = 8
LATEST = 16  # frames by which the last observed frame of a clip may follow the last action
ACTED = LAST_SEEN * FRAMES_PER_STEP + 1
LENGTH = (NUM_STEPS - 1) * FRAMES_PER_STEP + 1 + LATEST
HOLD = 4  # frames for which an action is held
WARM_UP = (64, 1024)  # frames of a game before its first take: from the first on, up to the second
ABERRATION = 14  # pixels by which the paddle aims beside the ball at most
MOVES = (NOOP, RIGHT, LEFT)
WIDENED = 2  # pixels
STRAY, FORGET = 0.15, 0.05  # probabilities of a random action, and of another aim

Poke = tuple[int, int, int]  # before this frame, this address is set to this value


@dataclass(frozen=True, eq=False)
class Take:
    """F consecutive frames of a game: seeded actions, then none.

    Attributes:
        game: the game.
        start: the emulator's state before the first frame.
        actions: F actions.
        pokes: changes to the memory on the way.
        ram: (F, 128) memory after each frame.
    """

    game: GameName
    start: Any
    actions: tuple[int, ...]
    pokes: tuple[Poke, ...]
    ram: NDArray[np.uint8]

    @property
    def rules(self) -> Game:
        """The game's rules and addresses."""
        return GAMES[self.game]

    @cached_property
    def tracks(self) -> Tracks:
        """Objects and events in each frame."""
        return self.rules.read(self.ram)

    def poked(self, *pokes: Poke) -> Take:
        """The same take with further changes to the memory."""
        return emulate(self.game, self.start, self.actions, (*self.pokes, *pokes))

    def with_ball(self, frame: int, shift: Sequence[int], turns: Sequence[int]) -> Take:
        """The take with the ball moved from a frame on.

        Args:
            frame: the first frame that shows it elsewhere, from 1.
            shift: pixels along x and y.
            turns: -1 for an axis along which it moves the other way from there on, otherwise 1.
        """
        before = self.ram[frame - 1].astype(int)
        places = (before[list(self.rules.ball)] + shift) % 256
        pokes = [(frame, address, int(at)) for address, at in zip(self.rules.ball, places, strict=True)]
        for (address, _), turn in zip(self.rules.velocity, turns, strict=True):
            if turn < 0:
                pokes.append((frame, address, -int(before[address]) % 256))
        return self.poked(*pokes)

    def screens(self, frames: Sequence[int]) -> tuple[bytes, ...]:
        """Compressed (160, 160, 3) playfields in ascending frames."""
        emulator, found = _emulator(self.game), []
        emulator.restoreState(self.start)
        for frame, action in enumerate(self.actions[: max(frames) + 1]):
            _act(emulator, frame, action, self.pokes)
            if frame in frames:
                found.append(zlib.compress(_playfield(emulator, self.rules.top).tobytes(), 1))
        return tuple(found)


def require_emulator() -> None:
    """Refuse to go on without ale-py.

    Raises:
        ConfigError: ale-py is not installed.
    """
    try:
        import ale_py  # noqa: F401
    except ImportError as error:
        raise ConfigError("Atari games need ale-py: pip install 'futurel1[atari]'") from error


def emulate(name: GameName, start: Any, actions: Sequence[int], pokes: Sequence[Poke] = ()) -> Take:
    """Emulate F frames from a state of the emulator, with changes to the memory on the way."""
    emulator = _emulator(name)
    emulator.restoreState(start)
    ram = np.stack([_act(emulator, frame, action, pokes) for frame, action in enumerate(actions)])
    return Take(name, start, tuple(actions), tuple(pokes), ram)


def play(name: GameName, rng: np.random.Generator, count: int) -> list[Take]:
    """Play a game from its beginning, and film takes one after another.

    A take begins with seeded actions, which follow the ball more or less well; then nobody touches the paddle. The game
    itself goes on from the last action.

    Args:
        name: the game.
        rng: the only source of randomness.
        count: number of takes.

    Returns:
        The takes.
    """
    emulator, player = _emulator(name), _Player(GAMES[name], rng)
    emulator.restoreState(_beginning(name))
    for _ in range(int(rng.integers(*WARM_UP))):
        _act(emulator, 0, player.action(emulator), ())
    takes = []
    for _ in range(count):
        if emulator.game_over():
            emulator.reset_game()
        start = emulator.cloneState(include_rng=True)
        actions, ram = [], []
        for frame in range(LENGTH):
            if frame == ACTED:
                resume = emulator.cloneState(include_rng=True)
            actions.append(player.action(emulator) if frame < ACTED else NOOP)
            ram.append(_act(emulator, frame, actions[-1], ()))
        emulator.restoreState(resume)
        takes.append(Take(name, start, tuple(actions), (), np.stack(ram)))
    return takes


class _Player:
    """Plays a game: follows the ball, but aims beside it, and strays at times."""

    def __init__(self, game: Game, rng: np.random.Generator) -> None:
        self.game = game
        self.rng = rng
        self.held = 0
        self.aim = 0
        self.chosen = NOOP

    def action(self, emulator: Any) -> int:
        """The action of the next frame; each is held for some frames."""
        if self.held == 0:
            self.held = HOLD
            if self.rng.random() < FORGET:
                self.aim = int(self.rng.integers(-ABERRATION, ABERRATION + 1))
            stray = self.rng.random() < STRAY
            self.chosen = int(self.rng.choice(MOVES)) if stray else self.game.steer(emulator.getRAM(), self.aim)
        self.held -= 1
        return self.chosen


def _act(emulator: Any, frame: int, action: int, pokes: Sequence[Poke]) -> NDArray[np.uint8]:
    """Emulate a frame and return the (128,) memory after it."""
    for when, address, value in pokes:
        if when == frame:
            emulator.setRAM(address, value)
    emulator.act(action)
    memory: NDArray[np.uint8] = emulator.getRAM()
    return memory


def _playfield(emulator: Any, top: int) -> NDArray[np.uint8]:
    """The (160, 160, 3) playfield, each pixel with the colour of the brightest one within two pixels.

    The ball is two pixels wide: in a frame of 64 pixels it would be less than one, and fade into the background.
    """
    rows = slice(top, top + FIELD)
    colours = emulator.getScreen()[rows]
    levels = np.zeros((256, 3), np.uint8)
    levels[colours] = emulator.getScreenRGB()[rows]
    brightest = (colours << 4) | (colours >> 4)  # a colour's low four bits are its luminance, the others its hue
    for axis in (0, 1):
        padded = np.pad(brightest, [(WIDENED, WIDENED) if axis == each else (0, 0) for each in (0, 1)])
        shifted = [padded.take(range(shift, shift + FIELD), axis) for shift in range(2 * WIDENED + 1)]
        brightest = np.maximum.reduce(shifted)
    field: NDArray[np.uint8] = levels[(brightest << 4) | (brightest >> 4)]
    return field


@cache
def _emulator(name: GameName) -> Any:
    """This process's emulator of a game, in any state."""
    require_emulator()
    from ale_py import ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)
    emulator = ALEInterface()
    emulator.setInt("random_seed", 0)
    emulator.setFloat("repeat_action_probability", 0.0)
    rom = roms.get_rom_path(name)
    assert rom is not None  # all games are in the wheel
    emulator.loadROM(rom)
    return emulator


@cache
def _beginning(name: GameName) -> Any:
    """The state of a game that was just switched on."""
    emulator = _emulator(name)
    emulator.reset_game()
    return emulator.cloneState(include_rng=True)
