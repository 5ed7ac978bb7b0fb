"""The house: who may import whom, and what every file must have."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_point_down_only():
    lint = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "0 broken" in found.stdout


def test_the_public_names_are_importable_from_where_the_design_puts_them():
    from analysis import efficiency_table, load_runs
    from grpovi_lightning.adjustment import IdentityAdjustment, VarianceIncrease, increase_variance
    from grpovi_lightning.adjustment.reference import enumeration_search, one_pass_search
    from grpovi_lightning.advantages import GroupAdvantage
    from grpovi_lightning.losses import GRPOLoss
    from grpovi_lightning.modules import GRPOModule, RewardModelModule, SFTModule
    from grpovi_lightning.rewards import CompositeReward, RewardFunction, RewardModel
    from grpovi_lightning.rollout import RolloutEngine, SamplingConfig

    for name in list(locals().values()):
        assert callable(name) and name.__doc__
