"""Video event prediction by interleaved latent visual reasoning (Future-L1), as PyTorch Lightning components.

`import futurel1` is light; torch, transformers and Lightning are imported when one of the names below is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from futurel1.errors import FutureL1Error
from futurel1.version import __version__

if TYPE_CHECKING:
    from futurel1.datamodules import (
        BouncingEventsDataModule,
        FutureBenchDataModule,
        PromptDataModule,
        RolloutPromptDataModule,
        SceneClipsDataModule,
        SceneFramesDataModule,
        TwiFFBenchDataModule,
        VideoHintDataModule,
    )
    from futurel1.losses import (
        LatentSFTLoss,
        PolicyLoss,
        group_advantages,
    )
    from futurel1.metrics import (
        FutureBenchAccuracy,
        LatentUsage,
        Throughput,
        TwiFFBenchScore,
    )
    from futurel1.models import (
        LatentBank,
        LatentReasoner,
        LatentSettings,
        SpanBudget,
    )
    from futurel1.models.policies import (
        DeterministicLatents,
        GaussianLatents,
        ReleasedLatents,
        VonMisesFisherLatents,
    )
    from futurel1.modules import (
        HuggingFaceExport,
        JSONLinesWriter,
        LADAPOModule,
        LatentPredictor,
        LatentSFTModule,
        TowerPretrainModule,
    )
    from futurel1.predictor import (
        Answer,
        EventPredictor,
        Span,
    )
    from futurel1.rewards import (
        AccuracyReward,
        CompositeReward,
        FormatReward,
        Judge,
        LengthPenalty,
        OutcomeContrastiveReward,
        OverlongPenalty,
        RepetitionPenalty,
        Reward,
        RewardInputs,
        RewardOutput,
        TemporalDiversityReward,
    )
    from futurel1.rollout import (
        RolloutSettings,
        SamplingSettings,
    )
    from futurel1.runs import (
        load_reasoner,
    )

_EXPORTS = {
    "futurel1.datamodules": (
        "BouncingEventsDataModule",
        "SceneClipsDataModule",
        "SceneFramesDataModule",
        "FutureBenchDataModule",
        "PromptDataModule",
        "RolloutPromptDataModule",
        "TwiFFBenchDataModule",
        "VideoHintDataModule",
    ),
    "futurel1.losses": (
        "LatentSFTLoss",
        "PolicyLoss",
        "group_advantages",
    ),
    "futurel1.metrics": (
        "FutureBenchAccuracy",
        "LatentUsage",
        "Throughput",
        "TwiFFBenchScore",
    ),
    "futurel1.models": (
        "LatentBank",
        "LatentReasoner",
        "LatentSettings",
        "SpanBudget",
    ),
    "futurel1.models.policies": (
        "DeterministicLatents",
        "GaussianLatents",
        "ReleasedLatents",
        "VonMisesFisherLatents",
    ),
    "futurel1.modules": (
        "HuggingFaceExport",
        "JSONLinesWriter",
        "LADAPOModule",
        "LatentPredictor",
        "LatentSFTModule",
        "TowerPretrainModule",
    ),
    "futurel1.predictor": (
        "Answer",
        "EventPredictor",
        "Span",
    ),
    "futurel1.rewards": (
        "AccuracyReward",
        "CompositeReward",
        "FormatReward",
        "Judge",
        "LengthPenalty",
        "OutcomeContrastiveReward",
        "OverlongPenalty",
        "RepetitionPenalty",
        "Reward",
        "RewardInputs",
        "RewardOutput",
        "TemporalDiversityReward",
    ),
    "futurel1.rollout": (
        "RolloutSettings",
        "SamplingSettings",
    ),
    "futurel1.runs": ("load_reasoner",),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "AccuracyReward",
    "Answer",
    "BouncingEventsDataModule",
    "CompositeReward",
    "DeterministicLatents",
    "EventPredictor",
    "FormatReward",
    "FutureBenchAccuracy",
    "FutureBenchDataModule",
    "FutureL1Error",
    "GaussianLatents",
    "HuggingFaceExport",
    "JSONLinesWriter",
    "Judge",
    "LADAPOModule",
    "LatentBank",
    "LatentPredictor",
    "LatentReasoner",
    "LatentSFTLoss",
    "LatentSFTModule",
    "LatentSettings",
    "LatentUsage",
    "LengthPenalty",
    "OutcomeContrastiveReward",
    "OverlongPenalty",
    "PolicyLoss",
    "PromptDataModule",
    "ReleasedLatents",
    "RepetitionPenalty",
    "Reward",
    "RewardInputs",
    "RewardOutput",
    "RolloutPromptDataModule",
    "RolloutSettings",
    "SamplingSettings",
    "SceneClipsDataModule",
    "SceneFramesDataModule",
    "Span",
    "SpanBudget",
    "TemporalDiversityReward",
    "Throughput",
    "TowerPretrainModule",
    "TwiFFBenchDataModule",
    "TwiFFBenchScore",
    "VideoHintDataModule",
    "VonMisesFisherLatents",
    "__version__",
    "group_advantages",
    "load_reasoner",
]


_SUBPACKAGES = (
    "curation",
    "data",
    "datamodules",
    "integrations",
    "losses",
    "metrics",
    "models",
    "modules",
    "rewards",
    "rollout",
    "runs",
    "worlds",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"futurel1.{name}")
    raise AttributeError(f"module 'futurel1' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
