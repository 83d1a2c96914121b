"""How many questions about Atari games simple guessers get right.

    python -m experiments.atari_guessers runs/atari/world

The first counts, over the training records, the answers for each game, quarter of the ball last seen and number of
steps, and gives the most frequent one to the test questions. The second knows the ball's exact places in the last two
observed frames, from the console's memory, and continues them in a straight line, with no bounce. The last line tells
how many test questions are about a clip whose ball was put elsewhere in memory, so that the answer comes true.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.proof.records import read_lines
from futurel1.worlds import AtariWorld
from futurel1.worlds.look import LAST_SEEN, ZONES, zones_of

Known = tuple[str, bool, str]


def known_and_answers(records: Path) -> Iterator[tuple[Known, str]]:
    """Quarter of the ball last seen, whether it is Pong, and number of steps, of each record; and its answer."""
    for record in read_lines(records):
        thoughts = record["conversations"][1]["value"]
        quarter = re.search("ball ([a-z ]+),", thoughts)
        if quarter is None:
            raise SystemExit(f"{records}: record {record['id']} does not say where the ball was last seen")
        yield (quarter[1], "left paddle" in thoughts, record["question_type"]), record["answer"]


def guessed_rightly(world: Path) -> tuple[int, int]:
    """Number of test questions that the guesser answers rightly, and of all of them."""
    answers: defaultdict[Known, Counter[str]] = defaultdict(Counter)
    for known, answer in known_and_answers(world / "train.jsonl"):
        answers[known][answer] += 1
    right = [
        bool(answers[known]) and answers[known].most_common(1)[0][0] == answer
        for known, answer in known_and_answers(world / "test.jsonl")
    ]
    return sum(right), len(right)


def straight_and_put(world: AtariWorld, answers: Sequence[str]) -> tuple[int, int]:
    """Test questions that a straight line answers rightly, and those whose clip has the ball put elsewhere.

    Args:
        world: the world of the questions.
        answers: the answer of each test question, in their order.

    Raises:
        SystemExit: the questions are of another world.
    """
    straight = put = 0
    for number, answer in enumerate(answers):
        episode = world.episode("test", number)
        if ZONES[episode.asked.answer] != answer:
            raise SystemExit(f"test question {number} is of a world of another seed")
        ball = episode.tracks.positions[:, 0]
        steps = episode.asked.window[1] - LAST_SEEN
        reached = ball[LAST_SEEN] + steps * (ball[LAST_SEEN] - ball[LAST_SEEN - 1])
        straight += int(zones_of(reached)) == episode.asked.answer
        put += any(address in episode.rules.ball for _, address, _ in episode.excerpt.take.pokes)
    return straight, put


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path, help="folder of `futurel1 world --task atari --size 64`")
    parser.add_argument("--seed", type=int, default=0, help="seed of that world (default: 0)")
    options = parser.parse_args()
    right, total = guessed_rightly(options.world)
    print(f"{right / total:.1%} of {total}: the usual answer for the quarter where the ball was last seen")
    listed = [record["answer"] for record in read_lines(options.world / "test.jsonl")]
    straight, put = straight_and_put(AtariWorld(seed=options.seed), listed)
    print(f"{straight / total:.1%} of {total}: a straight line through the ball's last two places")
    print(f"{put / total:.1%} of {total} have the ball put elsewhere")
