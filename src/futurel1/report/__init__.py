"""Pages to look at: `futurel1 report` of a run, and the card of one answer (`docs/report.md`)."""

from futurel1.report.pages import ShownAnswer, ShownSpan, card_page
from futurel1.report.writing import Report, report

__all__ = ["Report", "ShownAnswer", "ShownSpan", "card_page", "report"]
