"""Writes a workload for timing training steps: python benchmarks/write_workload.py DIR --named short; see README.md."""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from workload import PARTS

from grpovi_lightning.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
N_PROMPTS = 1024
MAX_POSITIONS = 2048
HEADS = 4
TRAINING = {"beta": 0.04, "learning_rate": 1e-3, "temperature": 1.0, "loss": "grpo", "num_iterations": 1}
REWARD = '''"""The share of words that end in 7: quick to compute, continuous, and it can be learned."""


def ends_in_seven(completions, **columns):
    """One number in [0, 1] for each completion; 0 for one without words."""
    words = [completion.split() for completion in completions]
    return [sum(word[-1] == "7" for word in of_one) / max(len(of_one), 1) for of_one in words]
'''


@dataclass(frozen=True)
class Sizes:
    """What tells workloads apart; lengths in tokens.

    Attributes:
        vocab: entries of the vocabulary. One of them ends a completion, so that a small one makes lengths ragged.
        hidden: width of the model.
        layers: of the model.
        prompt: the longest prompt; the shortest has half as many tokens.
        completion: the longest completion.
        prompts_per_step: P.
        group_size: G.
    """

    vocab: int = 512
    hidden: int = 128
    layers: int = 4
    prompt: int = 96
    completion: int = 48
    prompts_per_step: int = 8
    group_size: int = 8

    def __post_init__(self) -> None:
        """Raises `UserError` for sizes of which no model or workload can be made."""
        least = {"vocab": len(SPECIAL_TOKENS) + 8, "hidden": 2 * HEADS, "prompt": 2, "group_size": 2}
        for name, value in asdict(self).items():
            if value < least.get(name, 1):
                raise UserError(f"{option(name)}: got {value}, expected at least {least.get(name, 1)}")
        if self.hidden % (2 * HEADS):
            raise UserError(f"--hidden: got {self.hidden}, expected a multiple of {2 * HEADS}, for {HEADS} heads")
        if self.prompt + self.completion > MAX_POSITIONS:
            raise UserError(
                f"--prompt and --completion: got {self.prompt} and {self.completion}, expected at most {MAX_POSITIONS} "
                "together, the model's positions"
            )


NAMED = {
    "short": Sizes(prompt=16),
    "even": Sizes(),
    "long": Sizes(prompt=256, completion=64),
    "ragged": Sizes(completion=96, vocab=64),
}
"""The workloads on which this project is compared with TRL."""


def option(field: str) -> str:
    """The command line's name of a size."""
    return "--" + field.replace("_", "-")


def write_workload(folder: Path, sizes: Sizes) -> str:
    """Writes the folder and says so; the same sizes give the same folder, whoever writes it.

    Raises:
        UserError: `folder` holds something that is no part of a workload.
    """
    verb = "replaced" if _checked(folder) else "written"
    folder.mkdir(parents=True, exist_ok=True)
    # First, because it is what tells a workload, even one whose writing was interrupted, from anything else.
    (folder / "workload.json").write_text(json.dumps(asdict(sizes) | TRAINING, indent=1) + "\n", encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    words = [f"w{i}" for i in range(sizes.vocab - len(SPECIAL_TOKENS))]
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        draw = random.Random(0)
        for _ in range(N_PROMPTS):
            length = draw.randint(sizes.prompt // 2, sizes.prompt)
            prompt = " ".join(words[draw.randrange(len(words))] for _ in range(length))
            file.write(json.dumps({"prompt": prompt}) + "\n")
    shutil.rmtree(folder / "model", ignore_errors=True)
    _save_model(folder / "model", words, sizes)
    return f"{verb}: {folder}"


def _checked(folder: Path) -> bool:
    """Whether a workload lies there already."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{folder}: got a file, expected a folder")
    found = {path.name for path in folder.iterdir()}
    other = sorted(found - set(PARTS)) or sorted(found if "workload.json" not in found else ())
    if other:
        raise UserError(f"{folder}: got a folder with {other[0]} in it, which is no workload; choose a new folder")
    return bool(found)


def _save_model(folder: Path, words: Sequence[str], sizes: Sizes) -> None:
    pad, eos, unk = SPECIAL_TOKENS
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate((*SPECIAL_TOKENS, *words))}, unk_token=unk))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unk)
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        intermediate_size=4 * sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL_TOKENS.index(pad),
        eos_token_id=SPECIAL_TOKENS.index(eos),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the folder; returns the exit status, 2 for sizes or a folder that do not do."""
    parser = argparse.ArgumentParser(description="Writes a workload for timing training steps.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="a new folder, or a workload, which is replaced")
    parser.add_argument("--named", choices=NAMED, help="one of the workloads that are compared; fixes all sizes")
    for field in fields(Sizes):
        parser.add_argument(option(field.name), type=int, metavar="N", help=f"default: {field.default}")
    arguments = vars(parser.parse_args(argv))
    given = {field.name: arguments[field.name] for field in fields(Sizes) if arguments[field.name] is not None}
    try:
        if arguments["named"] and given:
            other = option(next(iter(given)))
            raise UserError(f"--named {arguments['named']}: got {other} too; give the name or the sizes")
        sizes = NAMED[arguments["named"]] if arguments["named"] else Sizes(**given)
        print(write_workload(arguments["directory"], sizes))
    except (UserError, OSError) as error:
        print(f"write_workload.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
