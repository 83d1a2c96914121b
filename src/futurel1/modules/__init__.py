"""LightningModules: steps, optimizers and logging around plain PyTorch parts."""

from futurel1.modules.callbacks import HuggingFaceExport, JSONLinesWriter
from futurel1.modules.held_out_accuracy import HeldOutAccuracy
from futurel1.modules.la_dapo import LADAPOModule
from futurel1.modules.latent_predictor import LatentPredictor
from futurel1.modules.latent_sft import LatentSFTModule
from futurel1.modules.loggers import ResumableCSVLogger
from futurel1.modules.progress_bar import StepProgressBar
from futurel1.modules.tower_pretraining import TowerPretrainModule

__all__ = [
    "HeldOutAccuracy",
    "HuggingFaceExport",
    "JSONLinesWriter",
    "LADAPOModule",
    "LatentPredictor",
    "LatentSFTModule",
    "ResumableCSVLogger",
    "StepProgressBar",
    "TowerPretrainModule",
]
