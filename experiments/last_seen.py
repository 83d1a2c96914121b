"""How many questions about Atari games a guesser gets right that knows only where the ball was last seen.

    python -m experiments.last_seen runs/atari/world

It counts, over the training records, the answers for each game, quarter of the ball last seen and number of steps, and
gives the most frequent one to the test questions.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from experiments.proof.records import read_lines

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path, help="folder of `futurel1 world --task atari`")
    found, total = guessed_rightly(parser.parse_args().world)
    print(f"{found / total:.1%} of {total}")
