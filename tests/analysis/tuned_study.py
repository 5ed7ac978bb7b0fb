"""Studies with grids of settings, as `grpovi compare` leaves them, with made-up numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from synthetic_runs import GOLD, IDENTITY, INCREASE, STEPS, run_folder, write_run

from grpovi_lightning.run_record.study import StudyRecord, parse_study, study_mapping

RATE, BETA = "model.init_args.optimizer.init_args.lr", "model.init_args.loss.init_args.beta"


def write_grid_study(
    root: Path,
    arms: Mapping[str, str | None],
    grid: Mapping[str, Sequence[object]],
    *,
    seeds: Sequence[int],
    tuning_seeds: Sequence[int] = (),
) -> StudyRecord[str]:
    """Write study.yaml for arms (name -> baseline) that have one grid; return what it says."""
    root.mkdir(parents=True, exist_ok=True)
    content = {
        "name": root.name,
        "seeds": list(seeds),
        "tuning_seeds": list(tuning_seeds),
        "arms": {
            name: {"configs": ["arm.yaml"], "values": dict(grid)} | ({"baseline": baseline} if baseline else {})
            for name, baseline in arms.items()
        },
        "report": {"metric": GOLD},
    }
    study = parse_study(content, "study.yaml", resolved=False)
    (root / "study.yaml").write_text(yaml.safe_dump(study_mapping(study), sort_keys=False), encoding="utf-8")
    return study


def level(height: float, kl: float = 0.1, steps: Sequence[int] = STEPS) -> tuple[dict[int, float], dict[int, float]]:
    """A metric and a KL that rise straight from 0 to these heights; the area of the metric is half its height."""
    share = {step: step / steps[-1] for step in steps}
    return {t: height * x for t, x in share.items()}, {t: kl * x for t, x in share.items()}


def write_point(root: Path, name: str, seed: int, height: float, kl: float = 0.1, **status: object) -> None:
    """One finished run of a point."""
    gold, of_kl = level(height, kl)
    adjustment = INCREASE if name.startswith("grpovi") else IDENTITY
    write_run(run_folder(root, name, seed), gold, seed=seed, adjustment=adjustment, more={"eval/kl": of_kl}, **status)


def write_realistic_tuned_study(root: Path, choose: Callable[[Path], None]) -> Path:
    """Four arms, three rates, two betas: tuned on three seeds, judged on six; one point failed."""
    arms = {"grpo-group": None, "grpovi-group": "grpo-group", "grpo-none": None, "grpovi-none": "grpo-none"}
    grid = {RATE: [1e-4, 3e-4, 1e-3], BETA: [0, 0.04]}
    seeds, tuning = (1, 2, 3, 4, 5, 6), (101, 102, 103)
    study = write_grid_study(root, arms, grid, seeds=seeds, tuning_seeds=tuning)
    for place, arm in enumerate(study.arms):
        assert arm.point is not None
        rate, beta = arm.point.values[RATE], arm.point.values[BETA]
        best = {"grpo": 3e-4, "grpovi": 1e-4}[arm.written.partition("-")[0]]
        height = 0.6 - 0.07 * abs(np.log10(rate / best)) ** 1.5 - (0.03 if beta else 0.0)
        for seed in tuning + seeds:
            noise = np.random.default_rng([place, seed]).normal(0, 0.012)
            steps = np.array(STEPS)
            rise = (1 - np.exp(-steps / 30)) * (height - 0.26 + noise)
            gold = dict(zip(STEPS, (0.26 + rise).tolist(), strict=True))
            kl = dict(zip(STEPS, (rise**1.3 * (0.4 if beta else 0.9) * (rate / 1e-4) ** 0.2).tolist(), strict=True))
            adjustment = INCREASE if arm.written.startswith("grpovi") else IDENTITY
            folder = run_folder(root, arm.name, seed)
            if arm.name == "grpovi-none@lr=0.001,beta=0" and seed == 102:
                ended = {"state": "failed", "step": 40, "error": "TrainingError: the loss is not finite"}
                write_run(folder, gold, seed=seed, adjustment=adjustment, more={"eval/kl": kl}, **ended)
            elif seed in tuning or (beta == 0 and rate < 1e-3):
                write_run(folder, gold, seed=seed, adjustment=adjustment, more={"eval/kl": kl})
    choose(root)
    return root
