"""The experiments on published models: every stage and arm for one step, on tiny models of the same architectures.

The YAML files are run as they are shipped. Published names are found in caches of tiny models and data, and an overlay
makes the steps small.
"""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from helpers.chat import save_chat_policy
from helpers.published import (
    caches,  # noqa: F401  a fixture
    folder_of,
    publish_gsm8k,
    publish_pythia,
    publish_qwen,
    publish_reward_models,
    publish_ultrafeedback,
)
from models.tiny_classifiers import bare_encoder
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaModel

from analysis import load_runs
from experiments.smollm2.gold import positivity
from grpovi_lightning.cli import main
from grpovi_lightning.run_record.layout import PREPARE_FOLDER
from grpovi_lightning.study import load_study
from grpovi_lightning.study.plan import plan_arms, plan_prepare

ROOT = Path(__file__).parents[2]
ONE_STEP = {"trainer": {"accelerator": "cpu", "max_steps": 1, "val_check_interval": 1, "limit_val_batches": 1}}
FEW_ROWS = {"data": {"init_args": {"batch_size": 2, "validation_batch_size": 2}}}
FEW_PROMPTS = {"data": {"init_args": {"prompts_per_step": 2, "validation_batch_size": 2}}}
SHORT = {"model": {"init_args": {"group_size": 4, "sampling": {"max_completion_length": 6}}}}
SMALL = {
    "sample": {"n_prompts": 6, "completions": 4},
    "relabel": {"rows_at_once": 8},
    "SFTModule": ONE_STEP | FEW_ROWS,
    "RewardModelModule": ONE_STEP | FEW_ROWS,
    "GRPOModule": ONE_STEP | FEW_PROMPTS | SHORT,
}


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    """Runs every stage and the first seed of every arm as `grpovi compare` does; returns the study's folder.

    The folder in which the commands run has a link to the experiments, as if it were the repository.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "overlays").mkdir()

    def run(name, **further):
        study = load_study(ROOT / "experiments" / name / "study.yaml", seeds=[1])
        folder = tmp_path / "runs" / name
        for run in plan_prepare(study, folder) + plan_arms(study, folder):
            overlays = [SMALL[kind(run)], further.get(kind(run), {})]
            files = [tmp_path / "overlays" / f"{run.owner}_{i}.yaml" for i in range(len(overlays))]
            for file, overlay in zip(files, overlays, strict=True):
                file.write_text(yaml.safe_dump(overlay))
            assert main([*run.arguments, *(word for file in files for word in ("--config", str(file)))]) == 0, run.label
        return folder

    return run


def kind(run) -> str:
    """What a run does: the command, or the module that it trains."""
    if run.command != "fit":
        return run.command
    return next(
        c.content["model"]["class_path"].rpartition(".")[2] for c in run.configs if "class_path" in c.content["model"]
    )


def rating(folder, conversation) -> float:
    """What row 5 of ArmoRM's regression layer makes of a conversation, by `transformers` alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=False)
    weights = load_file(folder / "model.safetensors")
    body = LlamaModel.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        return float(body(ids).last_hidden_state[0, -1].float() @ weights["regression_layer.weight"][5])


def evaluated(folder, metric):
    """Arm -> its values of a held-out metric, at steps 0 and 1."""
    runs = load_runs(folder)
    found = runs[runs["metric"] == metric]
    return {arm: rows.sort_values("step")["value"].tolist() for arm, rows in found.groupby("arm")}


@pytest.mark.slow
def test_smollm2_compares_its_own_answers_by_the_gold_reward_and_learns_from_a_model_of_it(run_all, tmp_path):
    (tmp_path / "runs").mkdir()
    save_chat_policy(tmp_path / "runs" / "smollm2-135m-instruct")
    bare_encoder("bert", tmp_path / "runs" / "all-minilm-l6-v2")

    folder = run_all("smollm2")

    for stage, table in (("comparisons", "train"), ("held_out_comparisons", "validation")):
        lines = (folder / PREPARE_FOLDER / stage / "preferences.jsonl").read_text().splitlines()
        pairs = [json.loads(line) for line in lines]
        assert len(pairs) > 3, table
        chosen, rejected = (positivity([pair[role] for pair in pairs]) for role in ("chosen", "rejected"))
        assert all(better > worse for better, worse in zip(chosen, rejected, strict=True))
        assert {message["role"] for pair in pairs for message in pair["prompt"]} == {"system", "user"}
    asked = [
        {pair["prompt"][-1]["content"] for pair in map(json.loads, file.read_text().splitlines())}
        for file in sorted((folder / PREPARE_FOLDER).glob("*/preferences.jsonl"))
    ]
    assert not asked[0] & asked[1]
    gold = evaluated(folder, "eval/rewards/gold/mean")
    assert {arm: len(values) for arm, values in gold.items()} == {"grpo": 2, "grpovi": 2}
    assert gold["grpo"][0] == gold["grpovi"][0]


@pytest.mark.slow
def test_ultrafeedback_imitates_what_gold_prefers_and_is_trained_on_either_reward_model(run_all, caches):  # noqa: F811
    publish_pythia(caches)
    publish_reward_models(caches)
    publish_ultrafeedback(caches)

    folder = run_all(
        "ultrafeedback-pythia-1b",
        GRPOModule={"model": {"init_args": {"reward": {"init_args": {"prompts": 2, "completions": 2}}}}},
    )

    armorm = folder_of(caches, "RLHFlow/ArmoRM-Llama3-8B-v0.1")
    for stage, rows in (("relabelled", 19), ("held_out_relabelled", 6)):
        scores = pd.read_parquet(folder / PREPARE_FOLDER / stage / "scores.parquet")
        lines = (folder / PREPARE_FOLDER / stage / "preferences.jsonl").read_text().splitlines()
        assert len(scores) == len(lines) == rows
        for (_, score), pair in zip(scores.iterrows(), map(json.loads, lines), strict=True):
            recorded = [score["preferred"], score["other"]][:: -1 if score["swapped"] else 1]
            ratings = [rating(armorm, pair[side]) for side in ("chosen", "rejected")]
            # Scored in bfloat16, which has two to three digits.
            assert recorded[0] > recorded[1] and recorded == pytest.approx(ratings, rel=0.05, abs=0.1)
    policy = AutoTokenizer.from_pretrained(folder / PREPARE_FOLDER / "sft" / "model")
    turns = [{"role": "user", "content": "a fox"}, {"role": "assistant", "content": "sings"}]
    assert policy.apply_chat_template(turns, tokenize=False) == "<|user|>\na fox\n<|assistant|>\nsings<eos>\n"
    gold = evaluated(folder, "eval/rewards/gold/mean")
    assert {arm: len(values) for arm, values in gold.items()} == dict.fromkeys(
        ("gemma-grpo", "gemma-grpovi", "llama-grpo", "llama-grpovi"), 2
    )
    assert len({values[0] for values in gold.values()}) == 1  # the same judge of the same completions
    proxies = [evaluated(folder, "eval/rewards/normalised_reward/mean")[arm][0] for arm in ("gemma-grpo", "llama-grpo")]
    assert proxies[0] != proxies[1]


@pytest.mark.slow
def test_gsm8k_is_trained_on_either_rule_and_judged_by_both(run_all, caches):  # noqa: F811
    publish_qwen(caches)
    publish_gsm8k(caches)

    folder = run_all("gsm8k-qwen")

    for metric in ("eval/rewards/exact/mean", "eval/rewards/graded/mean", "eval/greedy/rewards/exact/mean"):
        assert set(evaluated(folder, metric)) == {"exact-grpo", "exact-grpovi", "graded-grpo", "graded-grpovi"}
