"""The house: who may import whom, and what every file must have."""

import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]


def test_imports_point_down_only():
    lint = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "0 broken" in found.stdout


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions and for type checkers count as well."""
    graph = grimp.build_graph("grpovi_lightning", "analysis", cache_dir=None)

    list(
        graphlib.TopologicalSorter(
            {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
        ).static_order()
    )


def test_no_file_has_more_lines_than_a_reader_takes_in():
    files = [file for package in ("grpovi_lightning", "analysis") for file in (ROOT / package).rglob("*.py")]
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert len(files) > 100
    assert {name: count for name, count in lines.items() if count > 300} == {}


PUBLIC = {
    "analysis": ["TunedComparison", "diagnose", "efficiency_table", "load_runs", "tuned_comparison"],
    "grpovi_lightning.adjustment": ["IdentityAdjustment", "VarianceIncrease", "increase_variance"],
    "grpovi_lightning.adjustment.reference": ["enumeration_search", "one_pass_search"],
    "grpovi_lightning.advantages": ["Advantage", "GroupAdvantage", "LeaveOneOutAdvantage"],
    "grpovi_lightning.losses": [
        "BNPOLoss",
        "CISPOLoss",
        "DAPOLoss",
        "DrGRPOLoss",
        "GRPOLoss",
        "GSPOLoss",
        "LossInputs",
    ],
    "grpovi_lightning.modules": [
        "DynamicResampling",
        "GRPOModule",
        "OnePassRewardModule",
        "RewardModelModule",
        "SFTModule",
    ],
    "grpovi_lightning.rewards": ["CompositeReward", "RewardFunction", "RewardModel"],
    "grpovi_lightning.rewards.online": ["LinearReward", "OnePassOptimizer", "OnlineLearning", "OnlineMirrorDescent"],
    "grpovi_lightning.rollout": ["RolloutEngine", "SamplingConfig"],
    "grpovi_lightning.selection": ["HistorySkipping", "MaxVarianceSelection", "RandomSelection", "VarianceCurriculum"],
}


@pytest.mark.parametrize(("module", "names"), PUBLIC.items(), ids=PUBLIC)
def test_public_names_stay_where_others_import_them_from(module, names):
    found = importlib.import_module(module)
    assert all(getattr(found, name).__doc__ for name in names)
