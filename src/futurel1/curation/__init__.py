"""Visual-gain curation: keep the records whose future frames help the model to answer (`docs/curation.md`)."""

from futurel1.curation.probes import Candidate, CandidateDataset, Prober, with_hints
from futurel1.curation.probing import Share, probe
from futurel1.curation.report import Report
from futurel1.curation.results import ProbeFolder, ProbeResult, ProbeTable
from futurel1.curation.selection import Selection, Thresholds, select
from futurel1.curation.visual_gain import Curation, PromptSettings, choose, curate

__all__ = [
    "Candidate",
    "CandidateDataset",
    "Curation",
    "ProbeFolder",
    "ProbeResult",
    "ProbeTable",
    "Prober",
    "PromptSettings",
    "Report",
    "Selection",
    "Share",
    "Thresholds",
    "choose",
    "curate",
    "probe",
    "select",
    "with_hints",
]
