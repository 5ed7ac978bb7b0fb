"""A real run of TRL's trainer, diagnosed from the folder that it wrote."""

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from analysis import diagnose, load_runs
from analysis.diagnoses import diagnosed

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.slow


def constant(completions, **_):
    return [0.5] * len(completions)


def gold(completion_ids, **_):
    return [float(sum(ids) % 5) for ids in completion_ids]


def test_what_trl_logs_is_read_by_its_names(policy_folder, tmp_path):
    prompts = Dataset.from_list([{"prompt": text} for text in ("write about a dog", "the old house", "a sad cat")])
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        logging_steps=1,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        beta=0.04,
        reward_weights=[1.0, 0.0],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=2,
        report_to=["tensorboard"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=str(policy_folder),
        processing_class=AutoTokenizer.from_pretrained(policy_folder),
        reward_funcs=[constant, gold],
        train_dataset=prompts,
        eval_dataset=prompts,
        args=settings,
    )
    trainer.train()

    tags = set(load_runs(tmp_path)["metric"])
    for name in (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "kl",
        "entropy",
        "rewards/gold/mean",
        "rewards/gold/std",
    ):
        assert f"train/{name}" in tags
    assert {"eval/reward", "eval/rewards/gold/mean", "train/clip_ratio/region_mean"} <= tags
    assert {"train/completions/mean_length", "train/completions/clipped_ratio"} <= tags
    assert list(diagnose(tmp_path)["kind"]) == ["groups without reward variance", "completions cut off"]
    (run,) = diagnosed(tmp_path)
    assert {"entropy collapse", "KL run-away", "clipped ratios"}.isdisjoint(dict(run.not_judged))
