"""Every completion of a run, kept as Parquet."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.callbacks.status import report_warning
from grpovi_lightning.conversations import Prompt
from grpovi_lightning.distributed import gather_objects
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.base import k3_divergence
from grpovi_lightning.modules.evaluation import held_out_names
from grpovi_lightning.modules.outcome import outcome_of
from grpovi_lightning.ops import masked_mean, masked_sum
from grpovi_lightning.run_record.completions import COLUMNS, HELD_OUT, TRAIN, CompletionSet, parts_of
from grpovi_lightning.run_record.layout import COMPLETIONS_FOLDER, RecordError
from grpovi_lightning.selection import ScoredRollout
from grpovi_lightning.trainer_state import batches_begun, steps_done

_MEGABYTE = 1_000_000
_PART_BYTES = 65_536, 16 * _MEGABYTE
"""The least and the most of text and numbers in a file; in between, an eighth of the bound."""


class CompletionFiles(L.Callback):
    """Keeps what a run samples, trained on and held out, in `<run>/completions/`; `run_record.completions` says how.

    The first rank writes the completions of all. `analysis.load_completions` reads them.
    """

    def __init__(self, max_megabytes: float = 200.0) -> None:
        """Bound the size.

        Args:
            max_megabytes: of all files of a run, in 10^6 bytes. When they grow beyond it, the largest set keeps the
                completions of half of its prompts alone, those that it has and those to come, with a warning; and
                again when they do so again. 0 keeps none.
        """
        if not max_megabytes >= 0:
            raise UserError(f"completions.max_megabytes: got {max_megabytes}, expected at least 0; 0 keeps none")
        self.max_bytes = int(max_megabytes * _MEGABYTE)
        self._held_out: defaultdict[str, list[pa.RecordBatch]] = defaultdict(list)
        self._sets: dict[tuple[str, str], CompletionSet] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget the files of an earlier run of the same object."""
        self._sets = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop what the run makes again from here on: steps after the checkpoint, all of a run that begins anew."""
        if self._sets is not None or not trainer.is_global_zero:
            return
        step, self._sets = steps_done(trainer), {}
        folder = _folder(trainer)
        for draft in folder.glob("*.tmp"):
            draft.unlink()
        try:
            for split, name in {(part.split, part.set) for part in parts_of(folder)}:
                # The evaluation at the checkpoint's own step was made before it was saved, and is not made again.
                first = step + 1 if split == HELD_OUT and step else step
                self._set(trainer, split, name).go_on_from(first)
        except RecordError as error:
            raise UserError(str(error)) from error

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the completions of the step's prompts, after resampling, those that were not kept included."""
        outcome = outcome_of(outputs)
        if outcome is None or not self.max_bytes:
            return
        more = {"adjusted": outcome.adjusted.rewards, "advantage": outcome.advantages}
        more = {name: outcome.of_pool(values).flatten() for name, values in more.items()}
        rows = completion_rows(outcome.pool, outcome.rollout.step, more)
        self._append(trainer, TRAIN, "", gather_objects(rows))

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._held_out.clear()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the sampled completions until the evaluation is whole."""
        if isinstance(outputs, ScoredRollout) and self.max_bytes and _of_a_run(trainer):
            rows = completion_rows(outputs, batches_begun(trainer), {})
            self._held_out[held_out_names(trainer)[dataloader_idx]].append(rows)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the completions of the evaluation."""
        if self.max_bytes and _of_a_run(trainer):
            self.on_train_start(trainer, pl_module)  # the evaluation at the start comes before or after it
            gathered = gather_objects(dict(self._held_out))
            for name in self._held_out:
                self._append(trainer, HELD_OUT, name, [rows for of_rank in gathered for rows in of_rank.get(name, [])])
            self._held_out.clear()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make Parquet files of all, also of a run that had no step left to do."""
        self.on_train_start(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Make Parquet files of what there is; on a full disk it stays as it is, and the run that goes on reads it."""
        with suppress(OSError):  # the exception is the one to tell
            self._close()

    def _close(self) -> None:
        for each in (self._sets or {}).values():
            each.close()

    def _set(self, trainer: L.Trainer, split: str, name: str) -> CompletionSet:
        assert self._sets is not None
        if (split, name) not in self._sets:
            least, most = _PART_BYTES
            part_bytes = min(max(self.max_bytes // 8, least), most)
            self._sets[split, name] = CompletionSet(_folder(trainer), split, name, part_bytes)
        return self._sets[split, name]

    def _append(self, trainer: L.Trainer, split: str, name: str, rows: list[pa.RecordBatch]) -> None:
        if not trainer.is_global_zero or self._sets is None:
            return
        _folder(trainer).mkdir(parents=True, exist_ok=True)
        # In the order of the table, whichever rank and batch a prompt was in.
        whole = pa.Table.from_batches(rows).sort_by([("row", "ascending"), ("member", "ascending")]).combine_chunks()
        for batch in whole.to_batches():
            self._set(trainer, split, name).append(batch)
        while sum(each.n_bytes for each in self._sets.values()) > self.max_bytes:
            largest = max(self._sets.values(), key=lambda each: each.n_bytes)
            largest.halve()
            what = "training" if largest.split == TRAIN else f"held-out {largest.name}".rstrip()
            report_warning(
                trainer,
                f"completions: their files passed completions.max_megabytes {self.max_bytes / _MEGABYTE:g} at step "
                f"{rows[0]['step'][0]}; of the {what} completions, those of one prompt in {2**largest.halvings} are "
                "kept, whatever the step. Raise it to keep more",
            )


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / COMPLETIONS_FOLDER


def _of_a_run(trainer: L.Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def completion_rows(scored: ScoredRollout, step: int, more: Mapping[str, Tensor]) -> pa.RecordBatch:
    """Return B completions as rows with the columns of `run_record.completions`.

    Args:
        scored: the completions and their rewards.
        step: policy steps done.
        more: further columns of it, name -> [B].
    """
    rollout, size = scored.rollout, scored.rollout.group_size
    mask = rollout.completion_mask
    values = {"reward": scored.rewards.flatten()}
    values |= {keys.rewards(name): each for name, each in scored.components.items()} | dict(more)
    values |= {"length": rollout.lengths, "truncated": rollout.truncated, "row": rollout.prompts.indices}
    values["row"] = values["row"].repeat_interleave(size)
    values["logprob"] = masked_sum(rollout.old_logprobs.double(), mask, dim=1)
    if rollout.ref_logprobs is not None:
        values["ref_logprob"] = masked_sum(rollout.ref_logprobs.double(), mask, dim=1)
        # In float64, so that nothing is lost where the policies hardly differ.
        divergence = k3_divergence(rollout.old_logprobs.double(), rollout.ref_logprobs.double())
        values["kl"] = masked_mean(divergence, mask, dim=1)
    # They are read from the device at once.
    read = torch.stack([each.to(mask.device, torch.float64) for each in values.values()]).cpu().numpy()
    known: dict[str, Any] = dict(zip(values, read, strict=True))
    n_rows = len(rollout.texts)
    known |= {
        "step": [step] * n_rows,
        "member": list(range(size)) * len(rollout.prompts),
        "prompt_id": [each for prompt in rollout.prompts.contents for each in [prompt_id(prompt)] * size],
        "prompt": [each for text in rollout.prompts.texts for each in [encodable(text)] * size],
        "completion": [encodable(text) for text in rollout.texts],
        **{name: known.get(name, [None] * n_rows) for name in ("ref_logprob", "kl")},
        "ids": _lists(rollout.completion_ids, mask),
    }
    names = []
    for name in COLUMNS:
        names += [name] * (name in known)
        names += [keys.rewards(each) for each in scored.components] * (name == "reward")
    arrays = [pa.array(known[name]).cast(COLUMNS.get(name, pa.float64())) for name in names]
    return pa.RecordBatch.from_arrays(arrays, names)


def _lists(ids: Tensor, mask: Tensor) -> pa.ListArray:
    """Return the ids [B, T] of each row where the mask is true, as an array of B lists."""
    ends = torch.nn.functional.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0))
    return pa.ListArray.from_arrays(ends.int().cpu().numpy(), ids[mask].int().cpu().numpy())


def prompt_id(prompt: Prompt) -> str:
    """Return 16 hexadecimal digits that are the same for equal prompts, in every run and table.

    >>> prompt_id("write a happy story")
    '2b3bc363877507d9'
    """
    if not isinstance(prompt, str):
        parts = (prompt.messages, prompt.tools, prompt.template_kwargs)
        prompt = json.dumps(parts, sort_keys=True, default=dict)
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def encodable(text: str) -> str:
    r"""Return a text with the halves of surrogate pairs as escapes, and all else as it is.

    >>> encodable("a\ud800b")
    'a\\ud800b'
    """
    return text.encode("utf-8", "backslashreplace").decode()
