"""Write workloads for timing training steps: python benchmarks/write_workload.py [NAME ...]; see README.md."""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from command import InputError, run_command
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from workload import PARTS

WORKLOADS = Path("runs") / "benchmarks" / "workloads"
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
HEADS = 4
TRAINING = {"beta": 0.04, "learning_rate": 1e-3, "temperature": 1.0, "loss": "grpo", "num_iterations": 1}
REWARD = '''"""The share of words that end in 7: quick to compute, continuous, and it can be learned."""


def ends_in_seven(completions, **columns):
    """Return one number in [0, 1] for each completion; 0 for one without words."""
    words = [completion.split() for completion in completions]
    return [sum(word[-1] == "7" for word in of_one) / max(len(of_one), 1) for of_one in words]
'''


@dataclass(frozen=True)
class Sizes:
    """What tells workloads apart; lengths in tokens, and the shortest prompt has half as many as the longest."""

    vocab: int = 512  # one entry ends a completion, so that a small vocabulary makes lengths ragged
    hidden: int = 128
    layers: int = 4
    prompt: int = 96
    completion: int = 48
    prompts_per_step: int = 8
    group_size: int = 8


NAMED = {
    "short": Sizes(prompt=16),
    "even": Sizes(),
    "long": Sizes(prompt=256, completion=64),
    "ragged": Sizes(completion=96, vocab=64),
}
"""The workloads on which this project is compared with TRL."""


def write_workload(folder: Path, sizes: Sizes) -> str:
    """Write the folder and return the line that says so; the same sizes give the same folder, whoever writes it.

    Raises:
        InputError: `folder` holds something that is no part of a workload.
    """
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    other = sorted(found - set(PARTS)) or sorted(found if "workload.json" not in found else ())
    if other:
        raise InputError(f"{folder}: got a folder with {other[0]} in it, which is no workload; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    # First, because it is what tells a workload, even one whose writing was interrupted, from anything else.
    (folder / "workload.json").write_text(json.dumps(asdict(sizes) | TRAINING, indent=1) + "\n", encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    words = [f"w{i}" for i in range(sizes.vocab - len(SPECIAL_TOKENS))]
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        draw = random.Random(0)
        for _ in range(1024):
            length = draw.randint(sizes.prompt // 2, sizes.prompt)
            prompt = " ".join(words[draw.randrange(len(words))] for _ in range(length))
            file.write(json.dumps({"prompt": prompt}) + "\n")
    shutil.rmtree(folder / "model", ignore_errors=True)
    _save_model(folder / "model", words, sizes)
    return f"{'replaced' if found else 'written'}: {folder}"


def _save_model(folder: Path, words: Sequence[str], sizes: Sizes) -> None:
    pad, eos, unk = SPECIAL_TOKENS
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate((*SPECIAL_TOKENS, *words))}, unk_token=unk))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unk)
    fast.save_pretrained(folder)
    shape = {"hidden_size": sizes.hidden, "intermediate_size": 4 * sizes.hidden, "num_hidden_layers": sizes.layers}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "tie_word_embeddings": True}
    ends = {"pad_token_id": SPECIAL_TOKENS.index(pad), "eos_token_id": SPECIAL_TOKENS.index(eos), "bos_token_id": None}
    config = LlamaConfig(vocab_size=sizes.vocab, max_position_embeddings=2048, **shape, **heads, **ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the named workloads into `WORKLOADS`; return the exit status, 2 for a folder that does not do."""
    parser = argparse.ArgumentParser(prog="write_workload.py", description="Write workloads for timing training steps.")
    parser.add_argument("names", nargs="*", choices=NAMED, default=list(NAMED), metavar="NAME", help=", ".join(NAMED))

    def run(arguments: argparse.Namespace) -> None:
        for name in arguments.names:
            print(write_workload(WORKLOADS / name, NAMED[name]))

    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
