"""Parsers and scores as plain functions; the metrics of `futurel1.metrics` are thin state around them."""

from futurel1.metrics.functional.bootstrap import Difference, paired_bootstrap
from futurel1.metrics.functional.futurebench import (
    FUTUREBENCH_SPLITS,
    OPTION_LETTERS,
    ExtractionProtocol,
    extract_option,
    futurebench_prompt,
    gold_option,
    wilson_interval,
)
from futurel1.metrics.functional.interventions import intervention_effect, is_right
from futurel1.metrics.functional.latent_usage import adjacent_span_cosines
from futurel1.metrics.functional.responses import extract_answer, plain_answer, sanitize_response
from futurel1.metrics.functional.twiffbench import coerce_scores, judged_scores
from futurel1.metrics.functional.votes import answer_of, elect, elect_each, expected_answer, vote

__all__ = [
    "FUTUREBENCH_SPLITS",
    "OPTION_LETTERS",
    "Difference",
    "ExtractionProtocol",
    "adjacent_span_cosines",
    "answer_of",
    "coerce_scores",
    "elect",
    "elect_each",
    "expected_answer",
    "extract_answer",
    "extract_option",
    "futurebench_prompt",
    "gold_option",
    "intervention_effect",
    "is_right",
    "judged_scores",
    "paired_bootstrap",
    "plain_answer",
    "sanitize_response",
    "vote",
    "wilson_interval",
]
