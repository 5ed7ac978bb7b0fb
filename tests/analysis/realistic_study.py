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


ONLINE_BASELINES = {
    **{"grpo-one-pass": "grpo-refit", "grpo-frozen": "grpo-refit"},
    **{"grpovi-one-pass": "grpovi-refit", "grpovi-frozen": "grpovi-refit"},
}
ROUNDS = range(0, 100, 5)
LABELS_A_ROUND = 16


def write_online_study(root: Path) -> Path:
    """Six arms of three seeds: reward models that learn in one pass, that are refitted, and frozen ones."""
    arms = [f"{policy}-{model}" for policy in ("grpo", "grpovi") for model in ("one-pass", "refit", "frozen")]
    write_yaml(root, arms, ONLINE_BASELINES, [1, 2, 3])
    for place, arm in enumerate(arms):
        for seed in (1, 2, 3):
            rng = np.random.default_rng([place, seed])
            frozen, refit = arm.endswith("frozen"), arm.endswith("refit")
            height = (0.6 if frozen else 0.7) + 0.02 * arm.startswith("grpovi")
            gold = {step: 0.42 + (height - 0.42) * (1 - np.exp(-step / 30)) + rng.normal(0, 0.006) for step in STEPS}
            agreement = {t: 0.72 + (-0.08 if frozen else 0.1) * t / 100 + rng.normal(0, 0.03) for t in range(100)}
            more = {"rewards/gold/pair_agreement": agreement} | ({} if frozen else _online(refit, rng))
            adjustment = INCREASE if arm.startswith("grpovi") else IDENTITY
            write_run(run_folder(root, arm, seed), gold, seed=seed, adjustment=adjustment, more=more)
    return root


def _online(refit: bool, rng: np.random.Generator) -> dict[str, dict[int, float]]:
    labels = {step: LABELS_A_ROUND * (place + 1) for place, step in enumerate(ROUNDS)}
    size = {step: 8.0 * 256 * (count if refit else 256) for step, count in labels.items()}
    learned = {step: 1 - np.exp(-count / 150) for step, count in labels.items()}
    return {
        "online/labels": labels,
        "online/unanswered": dict.fromkeys(ROUNDS, 0),
        "online/pair_accuracy": {t: round(16 * (0.6 + 0.2 * x) + rng.normal(0, 1.5)) / 16 for t, x in learned.items()},
        "online/cross_entropy": {t: 0.69 - 0.2 * x + rng.normal(0, 0.06) for t, x in learned.items()},
        "online/regret": {t: 0.12 - 0.06 * x + rng.normal(0, 0.02) for t, x in learned.items()},
        "online/update_seconds": {
            t: (0.002 + 0.0005 * count if refit else 0.0012) * rng.lognormal(0, 0.1) for t, count in labels.items()
        },
        "online/state_bytes": size,
        "eval/online/labels": {t: sum(LABELS_A_ROUND for step in ROUNDS if step < t) for t in STEPS},
        "eval/online/unanswered": dict.fromkeys(STEPS, 0),
    }


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
