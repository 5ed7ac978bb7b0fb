"""Held-out evaluation: many samples, greedy decoding, pass@k, metric functions, several sets."""

import json
import math
import os
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from helpers.two_processes import run_in_two_processes
from modules.grpo_runs import graded, grpo, identical, quiet, scalars, train, trainer, weights
from modules.held_out_sets import SETS, named_sets, one_set, write_rows

from grpovi_lightning.callbacks import RunStatus
from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.modules import HeldOutEvaluation
from grpovi_lightning.randomness import HELD_OUT_STEP
from grpovi_lightning.rewards import CompositeReward, RewardFunction
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig, most_probable
from grpovi_lightning.structures import PromptBatch

COSTS = {"num_tokens", "train_seconds"}
K, LONG = 4, 9.0


def even(prompts, completions, completion_ids, **columns):
    """0 or 1; None where the first token is a multiple of five."""
    return [None if ids[0] % 5 == 0 else float(sum(ids) % 2 == 0) for ids in completion_ids]


def says_answer(completions, answer):
    return [float(wanted in text.split()) for text, wanted in zip(completions, answer, strict=True)]


async def n_words(completions, unit=1.0):
    return [unit * len(text.split()) for text in completions]


def both():
    return CompositeReward([RewardFunction(graded), RewardFunction(even)], [1.0, 0.5])


def thorough():
    return HeldOutEvaluation(
        samples=K,
        temperature=0.6,
        greedy=True,
        pass_at=[1, 3],
        metrics={"says_answer": says_answer, "words": RewardFunction(n_words, kwargs={"unit": 0.5})},
    )


def module(policy_folder, evaluation=None, **settings):
    evaluation = {} if evaluation is None else {"evaluation": evaluation}
    return grpo(policy_folder, both(), **evaluation, **settings)


def validated(run_module, data, folder, **settings):
    """What an evaluation logs: name behind `eval/` -> value."""
    with quiet():
        run = trainer(folder, 1, **settings)
        run.validate(run_module, data, verbose=False)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert all(name.startswith("eval/") for name in found)
    return {name.removeprefix("eval/"): value for name, value in found.items()}


# A plain loop over prompts.


def present(values):
    return [value for value in values if value is not None]


def mean(values):
    return fmean(present(values)) if present(values) else math.nan


def total(parts):
    """The weighted sums of a group: a component that scored none of it does not apply."""
    applying = {name: scores for name, scores in parts.items() if present(scores)}
    sums = []
    for i in range(len(parts["graded"])):
        mine = [{"graded": 1.0, "even": 0.5}[name] * scores[i] if scores[i] is not None else None
                for name, scores in applying.items()]  # fmt: skip
        sums.append(None if None in mine else sum(mine))
    return sums


def group_of(policy, engine, prompt, number, size):
    """One prompt's completions, with their scores and metrics."""
    batch = PromptBatch([prompt], torch.tensor([number]), {})
    rollout = engine.generate(policy, batch, size, 1, HELD_OUT_STEP)
    ids = [row[kept].tolist() for row, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]
    parts = {"graded": graded([prompt] * size, rollout.texts, ids), "even": even(None, rollout.texts, ids)}
    answers = [prompt.split()[-1]] * size
    found = {f"rewards/{name}": scores for name, scores in parts.items()}
    found |= {"reward": total(parts), "says_answer": says_answer(rollout.texts, answers)}
    found["words"] = [0.5 * len(text.split()) for text in rollout.texts]
    found["completions/mean_length"] = [len(row) for row in ids]
    found["completions/clipped_ratio"] = [float(cut) for cut in rollout.truncated]
    return rollout, found


def kl_and_entropy(run_module, rollout, temperature):
    """Values at every completion token, from the whole sequence at once."""
    kl, entropy = [], []
    prompt = rollout.prompt_ids[0][rollout.prompt_mask[0]]
    for ids, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True):
        completion = ids[kept]
        logs = []
        for model in (run_module.policy, run_module.reference):
            with torch.no_grad():
                logits = model.model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
            logs.append((logits.double() / temperature).log_softmax(dim=-1))
        ratio = (logs[1] - logs[0]).gather(1, completion[:, None]).squeeze(1)
        kl += (ratio.exp() - 1 - ratio).tolist()
        entropy += (-(logs[0].exp() * logs[0]).sum(dim=-1)).tolist()
    return kl, entropy


def pass_by_enumeration(values, k):
    """None where too few were scored."""
    known = present(values)
    subsets = list(combinations(known, k))
    return fmean(any(value >= 1.0 for value in subset) for subset in subsets) if subsets else None


def summary(groups, names):
    """The means over completions under the names that are logged."""
    flat = {name: [value for group in groups for value in group[name]] for name in groups[0]}
    found = {"frac_unscorable": fmean(value is None for value in flat["reward"])}
    for name in names:
        if name.startswith("rewards/"):
            found |= {f"{name}/mean": mean(flat[name])}
            found |= {f"{name}/std": stdev(present(flat[name])) if len(present(flat[name])) > 1 else math.nan}
        else:
            found[name] = mean(flat[name])
    return found


def expected(run_module, prompts, evaluation):
    policy, sampling = run_module.policy, run_module.engine.sampling
    temperature = evaluation.temperature or sampling.temperature
    engine = RolloutEngine(SamplingConfig(sampling.max_completion_length, temperature=temperature))
    sampled = [group_of(policy, engine, prompt, i, evaluation.samples) for i, prompt in enumerate(prompts)]
    groups = [group for _, group in sampled]
    names = ["rewards/graded", "rewards/even", "reward", "completions/mean_length", "completions/clipped_ratio"]
    found = summary(groups, [*names, *evaluation.metrics])
    values = [kl_and_entropy(run_module, rollout, temperature) for rollout, _ in sampled]
    found |= {"kl": fmean(v for kl, _ in values for v in kl), "entropy": fmean(v for _, e in values for v in e)}
    for name in ["rewards/graded", "rewards/even", *evaluation.metrics]:
        for k in evaluation.pass_at:
            found[f"pass_at_{k}/{name}"] = mean([pass_by_enumeration(group[name], k) for group in groups])
    if evaluation.greedy:
        engine = RolloutEngine(SamplingConfig(sampling.max_completion_length), None, most_probable)
        groups = [group_of(policy, engine, prompt, i, 1)[1] for i, prompt in enumerate(prompts)]
        found |= {f"greedy/{key}": v for key, v in summary(groups, [*names, *evaluation.metrics]).items()}
    return found


def close(found, wanted, rel=1e-5):
    return {name: found[name] for name in wanted} == pytest.approx(wanted, rel=rel, abs=1e-6, nan_ok=True)


@pytest.fixture
def moved(policy_folder):
    """Makes modules whose policy has left the reference, so that the KL is not 0."""

    def make(evaluation=None, **settings):
        made = module(policy_folder, evaluation, **settings)
        made.configure_model()
        with torch.no_grad():
            for i, parameter in enumerate(made.policy.parameters()):
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
        return made

    return make


@pytest.mark.parametrize("evaluation", [HeldOutEvaluation(), thorough()], ids=["default", "thorough"])
def test_an_evaluation_is_what_a_loop_over_prompts_finds(moved, tmp_path, evaluation):
    made = moved(evaluation)
    found = validated(made, one_set(tmp_path / "data", "far"), tmp_path)
    wanted = expected(made, SETS["far"], evaluation)
    assert found.keys() == wanted.keys() | COSTS
    assert close(found, wanted)
    assert wanted["kl"] > 1e-3
    if evaluation.samples > 1:  # a component that scores nothing of a group does not apply to it
        assert 0 < wanted["frac_unscorable"] < 1


def test_the_value_that_is_left_out_is_one_sample_at_the_temperature_of_the_training(moved, tmp_path):
    found = [
        validated(moved(evaluation), one_set(tmp_path / "data", "far"), tmp_path)
        for evaluation in (None, HeldOutEvaluation(samples=1, temperature=0.9))
    ]
    assert found[0] == pytest.approx(found[1], rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("rows_at_once", [1, 3, 64])
def test_the_batches_that_prompts_are_in_change_nothing(moved, tmp_path, rows_at_once):
    found, wanted = (
        validated(moved(thorough()), one_set(tmp_path / "data", "far", validation_batch_size=size), tmp_path)
        for size in (rows_at_once, 2)
    )
    assert found.keys() == wanted.keys() and close(found, wanted, rel=1e-6)


def test_pass_at_1_is_the_share_that_passes_and_more_tries_pass_more_often(moved, tmp_path):
    evaluation = HeldOutEvaluation(samples=K, pass_at=[1, 2, K], pass_threshold=LONG, metrics={"words": n_words})
    found = validated(moved(evaluation), one_set(tmp_path / "data", "far"), tmp_path)
    made = moved(HeldOutEvaluation(samples=K))
    lengths = [
        [len(text.split()) for text in group_of(made.policy, made.engine, prompt, i, K)[0].texts]
        for i, prompt in enumerate(SETS["far"])
    ]
    assert found["pass_at_1/words"] == pytest.approx(fmean(n >= LONG for group in lengths for n in group))
    assert found[f"pass_at_{K}/words"] == pytest.approx(fmean(any(n >= LONG for n in group) for group in lengths))
    assert found["pass_at_1/words"] < found["pass_at_2/words"] < found[f"pass_at_{K}/words"]


# Several sets.


def test_each_set_has_its_own_scalars_and_the_first_the_plain_ones_too(moved, tmp_path):
    found = validated(moved(thorough()), named_sets(tmp_path / "data"), tmp_path)
    near, far = (validated(moved(thorough()), one_set(tmp_path / name, name), tmp_path) for name in SETS)
    wanted = dict(near)
    for name, alone in (("near", near), ("far", far)):
        wanted |= {f"{name}/{key}": value for key, value in alone.items()}
    assert found == pytest.approx(wanted, rel=0, abs=0, nan_ok=True)


def test_a_single_set_with_a_name_has_both(moved, tmp_path):
    found = validated(moved(), named_sets(tmp_path / "data", ["far"]), tmp_path)
    assert found["far/reward"] == found["reward"] and "near/reward" not in found


def test_the_test_table_has_no_name(moved, tmp_path):
    data = named_sets(tmp_path / "data", test=str(tmp_path / "data" / "far.jsonl"))
    with quiet():
        run = trainer(tmp_path, 1)
        run.test(moved(), data, verbose=False)
    alone = validated(moved(), one_set(tmp_path / "far", "far"), tmp_path)
    assert {name: float(value) for name, value in run.callback_metrics.items()} == pytest.approx(
        {f"test/{name}": value for name, value in alone.items()}, rel=0, abs=0, nan_ok=True
    )


# Two processes.


def evaluate_on_a_rank(rank, folder, policy, state):
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")
    os.environ |= dict(zip(names, (str(rank), "0", "2"), strict=True))
    try:
        made = module(policy, thorough())
        made.configure_model()
        made.policy.load_state_dict(torch.load(state))
        data = named_sets(Path(folder) / f"data_{rank}")
        found = validated(made, data, Path(folder) / "run", devices=2, strategy="ddp")
    finally:
        for name in names:
            os.environ.pop(name, None)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_find_what_one_finds(moved, policy_folder, tmp_path):
    made = moved(thorough())
    torch.save(made.policy.state_dict(), tmp_path / "state.pt")
    run_in_two_processes(evaluate_on_a_rank, tmp_path, str(policy_folder), str(tmp_path / "state.pt"))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)
    assert close(first, validated(made, named_sets(tmp_path / "data"), tmp_path), rel=1e-5)


# Beside a training.


def test_nothing_of_an_evaluation_changes_the_training(policy_folder, tmp_path):
    runs = {"plain": module(policy_folder), "thorough": module(policy_folder, thorough())}
    for name, made in runs.items():
        train(made, tmp_path / name, 2, validate_every=1, data=named_sets(tmp_path / "data"))
    assert identical(*(weights(made) for made in runs.values()))
    plain, more = (scalars(tmp_path / name) for name in runs)
    assert {name: values for name, values in more.items() if not name.startswith("eval/")} == {
        name: values for name, values in plain.items() if not name.startswith("eval/")
    }
    assert sorted(more["eval/far/greedy/reward"]) == [0, 1, 2]
    assert not any("says_answer" in name for name in more if not name.startswith("eval/"))


def test_an_evaluation_repeats_to_the_bit_and_starts_anew_each_time(moved, tmp_path):
    made = moved(thorough())
    first, second = (validated(made, named_sets(tmp_path / "data"), tmp_path) for _ in range(2))
    assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)


@pytest.mark.slow
def test_the_report_compares_runs_by_the_scalars_of_a_set(policy_folder, tmp_path):
    from analysis import efficiency_table, load_runs

    for seed in (1, 2):
        folder = tmp_path / "runs" / "arms" / "grpo" / f"seed_{seed}"
        made, data = module(policy_folder, thorough(), seed=seed), named_sets(tmp_path / "data")
        train(made, folder, 2, RunStatus(folder, seed), validate_every=1, data=data)
    runs = load_runs(tmp_path / "runs")
    for metric in ("eval/far/reward", "eval/greedy/reward", "eval/far/says_answer", "eval/near/pass_at_3/rewards/even"):
        (row,) = efficiency_table(runs, metric=metric).itertuples()
        values = runs[runs["metric"] == metric]["value"]
        assert row.n_seeds == 2 and values.min() <= row.final <= values.max()


# What is refused.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "evaluation.samples: got 0, expected at least 1"),
        ({"samples": 4, "pass_at": [1, 8]}, r"evaluation.pass_at: got \[1, 8\] with samples 4, expected different"),
        ({"pass_at": [0]}, r"evaluation.pass_at: got \[0\] with samples 1"),
        ({"samples": 2, "pass_at": [2, 2]}, r"evaluation.pass_at: got \[2, 2\] with samples 2, expected different"),
        ({"pass_at": [1], "pass_threshold": math.nan}, "evaluation.pass_threshold: got nan, expected a number"),
        ({"pass_threshold": 0.5}, "evaluation.pass_threshold cannot take effect: got 0.5 without pass_at"),
        *(
            ({"metrics": {name: even}}, f"evaluation.metrics: got the name '{name}', expected a word")
            for name in (
                "",
                "reward",
                "kl",
                "greedy",
                "rewards",
                "num_tokens",
                "completions",
                "pass_at_2",
                "a/b",
                "a b",
            )
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        HeldOutEvaluation(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_of_0_points_to_greedy_decoding(policy_folder, temperature):
    message = f"evaluation.temperature: got {temperature}, expected a number above 0; .*`greedy: true`"
    with pytest.raises(UserError, match=message):
        module(policy_folder, HeldOutEvaluation(temperature=temperature))


@pytest.mark.parametrize("name", ["kl", "greedy", "rewards", "words", "num_tokens"])
def test_a_set_with_the_name_of_another_scalar_is_refused(policy_folder, tmp_path, name):
    file = write_rows(tmp_path, "rows", SETS["near"])
    data = PromptDataModule(file, {"near": file, name: file})
    with pytest.raises(UserError, match=f"data.validation: got the name '{name}', expected a word"):
        module(policy_folder, thorough()).check_settings(trainer(tmp_path, 1), data)


def test_a_column_that_a_metric_needs_is_missed_in_held_out_tables_alone(policy_folder):
    made = module(policy_folder, HeldOutEvaluation(metrics={"says_answer": says_answer}))
    made.held_out.check_columns({"train": [], "validation": ["answer"]})
    for table in ("validation", "validation/far", "test"):
        with pytest.raises(UserError, match=f"says_answer needs the argument 'answer', .* the {table} table are none"):
            made.held_out.check_columns({"train": ["answer"], table: []})


def test_a_metric_that_fails_is_one_line_with_its_batch(policy_folder, tmp_path):
    def broken(completions):
        raise ValueError("no")

    made = module(policy_folder, HeldOutEvaluation(metrics={"mine": broken}))
    with pytest.raises(TrainingError, match=r"function mine raised ValueError: no .*; its batch is in .*held_out"):
        train(made, tmp_path, 1, validate_every=1, data=one_set(tmp_path / "data", "far"))
