"""Write workloads for timing training steps: python benchmarks/write_workload.py [NAME ...]; see README.md."""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterable, Sequence
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
TRAINING = {"beta": 0.04, "temperature": 1.0, "loss": "grpo", "num_iterations": 1}
REWARD = '''"""The share of words that end in 7: quick to compute, continuous, and it can be learned."""


def reward(completions, **columns):
    """Return one number in [0, 1] for each completion, a text or a list of one message; 0 for one without words."""
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    words = [text.split() for text in texts]
    return [sum(word[-1] == "7" for word in of_one) / max(len(of_one), 1) for of_one in words]
'''
NAMES = ("Mia", "Omar", "Ines", "Jun", "Tess", "Paul", "Ada", "Ravi")
GOODS = ("apples", "pencils", "stamps", "eggs", "marbles", "cups", "tickets", "candles")
FACTS = (
    "{name} has {a} boxes, and in each of them there are {b} {goods}.",
    "Every morning {a} more {goods} come in, and {b} of them are sold before noon.",
    "On the way home {name} meets a friend and gives away {a} {goods}.",
    "A bag of {b} {goods} costs {c} dollars, and the shop takes off 2 dollars for every third bag.",
    "The week before, {name} had twice as many {goods} and {a} dollars more to spend.",
    "{c} of the {goods} turn out to be broken and cannot be used for anything.",
)
QUESTION = "How many {goods} does {name} have at the end?"
"""Word problems of one to six facts. As those of GSM8K, they have about 45 words, and some many more than others."""


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
    learning_rate: float = 1e-3
    # Passes of this size take no longer together than one large one, and less memory.
    tokens_at_once: int = 8192

    def write(self, folder: Path) -> None:
        """Write prompts of random words and a random Llama that has one token for each."""
        words = [f"w{i}" for i in range(self.vocab - len(SPECIAL_TOKENS))]
        draw = random.Random(0)
        lengths = (draw.randint(self.prompt // 2, self.prompt) for _ in range(1024))
        _save_prompts(folder, (" ".join(words[draw.randrange(len(words))] for _ in range(n)) for n in lengths))
        _save_model(folder / "model", words, self)


@dataclass(frozen=True)
class ChatModel:
    """A workload of word problems as messages, answered by a pretrained chat model that lies in a folder."""

    checkpoint: str
    completion: int = 48
    prompts_per_step: int = 4
    group_size: int = 8
    learning_rate: float = 1e-6  # TRL's default
    tokens_at_once: int = 1024  # logits of a large vocabulary are what takes the memory

    def write(self, folder: Path) -> None:
        """Write the problems, and a link to the checkpoint.

        Raises:
            InputError: the checkpoint is not there.
        """
        if not Path(self.checkpoint, "config.json").exists():
            raise InputError(f"got no checkpoint at {self.checkpoint}; get it with {GET_MODELS}")
        draw = random.Random(0)
        problems = (_problem(draw) for _ in range(1024))
        _save_prompts(folder, ([{"role": "user", "content": problem}] for problem in problems))
        (folder / "model").symlink_to(Path(self.checkpoint).absolute(), target_is_directory=True)


GET_MODELS = "python experiments/smollm2/get_models.py runs"
NAMED: dict[str, Sizes | ChatModel] = {
    "short": Sizes(prompt=16),
    "even": Sizes(),
    "long": Sizes(prompt=256, completion=64),
    "ragged": Sizes(completion=96, vocab=64),
    "smollm2": ChatModel("runs/smollm2-135m-instruct"),
}
"""The workloads on which this project is compared with TRL."""
BY_DEFAULT = [name for name, workload in NAMED.items() if isinstance(workload, Sizes)]
"""Those that need nothing from elsewhere."""


def write_workload(folder: Path, workload: Sizes | ChatModel) -> str:
    """Write the folder and return the line that says so; the same workload gives the same folder, whoever writes it.

    Raises:
        InputError: `folder` holds something that is no part of a workload.
    """
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    other = sorted(found - set(PARTS)) or sorted(found if "workload.json" not in found else ())
    if other:
        raise InputError(f"{folder}: got a folder with {other[0]} in it, which is no workload; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    # First, because it is what tells a workload, even one whose writing was interrupted, from anything else.
    (folder / "workload.json").write_text(json.dumps(asdict(workload) | TRAINING, indent=1) + "\n", encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    model = folder / "model"
    model.unlink() if model.is_symlink() else shutil.rmtree(model, ignore_errors=True)
    workload.write(folder)
    return f"{'replaced' if found else 'written'}: {folder}"


def _problem(draw: random.Random) -> str:
    facts = draw.sample(FACTS, draw.choice((1, 1, 2, 2, 2, 3, 3, 4, 6)))
    numbers = {letter: draw.randint(3, 19) for letter in "abc"}
    return " ".join((*facts, QUESTION)).format(name=draw.choice(NAMES), goods=draw.choice(GOODS), **numbers)


def _save_prompts(folder: Path, prompts: Iterable[str | list[dict[str, str]]]) -> None:
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)


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
    parser.add_argument("names", nargs="*", choices=NAMED, default=BY_DEFAULT, metavar="NAME", help=", ".join(NAMED))

    def run(arguments: argparse.Namespace) -> None:
        for name in arguments.names:
            print(write_workload(WORKLOADS / name, NAMED[name]))

    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
