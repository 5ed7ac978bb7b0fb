"""What a user brings: prompts with an answer column, a BPE checkpoint, a graded reward function, and the YAML."""

import json
import random
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REWARD = '''"""A graded reward that reads the answer column: digits in common with the answer, per token."""


def digits_in_common(prompts, completions, completion_ids, answer, **columns):
    wanted = [set(text.rsplit("####", 1)[-1].strip()) for text in answer]
    return [
        len(set(text) & digits) / len(digits) - 0.01 * len(ids)
        for text, digits, ids in zip(completions, wanted, completion_ids, strict=True)
    ]
'''


def write_questions(path: Path, n_rows: int = 40) -> None:
    """Word problems in the shape of GSM8K: question, and an answer that ends with `#### number`."""
    rng = random.Random(0)
    with path.open("w") as out:
        for _ in range(n_rows):
            a, b = rng.randrange(2, 90), rng.randrange(2, 90)
            question = f"Ada has {a} apples and buys {b} more for $2 each. How many apples has she?"
            out.write(json.dumps({"question": question, "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}) + "\n")


def write_checkpoint(folder: Path, questions: Path, vocabulary: int = 400) -> None:
    """A byte-level BPE tokenizer trained on the questions, and a random tiny Llama."""
    texts = [json.loads(line)["question"] for line in questions.open()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def run_config(root: Path, run: Path, **model: object) -> dict:
    """The README's YAML for one's own model, prompts and reward function, as a dictionary."""
    return {
        "seed_everything": 1,
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "max_steps": 5,
            "val_check_interval": 5,
            "check_val_every_n_epoch": None,
            "enable_progress_bar": False,
        },
        "model": {
            "class_path": "grpovi_lightning.modules.GRPOModule",
            "init_args": {
                "policy": {
                    "class_path": "grpovi_lightning.models.PretrainedCausalLM",
                    "init_args": {"path": str(root / "checkpoint")},
                },
                "reward": {
                    "class_path": "grpovi_lightning.rewards.RewardFunction",
                    "init_args": {"function": "my_rewards.digits_in_common"},
                },
                "group_size": 4,
                "sampling": {"max_completion_length": 8},
                "loss": {"class_path": "grpovi_lightning.losses.GRPOLoss", "init_args": {"beta": 0.04}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
                **model,
            },
        },
        "data": {
            "class_path": "grpovi_lightning.data.PromptDataModule",
            "init_args": {
                "train": str(root / "questions.jsonl"),
                "validation": str(root / "questions.jsonl"),
                "prompt_column": "question",
                "columns": ["answer"],
                "prompts_per_step": 2,
            },
        },
    }


def write_own_input(root: Path) -> None:
    """Questions, checkpoint and reward function in one folder."""
    write_questions(root / "questions.jsonl")
    write_checkpoint(root / "checkpoint", root / "questions.jsonl")
    (root / "my_rewards.py").write_text(REWARD)


def write_yaml(path: Path, content: dict) -> str:
    """Writes the configuration; returns its path for the command line."""
    path.write_text(yaml.safe_dump(content))
    return str(path)
