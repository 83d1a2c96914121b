"""Are the latents used, and do they follow what was seen? `futurel1 diagnose` of a model (`docs/diagnose.md`)."""

from futurel1.diagnosis.diagnose import diagnose
from futurel1.diagnosis.effects import Effect, effect_of
from futurel1.diagnosis.imagining import Change, Imagined, change_of
from futurel1.diagnosis.probes import Probe, probe
from futurel1.diagnosis.results import Diagnosis

__all__ = ["Change", "Diagnosis", "Effect", "Imagined", "Probe", "change_of", "diagnose", "effect_of", "probe"]
