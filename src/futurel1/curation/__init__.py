"""Visual-gain curation: keep the records whose future frames help the model to answer (`docs/curation.md`)."""

from futurel1.curation.probes import Candidate, CandidateDataset, Prober, SampledResponses, with_hints
from futurel1.curation.report import Report
from futurel1.curation.results import ProbeFolder, ProbeResult, ProbeTable
from futurel1.curation.selection import Selection, Thresholds, select

__all__ = [
    "Candidate",
    "CandidateDataset",
    "ProbeFolder",
    "ProbeResult",
    "ProbeTable",
    "Prober",
    "Report",
    "SampledResponses",
    "Selection",
    "Thresholds",
    "select",
    "with_hints",
]
