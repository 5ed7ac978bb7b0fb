import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.own_input import run_config, write_own_input, write_yaml
from models.tiny_models import language_model
from modules.grpo_runs import grpo, quiet, scalars, train, trainer
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment import Adjusted
from grpovi_lightning.callbacks import Throughput, throughput
from grpovi_lightning.callbacks.throughput import (
    available_flops,
    peak_memory,
    shares,
    step_flops,
)
from grpovi_lightning.cli import main
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules.logging import log_scalars
from grpovi_lightning.modules.outcome import PolicyWork, StepCost, StepOutcome, as_outputs
from grpovi_lightning.modules.update_settings import UpdateSettings
from grpovi_lightning.modules.work import matrix_weights, policy_work
from grpovi_lightning.rewards.base import RewardUpdate
from grpovi_lightning.selection import ScoredRollout
from grpovi_lightning.structures import Experience, PromptBatch, Rollout

PHASES = ["prefill", "decode", "reference", "reward", "adjustment", "forward", "backward", "optimizer"]
SHARES = [f"throughput/frac_{phase}" for phase in [*PHASES, "rest"]]
TOKENS = "throughput/completion_tokens_per_second"
MEMORY = "throughput/peak_memory_gb"


def rates(logged, before=0.0):
    """Tokens a second of each step, from the cumulative tokens and the seconds of the steps."""
    found = {}
    for step, total in sorted(logged["num_tokens"].items()):
        found[step] = (total - before) / logged["step_time"][step]
        before = total
    return found


# A real run.


@pytest.fixture(scope="module")
def run(policy_folder, tmp_path_factory):
    """What a run of four steps logged, and what stood on its progress bar after each."""
    bar = []

    class Bar(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            bar.append(dict(trainer.progress_bar_metrics))

    folder = tmp_path_factory.mktemp("run")
    train(grpo(policy_folder), folder, 4, Throughput(), Bar(), validate_every=2)
    return scalars(folder, timings=True), bar


def test_every_step_logs_tokens_a_second_shares_and_memory_on_the_axis_of_the_other_scalars(run):
    logged, _ = run
    found = {tag for tag in logged if tag.startswith("throughput/")}

    assert found == {TOKENS, MEMORY, *SHARES}
    assert all(sorted(logged[tag]) == sorted(logged["reward"]) == [0, 1, 2, 3] for tag in found)


def test_tokens_a_second_are_the_tokens_of_a_step_over_its_time(run):
    assert run[0][TOKENS] == pytest.approx(rates(run[0]), rel=1e-5)


def test_shares_are_those_of_the_phases_and_sum_to_1(run):
    logged, _ = run
    for step in range(4):
        of_step = [logged[tag][step] for tag in SHARES]
        assert min(of_step) >= 0 and sum(of_step) == pytest.approx(1, abs=1e-6)
        for phase in PHASES:
            seconds = logged["step_time"][step] * logged[f"throughput/frac_{phase}"][step]
            assert seconds == pytest.approx(logged[f"step_time/{phase}"][step], rel=1e-5)


def test_peak_memory_is_that_of_this_process_and_never_falls(run):
    values = list(run[0][MEMORY].values())

    assert values == sorted(values)
    assert 0.1 < values[0] <= values[-1] < 64  # torch alone takes more than 0.1 GB


def test_tokens_a_second_stand_on_the_progress_bar_at_once_under_a_short_name(run):
    logged, bar = run
    assert [metrics["tokens/s"] for metrics in bar] == pytest.approx(list(logged[TOKENS].values()))
    assert not any(name.startswith("throughput/") for name in bar[-1])


@pytest.mark.slow
def test_a_run_from_the_command_line_logs_its_throughput(tmp_path, monkeypatch):
    write_own_input(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = write_yaml(tmp_path / "run.yaml", run_config(tmp_path, tmp_path / "run"))

    assert main(["fit", "--config", config, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]) == 0

    logged = scalars(tmp_path / "run", timings=True)
    assert logged[TOKENS] == pytest.approx(rates(logged), rel=1e-5) and len(logged[TOKENS]) == 2


# Continued runs.


def continue_run(policy_folder, folder, saved, *callbacks):
    """Three steps, saved after the second, then on from there to the fifth; the scalars of steps 2, 3 and 4."""
    every = {"checkpoint_every": 2, "max_epochs": -1}
    train(grpo(policy_folder), folder, 3, *saved, **every)
    checkpoint = folder / "checkpoints" / "step=2.ckpt"
    before = scalars(folder, timings=True)["num_tokens"][1]
    for file in folder.glob("events.out.*"):
        file.unlink()
    train(grpo(policy_folder), folder, 5, *callbacks, ckpt_path=checkpoint, **every)
    return scalars(folder, timings=True), before


def test_a_continued_run_counts_its_first_step_from_the_checkpoint_on(policy_folder, tmp_path):
    logged, before = continue_run(policy_folder, tmp_path, [Throughput()], Throughput())

    assert sorted(logged[TOKENS]) == [2, 3, 4]
    assert logged[TOKENS] == pytest.approx(rates(logged, before), rel=1e-5)


def test_a_checkpoint_without_a_count_gives_no_rate_for_the_first_step_and_right_ones_after(policy_folder, tmp_path):
    logged, before = continue_run(policy_folder, tmp_path, [], Throughput())

    expected = rates(logged, before)
    del expected[2]
    assert logged[TOKENS] == pytest.approx(expected, rel=1e-5)
    assert sorted(logged[MEMORY]) == [2, 3, 4]


def test_a_callback_that_is_used_again_counts_the_second_run_from_0(policy_folder, tmp_path):
    callback = Throughput()
    for name in ("first", "second"):
        train(grpo(policy_folder), tmp_path / name, 2, callback)

    logged = scalars(tmp_path / "second", timings=True)
    assert logged[TOKENS] == pytest.approx(rates(logged), rel=1e-5)


# Made-up steps.


class MadeUp(L.LightningModule):
    """Logs the given scalars, one dictionary a step, and returns them as the cost of an outcome."""

    def __init__(self, steps, outcome, work):
        super().__init__()
        self.steps, self.outcome, self.work = steps, outcome, work
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        log_scalars(self, self.steps[batch_idx], batch_idx)
        if self.outcome is None:
            return None
        scalars = self.steps[batch_idx]
        seconds = {name: value for name, value in scalars.items() if name.startswith("step_time")}
        return as_outputs(self.outcome, StepCost(seconds, int(scalars["num_tokens"]), self.work))

    def configure_optimizers(self):
        return None

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(len(self.steps)))


def made_up_step(step_time, num_tokens, **phases):
    times = {f"step_time/{phase}": phases.get(phase, 0.0) for phase in PHASES}
    return times | {"step_time": step_time, "num_tokens": num_tokens}


def fit_made_up(folder, steps, worked_step=None, **settings):
    module = MadeUp(steps, *(worked_step or worked()))
    with quiet():
        trainer(folder, -1, Throughput(), **settings).fit(module)
    return scalars(folder, timings=True)


STEPS = [made_up_step(2.0, 100.0, decode=1.0, backward=0.5), made_up_step(4.0, 400.0, decode=1.0, forward=3.0)]


def test_rates_and_shares_of_made_up_steps_are_those_by_hand(tmp_path):
    logged = fit_made_up(tmp_path, STEPS)

    assert logged[TOKENS] == {0: 50.0, 1: 75.0}
    assert logged["throughput/frac_decode"] == {0: 0.5, 1: 0.25}
    assert logged["throughput/frac_backward"] == {0: 0.25, 1: 0.0}
    assert logged["throughput/frac_forward"] == {0: 0.0, 1: 0.75}
    assert logged["throughput/frac_rest"] == {0: 0.25, 1: 0.0}


def test_shares_of_a_step_without_phases_are_all_rest():
    found = shares({"step_time": 3.0} | dict.fromkeys(keys.STEP_PHASES, 0.0))
    assert found == {tag: float(tag.endswith("rest")) for tag in SHARES}


def test_a_module_that_does_not_say_what_its_steps_cost_logs_no_throughput(tmp_path):
    logged = fit_made_up(tmp_path, [{"loss": 1.0}, {"loss": 2.0}], (None, None))

    assert logged["loss"] == {0: 1.0, 1: 2.0}
    assert not any(tag.startswith("throughput/") for tag in logged)


@pytest.mark.slow
def test_two_ranks_log_the_tokens_of_both_and_the_memory_of_the_larger(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]

    logged = scalars(tmp_path, timings=True)
    assert logged[TOKENS] == {0: 50.0, 1: 75.0}  # num_tokens counts over the ranks already
    assert logged[MEMORY] == pytest.approx({0: 7.0, 1: 7.0})
    assert logged["throughput/mfu"] == pytest.approx({0: 2864 / 2e6 / 2.0, 1: 2864 / 2e6 / 4.0})


# Memory.


@pytest.mark.slow
def test_memory_of_the_cpu_is_what_the_process_held_and_nothing_of_the_one_that_started_it():
    code = """
import torch
from grpovi_lightning.callbacks.throughput import peak_memory
cpu = torch.device("cpu")
peaks = [peak_memory(cpu)]
held = torch.ones(5 * 10**8, dtype=torch.uint8)
peaks.append(peak_memory(cpu))
del held
print(*peaks, peak_memory(cpu))
"""
    held = torch.ones(2 * 10**9, dtype=torch.uint8)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    del held

    before, during, after = map(float, done.stdout.split())
    assert 1e8 < before < 1.5e9
    assert during - before == pytest.approx(5e8, rel=0.1)
    assert after == pytest.approx(during, rel=0.01)


def test_memory_of_a_gpu_is_that_of_its_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {torch.device("cuda:1"): 12}[device])
    assert peak_memory(torch.device("cuda:1")) == 12.0


def test_a_peak_that_the_system_counts_lower_later_stays(tmp_path, monkeypatch):
    peaks = iter([5e9, 4e9])
    monkeypatch.setattr(throughput, "peak_memory", lambda device: next(peaks))
    assert fit_made_up(tmp_path, STEPS)[MEMORY] == {0: 5.0, 1: 5.0}


# FLOPs and their utilisation.


def worked(**changes):
    """The outcome of two groups of two completions; a policy of ten weights in the body and four in the head."""
    work = {
        "body_weights": 10,
        "head_weights": 4,
        "dtype": torch.bfloat16,
        "runs_prompts_once": True,
        "num_iterations": 2,
        "old_pass": False,
        "trained": torch.tensor([True, True]),
    }
    rollout = rollout_of(torch.ones(2, 5).long(), torch.ones(4, 4).long(), 2)
    rollout = replace(
        rollout,
        prompt_mask=torch.arange(5) >= torch.tensor([2, 0])[:, None],
        completion_mask=torch.arange(4) < torch.tensor([2, 1, 4, 3])[:, None],
        ref_logprobs=rollout.ref_logprobs if changes.pop("has_reference", True) else None,
    )
    return outcome_of_rollout(rollout), PolicyWork(**work | changes)


def outcome_of_rollout(rollout):
    rewards = torch.zeros(len(rollout.prompts), rollout.group_size)
    scored = ScoredRollout(rollout, {}, rewards, rollout.lengths.sum())
    values = (Adjusted(rewards), rewards, experience_of(rollout), [], RewardUpdate())
    return StepOutcome(rollout, scored, *values, "IdentityAdjustment", False, scored)


# The first group reads 3 + (1 + 0) tokens and predicts 2 + 1, the second reads 5 + (3 + 2) and predicts 4 + 3; in
# sampling the first token of a group is predicted once: 1 + (1 + 0) and 1 + (3 + 2).
SAMPLING = 2 * (10 * (4 + 10) + 4 * (2 + 6))
FIRST, SECOND = 2 * (10 * 4 + 4 * 3), 2 * (10 * 10 + 4 * 7)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, SAMPLING + (FIRST + SECOND) + 2 * 3 * (FIRST + SECOND)),
        ({"has_reference": False}, SAMPLING + 2 * 3 * (FIRST + SECOND)),
        ({"old_pass": True}, SAMPLING + 2 * (FIRST + SECOND) + 2 * 3 * (FIRST + SECOND)),
        ({"num_iterations": 1}, SAMPLING + (FIRST + SECOND) + 3 * (FIRST + SECOND)),
        ({"trained": torch.tensor([False, True])}, SAMPLING + (FIRST + SECOND) + 2 * 3 * SECOND),
        # A prompt of its own for each completion: 3 and 5 tokens more.
        ({"runs_prompts_once": False}, SAMPLING + 7 * (FIRST + SECOND + 2 * 10 * (3 + 5))),
    ],
    ids=["all", "no reference", "old pass", "one iteration", "a group of zero advantage", "prompts not shared"],
)
def test_flops_of_a_step_are_those_by_hand(changes, expected):
    assert step_flops(*worked(**changes)) == expected


def matmul_flops(counter):
    """FLOPs of products with weights; attention's are of another operation."""
    return counter.get_flop_counts()["Global"][torch.ops.aten.mm]


def test_completions_that_are_not_kept_cost_sampling_and_the_reference_alone():
    outcome, work = worked()
    kept = outcome.scored.keep(torch.tensor([[1], [0]]))  # of 1 and 4 tokens, which reads 3 + 0 and 5 + 3
    passes = 2 * (10 * (3 + 0) + 4 * 1) + 2 * (10 * (5 + 3) + 4 * 4)
    expected = SAMPLING + (FIRST + SECOND) + 2 * 3 * passes
    assert step_flops(replace(outcome, scored=kept), work) == expected


def test_flops_of_a_step_are_those_that_torch_counts_in_a_llama(policy_folder):
    policy = PretrainedCausalLM(str(policy_folder)).load()
    model, (group_size, width, length) = policy.model, (3, 5, 4)
    prompts, completions = torch.randint(3, 20, (2, width)), torch.randint(3, 20, (6, length))

    def logits(first_of_each_member):
        cache = DynamicCache(config=model.config)
        states = model.model(prompts, None, None, cache).last_hidden_state[:, -1:]
        cache.batch_repeat_interleave(group_size)
        if first_of_each_member:
            states = states.repeat_interleave(group_size, dim=0)
        first = model.lm_head(states)
        rest = model.lm_head(model.model(completions[:, :-1], None, None, cache).last_hidden_state)
        return first, rest

    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            logits(first_of_each_member=False)  # sampling
            logits(first_of_each_member=True)  # the reference
        sum(part.sum() for part in logits(first_of_each_member=True)).backward()  # the update

    rollout = rollout_of(prompts, completions, group_size)
    work = policy_work(policy, experience_of(rollout), UpdateSettings())
    assert step_flops(outcome_of_rollout(rollout), work) == matmul_flops(counter)


def rollout_of(prompts, completions, group_size):
    return Rollout(
        prompts=PromptBatch(["prompt"] * len(prompts), torch.arange(len(prompts)), {}),
        group_size=group_size,
        step=0,
        prompt_ids=prompts,
        prompt_mask=torch.ones_like(prompts, dtype=torch.bool),
        completion_ids=completions,
        completion_mask=torch.ones_like(completions, dtype=torch.bool),
        old_logprobs=torch.zeros(completions.shape),
        truncated=torch.zeros(len(completions), dtype=torch.bool),
        texts=["text"] * len(completions),
        ref_logprobs=torch.zeros(completions.shape),
    )


def experience_of(rollout, advantages=None, old_logprobs=None):
    some = torch.ones(len(rollout.completion_ids)) if advantages is None else torch.tensor(advantages)
    return Experience(rollout, some, rollout.completion_mask, old_logprobs)


@pytest.fixture
def small(policy_folder):
    return PretrainedCausalLM(str(policy_folder)).load(), rollout_of(
        torch.ones(2, 3).long(), torch.ones(4, 2).long(), 2
    )


def test_the_work_of_a_step_names_the_passes_over_its_rollout(small):
    policy, rollout = small
    for old_logprobs, expected in ((None, False), (rollout.old_logprobs, False), (torch.zeros(4, 2), True)):
        assert policy_work(policy, experience_of(rollout, None, old_logprobs), UpdateSettings()).old_pass is expected
    selected = replace(experience_of(rollout, None, rollout.old_logprobs), selected=torch.ones(4, 2).bool())
    assert policy_work(policy, selected, UpdateSettings()).old_pass is True  # for the entropies
    assert policy_work(policy, experience_of(rollout), UpdateSettings(num_iterations=3)).num_iterations == 3


def test_groups_without_advantages_are_work_unless_they_are_skipped(small):
    policy, rollout = small
    experience = experience_of(rollout, [0.0, 0.0, 0.0, -1.0])
    assert policy_work(policy, experience, UpdateSettings()).trained.tolist() == [True, True]
    skipping = UpdateSettings(skip_zero_advantage_groups=True)
    assert policy_work(policy, experience, skipping).trained.tolist() == [False, True]


def test_the_dtype_of_the_work_is_that_of_the_weights_or_of_autocast(small):
    policy, rollout = small
    assert policy_work(policy, experience_of(rollout), UpdateSettings()).dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert policy_work(policy, experience_of(rollout), UpdateSettings()).dtype is torch.bfloat16
    policy.to(torch.bfloat16)
    assert policy_work(policy, experience_of(rollout), UpdateSettings()).dtype is torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_count_only_where_they_predict(tiny_tokenizer, tied):
    model = language_model("llama", tiny_tokenizer, tie_word_embeddings=tied).model
    vocabulary, width = len(tiny_tokenizer), 32

    attention = 2 * width * width + 2 * width * 16
    assert matrix_weights(model) == (2 * (attention + 3 * width * 64), vocabulary * width)


def test_learned_positions_are_looked_up_not_multiplied(tiny_tokenizer):
    model = language_model("gpt2", tiny_tokenizer).model
    assert matrix_weights(model) == (2 * 12 * 32 * 32, len(tiny_tokenizer) * 32)


def test_utilisation_is_flops_over_seconds_and_what_the_gpu_can_do(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(throughput, "available_flops", lambda *what: asked.append(what[:2]) or 2e6)

    logged = fit_made_up(tmp_path, STEPS, worked())

    expected = SAMPLING + 7 * (FIRST + SECOND)
    assert logged["throughput/mfu"] == pytest.approx({0: expected / 2.0 / 2e6, 1: expected / 4.0 / 2e6})
    assert asked == [(torch.device("cpu"), torch.bfloat16)]


def test_an_unknown_gpu_has_no_utilisation_and_that_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "get_available_flops", lambda device, dtype: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "ACME 1")
    monkeypatch.setattr(
        throughput, "available_flops", lambda _, *others: available_flops(torch.device("cuda"), *others)
    )

    logged = fit_made_up(tmp_path, STEPS, worked())

    assert TOKENS in logged and "throughput/mfu" not in logged
    assert [line for line in capsys.readouterr().out.splitlines() if "mfu" in line] == [
        "throughput/mfu is not logged: Lightning does not know how many FLOPs a second ACME 1 can do in torch.bfloat16"
    ]


def test_what_a_gpu_can_do_is_asked_of_lightning_and_of_a_cpu_nobody_knows(monkeypatch):
    table = {(torch.device("cuda:0"), torch.bfloat16): 989}
    monkeypatch.setattr(throughput, "get_available_flops", lambda device, dtype: table[device, dtype])

    assert available_flops(torch.device("cuda:0"), torch.bfloat16, print) == 989
    assert available_flops(torch.device("cpu"), torch.bfloat16, print) is None


def test_lightnings_table_has_the_dense_figure_of_an_h100(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert available_flops(torch.device("cuda"), torch.bfloat16, print) == pytest.approx(989e12, rel=1e-3)


if __name__ == "__main__":  # two ranks, for the test of that name
    throughput.available_flops = lambda *_: 2e6
    throughput.peak_memory = lambda device: 3e9 if torch.distributed.get_rank() == 0 else 7e9
    fit_made_up(sys.argv[1], STEPS, worked(), devices=2, strategy="ddp")
