"""A study as the quickstart writes it, with made-up numbers: for looking at the report, and for the browser test."""

from pathlib import Path

import numpy as np
import yaml
from synthetic_runs import GOLD_STD, IDENTITY, INCREASE, STEPS, run_folder, write_events, write_run, write_status
from synthetic_runs import write_study_yaml as write_yaml

ARMS = {"grpo-group": 30.0, "grpovi-group": 38.0, "grpo-none": 45.0, "grpovi-none": 40.0}
BASELINES = {"grpovi-group": "grpo-group", "grpovi-none": "grpo-none"}
INJECTED = "<script>document.title = 'owned'</script> & <b>bold</b>"


def write_realistic_study(root: Path) -> Path:
    """Four arms of three seeds; one run failed, one warns, one reward model."""
    write_yaml(root, ARMS, BASELINES, [1, 2, 3], pair_accuracy="prepare/reward_model")
    write_events(root / "prepare" / "reward_model", {"eval/pair_accuracy": {10: 0.62, 50: 0.7431}})
    write_status(root / "prepare" / "reward_model", stage="RewardModelModule")
    for place, (arm, scale) in enumerate(ARMS.items()):
        for seed in (1, 2, 3):
            _write(run_folder(root, arm, seed), arm, scale, seed, np.random.default_rng([place, seed]))
    failed = run_folder(root, "grpovi-none", 3)
    ended = {"state": "failed", "step": 40, "error": "RuntimeError: reward is NaN"}
    write_status(failed, seed=3, adjustment=INCREASE, first_rollout=f"{3:064x}", **ended)
    warned = run_folder(root, "grpovi-group", 1)
    write_status(warned, seed=1, adjustment=INCREASE, first_rollout=f"{1:064x}", warnings=[INJECTED], wall_seconds=81.2)
    return root


def _write(folder: Path, arm: str, scale: float, seed: int, rng: np.random.Generator) -> None:
    def curve(start: float, end: float, noise: float, rate: float = scale) -> dict[int, float]:
        rise = 1 - np.exp(-np.array(STEPS) / rate)
        values = start + (end - start) * rise + noise * rng.normal(size=len(STEPS)) * (np.array(STEPS) > 0)
        return dict(zip(STEPS, values.tolist(), strict=True))

    increase = arm in BASELINES
    more = {
        GOLD_STD: curve(0.11, 0.06, 0.002),
        "eval/reward": curve(-1.2, 1.9, 0.05),
        "eval/kl": {step: max(value, 0.0) for step, value in curve(0.0, 0.3, 0.003, rate=80).items()},
        "eval/entropy": curve(2.6, 1.2, 0.03),
        "eval/completions/mean_length": curve(17.0, 13.5, 0.2),
        "adjustment/variance_before": curve(0.4, 0.2, 0.01),
        "adjustment/variance_after": curve(0.7 if increase else 0.4, 0.35 if increase else 0.2, 0.01),
        "adjustment/frac_groups_changed": dict.fromkeys(STEPS, 0.97 if increase else 0.0),
        "adjustment/effective_weights": curve(1.8, 1.6, 0.02),
    }
    adjustment = INCREASE if increase else IDENTITY
    write_run(
        folder, curve(0.42, 0.68, 0.006), seed=seed, adjustment=adjustment, more=more, first_rollout=f"{seed:064x}"
    )
    config = {
        "seed_everything": seed,
        "trainer": {"accelerator": "cpu", "max_steps": 100, "precision": "32-true", "default_root_dir": str(folder)},
        "model": {"adjustment": {"class_path": f"grpovi_lightning.adjustment.{adjustment}"}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
