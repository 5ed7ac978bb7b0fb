"""Simulate studies and count how often their reports are right: python benchmarks/calibration.py; see README.md."""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from calibration_curves import ARM, BASELINE, Noise, estimate_noise, simulate
from calibration_results import (
    STUDY_COLUMNS,
    calibration_figure,
    coverage_table,
    decided_table,
    print_tables,
    said_table,
)
from command import InputError, run_command
from reporting import consoles, machine, output_path, print_table, save_picture, write_table

from analysis.curves import Curves, common_span, curves_of
from analysis.efficiency import compare, target_of
from analysis.errors import ReportError
from analysis.loading import load_study
from analysis.selection import included, status_of, with_reasons
from analysis.settings import GOLD_MEAN, Settings
from analysis.speedup import speedup_of
from analysis.tables import rows_where
from analysis.verdict import Verdict, verdicts_of
from grpovi_lightning.run_record.looks import plan_looks

RECORDED = Noise(
    start=0.275,
    start_sd=0.0128,
    rise=0.199,
    rise_shared_sd=0.004,
    rise_own_sd=0.003,
    rise_steps=15.2,
    log_steps_shared_sd=0.03,
    log_steps_own_sd=0.265,
    evaluation_sd=0.0139,
)
"""Of ten seeds of the quickstart: means, starts and single evaluations as `estimate_noise` finds them, the rest so that
`spreads` of simulated runs come near those of the recorded ones."""
RECORDED_SPREADS = {"log steps": 0.312, "log ratio of steps": 0.466, "final": 0.0179, "difference in area": 0.0193}
"""Standard deviations over those ten seeds, by `spreads_of`."""
STEPS = np.arange(0.0, 61.0, 10.0)
"""When the quickstart evaluates."""

SPEEDUPS = (1.0, 1.25, 1.5, 2.0)
SEEDS = (3, 5, 10, 20)
PLANS = ((3, 20), (5, 20))
"""Seeds of the first look, and most seeds, where seeds are added until the verdict is decided."""
ENDLESS = 5_000
"""Seeds of the study that stands for endlessly many: what it finds is what intervals should contain."""
SETTINGS = Settings("simulated", GOLD_MEAN, "simulated")
CLAIMS = {"Mixed": "mixed", "faster": "faster", "slower": "slower", "higher": "higher", "lower": "lower"}


def spreads(noise: Noise, n_seeds: int = 1_000) -> dict[str, float]:
    """Return the standard deviations of `RECORDED_SPREADS`, of simulated runs."""
    return spreads_of(simulate(noise, STEPS, n_seeds, 1.0, np.random.default_rng(0)).curves())


def spreads_of(curves: Curves) -> dict[str, float]:
    """Return the standard deviations of `RECORDED_SPREADS` over the seeds that all arms have.

    Of the steps to the target, those of seeds on which both of the first two arms reach it.
    """
    seeds = sorted(set.intersection(*(set(of) for of in curves.values())))
    baseline = list(curves.get(BASELINE, next(iter(curves.values()))).values())
    target, (first, last) = (
        target_of(baseline, SETTINGS).value,
        common_span([c for of in curves.values() for c in of.values()]),
    )
    steps, finals, areas = (
        np.array([[measure(of[seed]) for seed in seeds] for of in curves.values()])
        for measure in (
            lambda curve: curve.first_crossing(target),
            lambda curve: curve.final,
            lambda curve: curve.mean_over(first, last),
        )
    )
    logs = np.log(steps[:, np.isfinite(steps).all(axis=0)])
    found = (
        logs.std(axis=1, ddof=1).mean(),
        (logs[0] - logs[1]).std(ddof=1),
        finals.std(axis=1, ddof=1).mean(),
        (areas[0] - areas[1]).std(ddof=1),
    )
    return dict(zip(RECORDED_SPREADS, map(float, found), strict=True))


def endless_study(noise: Noise, speedup: float) -> dict[str, float]:
    """Return what endlessly many seeds would show, as the report measures it: quantity -> its mean."""
    study = simulate(noise, STEPS, ENDLESS, speedup, np.random.default_rng(round(100 * speedup)))
    curves = study.curves()
    target = target_of(list(curves[BASELINE].values()), SETTINGS).value
    pairs = [(curves[ARM][seed], curves[BASELINE][seed]) for seed in curves[ARM]]
    areas = np.array([[curve.mean_over(STEPS[0], STEPS[-1]) for curve in pair] for pair in pairs])
    ratio = speedup_of(pairs, target).restricted.point
    return {"steps": math.log(ratio), "area": float((areas[:, 0] - areas[:, 1]).mean())}


def studies(noise: Noise, speedup: float, n_studies: int, seed: int) -> list[dict[str, object]]:
    """Return the table of studies of one speed-up."""
    truth = endless_study(noise, speedup)
    return [row for n_seeds in SEEDS for row in _cell(noise, speedup, n_seeds, n_studies, seed, truth)]


def _cell(
    noise: Noise, speedup: float, n_seeds: int, n_studies: int, seed: int, truth: Mapping[str, float]
) -> Iterator[dict[str, object]]:
    """Yield two rows of the table of studies for each simulated study, as a report on it alone judges it."""
    # All studies in one table, as arms of their own: the same numbers, in a third of the time.
    runs = pd.concat(
        simulate(
            noise, STEPS, n_seeds, speedup, np.random.default_rng([seed, number, n_seeds, round(100 * speedup)])
        ).table(number)
        for number in range(n_studies)
    )
    pairs = [(f"{ARM} {number}", f"{BASELINE} {number}") for number in range(n_studies)]
    status = status_of(runs).assign(reason=None)
    for number, found in enumerate(compare(runs, status, SETTINGS, pairs)):
        (verdict,) = verdicts_of([(found, None)])
        missed = (found.speedup.arm_missed + found.speedup.baseline_missed) / (2 * n_seeds)
        cell = {"speedup": speedup, "seeds": n_seeds, "study": number, "said": said_by(verdict), "missed": missed}
        steps = found.speedup.restricted
        for quantity, values, ends in (
            ("steps", np.log(steps.values), np.log([steps.low, steps.high])),
            ("area", found.paired.values, (found.paired.low, found.paired.high)),
        ):
            values = tuple(values) if len(values) else (math.nan,) * n_seeds
            low, high = ends
            yield {**cell, "quantity": quantity, "truth": truth[quantity], "values": values, "low": low, "high": high}


def until_decided(noise: Noise, speedup: float, n_studies: int, seed: int) -> list[dict[str, object]]:
    """Return the table of studies of one speed-up whose seeds are added until they are decided."""
    truth = endless_study(noise, speedup)
    return [row for plan in PLANS for row in _added(noise, speedup, plan, n_studies, seed, truth)]


def _added(
    noise: Noise, speedup: float, plan: tuple[int, int], n_studies: int, seed: int, truth: Mapping[str, float]
) -> Iterator[dict[str, object]]:
    """Yield a row for each simulated study, as the report on the look at which it stops judges it."""
    first, most = plan
    looks = plan_looks(range(1, most + 1), first)
    entropy = [seed, 1, first, most, round(100 * speedup)]
    tables = {
        number: simulate(noise, STEPS, most, speedup, np.random.default_rng([*entropy, number])).table(number)
        for number in range(n_studies)
    }
    while tables and not looks.over:
        looks = looks.after(())
        settings, runs = replace(SETTINGS, looks=looks), pd.concat(tables.values())
        runs = rows_where(runs, runs["seed"] <= len(looks.seen))
        pairs = [(f"{ARM} {number}", f"{BASELINE} {number}") for number in tables]
        judged = compare(runs, status_of(runs).assign(reason=None), settings, pairs)
        for number, found in zip(list(tables), judged, strict=True):
            (verdict,) = verdicts_of([(found, None)])
            if verdict.decided or looks.over:
                del tables[number]
                steps, area = found.speedup.restricted, found.paired
                yield {
                    "speedup": speedup,
                    "first": first,
                    "most": most,
                    "study": number,
                    "said": said_by(verdict),
                    "seeds": len(looks.seen),
                    "steps_covered": steps.low <= math.exp(truth["steps"]) <= steps.high,
                    "area_covered": area.low <= truth["area"] <= area.high,
                }


def said_by(verdict: Verdict) -> str:
    """Return which of the claims a headline makes."""
    return next((claim for word, claim in CLAIMS.items() if word in verdict.headline), "nothing")


def recorded_curves(folder: Path) -> Curves:
    """Return the curves of the runs of a study on disk, enough of them to know their noise."""
    runs, status = load_study(folder)
    curves = curves_of(included(runs, with_reasons(status, runs, GOLD_MEAN)), GOLD_MEAN)
    if len(curves) < 2 or len(set.intersection(*(set(of) for of in curves.values()))) < 2:
        raise InputError(f"{folder}: expected two arms with two seeds in common that logged {GOLD_MEAN}")
    return curves


def run(arguments: argparse.Namespace) -> None:
    """Simulate, print, write."""
    out, progress = consoles()
    noise, recorded = RECORDED, RECORDED_SPREADS
    if arguments.noise_of is not None:
        curves = recorded_curves(arguments.noise_of)
        noise, recorded = estimate_noise(curves), spreads_of(curves)
    out.print(machine(1), *(f"{name}: {value:.4g}" for name, value in asdict(noise).items()), sep="\n")
    compared = [[name, f"{recorded[name]:.3g}", f"{found:.3g}"] for name, found in spreads(noise).items()]
    print_table(out, "Standard deviations over seeds", ["", "recorded", "simulated"], compared)
    rows: list[dict[str, object]] = []
    added: list[dict[str, object]] = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        tasks = [
            [
                pool.submit(count, noise, speedup, arguments.studies, arguments.seed)
                for count in (studies, until_decided)
            ]
            for speedup in SPEEDUPS
        ]
        for speedup, (fixed, growing) in zip(SPEEDUPS, tasks, strict=True):
            rows += fixed.result()
            added += growing.result()
            progress.print(f"speed-up {speedup:g}: done")
    table = pd.DataFrame(rows, columns=STUDY_COLUMNS)
    coverage, said, decided = coverage_table(table), said_table(table), decided_table(pd.DataFrame(added))
    print_tables(out, coverage, said, decided)
    path = output_path("calibration")
    out.print(write_table(coverage.merge(said, on=["speedup", "seeds"]), path))
    out.print(write_table(decided, path.with_name(f"{path.name}_until_decided")))
    out.print(save_picture(calibration_figure(coverage, said, decided), path))


def main(argv: list[str] | None = None) -> int:
    """Parse arguments and run; return the exit status."""
    parser = argparse.ArgumentParser(prog="calibration.py", description=__doc__)
    parser.add_argument("--studies", type=int, default=500, help="simulated studies a cell (500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--noise-of", type=Path, help="a study whose runs give the noise, instead of the recorded one")
    return run_command(parser, run, argv, least={"studies": 2, "seed": 0, "jobs": 1}, refused=(ReportError,))


if __name__ == "__main__":
    sys.exit(main())
