"""Reward for a correct answer."""

import math

import torch
from torch import Tensor

from futurel1.errors import ConfigError
from futurel1.metrics.functional import plain_answer
from futurel1.rewards.base import Reward, RewardInputs
from futurel1.rewards.judge import Judge
from futurel1.rewards.judge_prompts import AnswerItem
from futurel1.rewards.repetition import REPETITION_LIMIT, repetition_score
from futurel1.rewards.responses import first_answer, normalize_response


class AccuracyReward(Reward):
    """1 for a right answer, 0 for a wrong one, -1 for a repetitive response (Future-L1, arXiv 2606.05769).

    The rule comes first: the first ``<answer>`` equals the ground truth, apart from case, blanks and surrounding
    brackets, quotes and full stops of any script, as :func:`~futurel1.metrics.functional.plain_answer` compares them:
    ``（B）`` and ``b。`` are B. All answers that fail the rule go to the judge in one call. The judge is not asked
    about responses without an answer (0) or repetitive ones (-1). `inputs.correct`, if given, is returned unchanged.

    Args:
        judge: judges answers that fail the rule; None: they are wrong.
        repetition_limit: a response with a higher `repetition_score` is repetitive; 1 switches this off, for reasoning
            that has to repeat itself where nothing changed.

    Raises:
        ConfigError: a limit outside 0 to 1.
    """

    def __init__(self, judge: Judge | None = None, repetition_limit: float = REPETITION_LIMIT) -> None:
        if not 0 <= repetition_limit <= 1:
            raise ConfigError(f"repetition_limit must be between 0 and 1, got {repetition_limit}")
        self.judge = judge
        self.repetition_limit = repetition_limit

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Score N rollouts.

        Args:
            inputs: the rollouts.

        Returns:
            (N,) float32; NaN where the judge gave no verdict.

        Raises:
            JudgeError: the endpoint refuses the calls, or too many of them fail.
        """
        device = inputs.group_ids.device
        if inputs.correct is not None:
            return inputs.correct.to(device, torch.float32)
        values: list[float] = []
        asked: dict[int, AnswerItem] = {}
        rows = zip(inputs.responses, inputs.answers, inputs.problems, strict=True)
        for row, (response, ground_truth, problem) in enumerate(rows):
            answer = first_answer(normalize_response(response))
            truth = normalize_response(ground_truth)
            truth = first_answer(truth) or truth
            if repetition_score(response) > self.repetition_limit:
                values.append(-1.0)
                continue
            right = bool(plain_answer(answer)) and plain_answer(answer) == plain_answer(truth)
            values.append(float(right))
            if answer and not right:
                asked[row] = AnswerItem(problem, truth, answer)
        if self.judge is not None and asked:
            verdicts = self.judge.judge_answers(list(asked.values()))
            for row, verdict in zip(asked, verdicts, strict=True):
                values[row] = math.nan if verdict.failed else float(verdict.value is True)
        return torch.tensor(values, dtype=torch.float32, device=device)
