"""Memory of a sharded training step against the arithmetic of docs/scaling.md: python benchmarks/sharded_memory.py."""

import argparse
import copy
import ctypes
import gc
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import torch.distributed as dist
from command import run_command
from lightning.fabric.utilities.cloud_io import _atomic_save  # what Lightning writes one file with
from reporting import consoles, machine, output_path, print_table, write_table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grpovi_lightning.models import LanguageModel, LoRA, Sharding, SharedReference
from grpovi_lightning.models.checkpoint_folder import write_folder
from grpovi_lightning.models.sharded_state import own_parts, whole_state
from grpovi_lightning.models.sharding import clip_gradients
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.structures import PromptBatch

PROMPTS, GROUP, PROMPT_TOKENS, COMPLETION_TOKENS = 4, 4, 32, 32
MIB = 2**20


def language_model(hidden: int, layers: int, vocabulary: int) -> LanguageModel:
    """Return a random Llama of the shape of SmolLM2-135M at the default sizes, in float32."""
    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w1", pad_token="w1"
    )
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64 // 3,
        tie_word_embeddings=True,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(1)
    return LanguageModel(LlamaForCausalLM(config), tokenizer)


def resident(peak: bool = False) -> float:
    """Return the memory of this process, MiB; `peak`: the most since `forget_peak`."""
    field = "VmHWM" if peak else "VmRSS"
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """Give freed memory back, and let the peak begin anew."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(
    rank: int, ranks: int, meeting: str, gather: Literal["once", "layers"], lora: bool, sizes: tuple[int, int, int]
) -> None:
    """Make two steps of a policy with a reference on one process of several; rank 0 writes what it took."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", (os.cpu_count() or 1) // ranks)) or 1)
    dist.all_reduce(torch.ones(2**20))  # the buffers of the backend
    forget_peak()
    before = resident()
    policy = language_model(*sizes)
    reference = None if lora else copy.deepcopy(policy)
    if reference is not None:
        reference.requires_grad_(False)
    if lora:
        LoRA(r=16).add_to(policy.model)
    mesh = init_device_mesh("cpu", (ranks,))
    # The same passes on one process, whose share is all.
    Sharding(gather).spread(policy, mesh, "32-true", reference)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    engine = RolloutEngine(SamplingConfig(max_completion_length=COMPLETION_TOKENS))
    mine = range(rank, PROMPTS, ranks)
    texts = [" ".join(f"w{7 * p + i + 2}" for i in range(PROMPT_TOKENS)) for p in mine]
    prompts = PromptBatch(texts, torch.tensor(list(mine)), {})
    seconds: list[float] = []
    peaks: dict[str, float] = {}
    for step in range(3):
        began = time.perf_counter()
        forget_peak()
        peaks["at rest"] = resident() - before
        rollout = engine.generate(policy, prompts, GROUP, 1, step)
        peaks["rollout"] = resident(peak=True) - before
        forget_peak()
        model = reference or SharedReference(policy)
        with torch.no_grad(), model.weights.gathered():
            model.completion_statistics(rollout, 1.0)
        peaks["reference"] = resident(peak=True) - before
        forget_peak()
        optimizer.zero_grad()
        with policy.weights.gathered():
            for prompt in range(len(prompts)):
                policy.completion_statistics(rollout.select([prompt]), 1.0).logprobs.sum().backward()
        clip_gradients(trained, 1.0)
        optimizer.step()
        peaks["update"] = resident(peak=True) - before
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        counts = {"weights": sum(p.numel() for p in policy.parameters()), "trained": sum(p.numel() for p in trained)}
        torch.save(peaks | counts | {"seconds": min(seconds[1:])}, f"{meeting}.found")
    dist.destroy_process_group()


def measure_saving(rank: int, ranks: int, meeting: str, sizes: tuple[int, int, int]) -> None:
    """Save a policy with AdamW's states on one process of several, in each way twice; rank 0 writes what it took."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    policy = language_model(*sizes)
    Sharding().spread(policy, init_device_mesh("cpu", (ranks,)), "32-true")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    found: dict[str, float] = {"weights": sum(p.numel() for p in policy.parameters())}
    for way in ("one file", "parts") * 2:
        dist.barrier()
        forget_peak()
        before, began = resident(), time.perf_counter()
        checkpoint = {"state_dict": dict(policy.state_dict()), "optimizer_states": [optimizer.state_dict()]}
        path = Path(f"{meeting} {way}.ckpt")
        if way == "parts":
            write_folder(path, *own_parts(checkpoint))
        else:
            gathered = whole_state(checkpoint)
            if rank == 0:
                _atomic_save(gathered, path)
                with path.open("rb") as written:
                    os.fsync(written.fileno())  # as `RunCheckpoint` does, and `write_folder` by itself
            del gathered
        dist.barrier()
        found |= {f"{way}, memory": resident(peak=True) - before, f"{way}, seconds": time.perf_counter() - began}
    if rank == 0:
        torch.save(found, f"{meeting}.found")
    dist.destroy_process_group()


def run_saving(sizes: tuple[int, int, int]) -> None:
    """Measure what a checkpoint takes as one file and as parts, print the table and write it."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        multiprocessing.spawn(measure_saving, (2, meeting, sizes), nprocs=2)  # type: ignore[attr-defined]
        found = torch.load(f"{meeting}.found", weights_only=True)
    rows = [
        {"checkpoint": way, "states": 12 * found["weights"] / MIB}
        | {name: found[f"{way}, {name}"] for name in ("memory", "seconds")}
        for way in ("one file", "parts")
    ]
    report("sharded_saving", "MiB of the first of two processes beyond what it had before it saved, and seconds", rows)


def expected_at_rest(found: dict[str, float], ranks: int, lora: bool) -> float:
    """Return the MiB of a process between two steps: float32 weights, gradients, two moments, and the reference."""
    reference = 0 if lora else found["weights"]
    return 4 * (found["weights"] + 3 * found["trained"] + reference) / ranks / MIB


def run(arguments: argparse.Namespace) -> None:
    """Measure every case, print the table and write it."""
    sizes = (192, 2, 16384) if arguments.quick else (576, 30, 49152)
    if arguments.saving:
        return run_saving(sizes)
    cases = (("once", False), ("layers", False), ("once", True))
    rows = []
    for ranks in (1, 2):
        for gather, lora in cases[:1] if arguments.quick else cases:
            with tempfile.TemporaryDirectory() as folder:
                meeting = f"{folder}/meeting"
                multiprocessing.spawn(measure, (ranks, meeting, gather, lora, sizes), nprocs=ranks)  # type: ignore[attr-defined]
                found = torch.load(f"{meeting}.found", weights_only=True)
            rows.append(
                {"processes": ranks, "gather": gather, "trained": "adapters" if lora else "all"}
                | {"weights": 4 * found["weights"] / MIB, "expected": expected_at_rest(found, ranks, lora)}
                | {name: found[name] for name in ("at rest", "rollout", "reference", "update", "seconds")}
            )
    title = "MiB of a process: whole weights, what is expected between steps, and what each phase took at most"
    report("sharded_memory", title, rows)


def report(name: str, title: str, rows: list[dict[str, float | str]]) -> None:
    """Print a table and write it."""
    frame = pd.DataFrame(rows)
    console, _ = consoles()
    console.print(machine(2))
    shown = [[f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    print_table(console, title, list(rows[0]), shown)
    print(write_table(frame, output_path(name)))


def main(argv: list[str] | None = None) -> int:
    """Parse arguments and run; return the exit status."""
    parser = argparse.ArgumentParser(prog="sharded_memory.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model, seconds")
    parser.add_argument("--saving", action="store_true", help="what checkpoints take, instead of steps")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
