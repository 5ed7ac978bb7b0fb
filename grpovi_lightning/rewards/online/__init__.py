"""Learning a reward model from comparisons as they arrive (arXiv 2502.07193)."""

from grpovi_lightning.rewards.online.estimator import PreferenceEstimator, UncertainEstimator
from grpovi_lightning.rewards.online.features import FeatureModel, LastToken, MeanOverTokens
from grpovi_lightning.rewards.online.gradient_descent import (
    ConstantRate,
    InverseSquareRootRate,
    StochasticGradientDescent,
)
from grpovi_lightning.rewards.online.implicit import ImplicitMirrorDescent
from grpovi_lightning.rewards.online.learning import OnlineLearning
from grpovi_lightning.rewards.online.maximum_likelihood import MaximumLikelihood
from grpovi_lightning.rewards.online.mirror_descent import OnlineMirrorDescent
from grpovi_lightning.rewards.online.optimizer import OnePassOptimizer
from grpovi_lightning.rewards.online.oracle import BradleyTerryOracle, FileOracle, Oracle
from grpovi_lightning.rewards.online.reward import LinearReward
from grpovi_lightning.rewards.online.selection import (
    BestAgainstSecond,
    BestAgainstWorst,
    OptimisticPairs,
    PairSelection,
    RandomPairs,
    UncertainPairs,
)

__all__ = [
    "BestAgainstSecond",
    "BestAgainstWorst",
    "BradleyTerryOracle",
    "ConstantRate",
    "FeatureModel",
    "FileOracle",
    "ImplicitMirrorDescent",
    "InverseSquareRootRate",
    "LastToken",
    "LinearReward",
    "MaximumLikelihood",
    "MeanOverTokens",
    "OnePassOptimizer",
    "OnlineLearning",
    "OnlineMirrorDescent",
    "OptimisticPairs",
    "Oracle",
    "PairSelection",
    "PreferenceEstimator",
    "RandomPairs",
    "StochasticGradientDescent",
    "UncertainEstimator",
    "UncertainPairs",
]
