"""Completions whose numbers are known, written by the files that runs write."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from grpovi_lightning.run_record.completions import COLUMNS, CompletionSet


def rows_of(
    step: int, texts: Mapping[str, str], rewards: Sequence[float], gold: Sequence[float], kl: float | None = 0.01
) -> pa.RecordBatch:
    """One completion each of prompts (prompt -> completion), with two components of the reward."""
    n = len(texts)
    values = {
        "step": [step] * n,
        "prompt_id": [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in texts],
        "row": list(range(n)),
        "member": [0] * n,
        "prompt": list(texts),
        "completion": list(texts.values()),
        "reward": list(rewards),
        "rewards/model": list(rewards),
        "rewards/gold": list(gold),
        "length": [len(text) for text in texts.values()],
        "truncated": [False] * n,
        "logprob": [-1.0] * n,
        "kl": [kl] * n,
    }
    arrays = [pa.array(column, COLUMNS.get(name, pa.float64())) for name, column in values.items()]
    return pa.RecordBatch.from_arrays(arrays, list(values))


def write_completions(
    run: Path, batches: Sequence[pa.RecordBatch], split: str = "held_out", name: str = "", closed: bool = True
) -> CompletionSet:
    """What a run that evaluated so leaves; one that was killed leaves its files open."""
    folder = run / "completions"
    folder.mkdir(parents=True, exist_ok=True)
    kept = CompletionSet(folder, split, name, part_bytes=1_000_000)
    for batch in batches:
        kept.append(batch)
    if closed:
        kept.close()
    return kept
