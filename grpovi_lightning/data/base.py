"""What the data modules share: tables that are read, prepared and checked once, and their batches."""

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from grpovi_lightning.data.formats import RowFormat
from grpovi_lightning.data.preparation import Preparation, shared_prompts, short_enough, split, without_repeats
from grpovi_lightning.data.reading import CSVType, read_table
from grpovi_lightning.data.sampler import StepSampler
from grpovi_lightning.data.sources import DataSource, Source, TableSource
from grpovi_lightning.data.tables import Table
from grpovi_lightning.distributed import batches_of_rank
from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import resolve_seed, spare_indices, step_indices
from grpovi_lightning.strategies import read_folders
from grpovi_lightning.trainer_arguments import check_trainer
from grpovi_lightning.trainer_state import batches_begun, batches_of_run

HeldOut = TableSource | dict[str, TableSource] | None
"""One held-out set, or several by name."""

_log = logging.getLogger(__name__)


class TextDataModule(L.LightningDataModule):
    """A training table, and optional tables for validation and test, read in `setup`.

    Attributes:
        sources: "train", "validation" and "test" -> what to read for it.
        tables: the same names -> rows; of several held-out sets "validation/NAME" each.
    """

    def __init__(
        self,
        train: TableSource,
        validation: HeldOut,
        test: TableSource | None,
        batch_size: int,
        validation_batch_size: int,
        seed: int | None,
        preparation: Preparation = Preparation(),  # noqa: B008  a frozen value
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("validation_batch_size", validation_batch_size)):
            if value < 1:
                raise UserError(f"{name}: got {value}, expected at least 1")
        if preparation.held_out_fraction and validation is not None:
            raise UserError(
                f"preparation.held_out_fraction: got {preparation.held_out_fraction} with a validation table, expected "
                "one of the two; leave one out"
            )
        self.held_out_names = _checked_names(validation)
        self.sources: dict[str, HeldOut] = {"train": train, "validation": validation, "test": test}
        for source in self._named_sources().values():
            Source(source)  # which refuses settings that cannot work
        self.batch_size, self.validation_batch_size, self.seed = batch_size, validation_batch_size, seed
        self.preparation = preparation
        self.spare_per_step = 0
        self.csv_types: dict[str, CSVType] = {}
        self.tables: dict[str, Table] = {}

    rows: RowFormat
    """What the rows of its tables say."""

    def required_columns(self) -> list[str]:
        """Return columns that every table must have besides those of its rows' format."""
        return []

    def identity(self, row: dict[str, Any]) -> Any:
        """Return what two rows have in common that count as one."""
        return {column: value for column, value in row.items() if column != "_row"}

    def lacks(self, table: str) -> bool:
        """Tell whether there is no table for "validation" or "test"."""
        held_out = table == "validation" and self.preparation.held_out_fraction > 0
        return self.sources[table] is None and not held_out

    def check(self, world_size: int) -> None:
        """Read the tables and check that they hold the rows of a step.

        Raises:
            UserError: a table is wrong or has too few rows, or a step's rows do not divide over the processes.
        """
        self._read_tables()
        for name, count in (("rows", self.batch_size), ("spare rows", self.spare_per_step)):
            if count % world_size:
                raise UserError(
                    f"a step's {count} {name} do not divide over {world_size} processes; "
                    "choose a multiple of the number of processes"
                )
        for name, table in self.tables.items():
            if len(table) < world_size:
                raise UserError(
                    f"{name} table: got {len(table)} rows, expected at least one for each of {world_size} processes"
                )
        n_rows = len(self.tables["train"])
        spare_indices(0, 0, n_rows, step_indices(0, 0, n_rows, self.batch_size), self.spare_per_step)

    @abstractmethod
    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Return the batch made of these rows; the number of each is its column `_row`."""

    def collate_training(self, rows: list[dict[str, Any]]) -> Any:
        """Return the batch of a training step; its spare rows come last."""
        return self.collate(rows)

    def setup(self, stage: str) -> None:
        """Check the trainer, before models are loaded; read the tables once and check the text of every row."""
        if self.trainer is not None:
            check_trainer(self.trainer)
            read_folders(self.trainer)
        self._read_tables()

    def keep_short(self, name: str, lengths: Sequence[int]) -> None:
        """Leave rows of more than `max_tokens` tokens out of a table, given the tokens of each row.

        Raises:
            UserError: no row is left.
        """
        limit, table = self.preparation.max_tokens, self.tables[name]
        assert limit is not None
        rows = short_enough(lengths, limit)
        if not rows:
            raise UserError(
                f"{name} table: none of its {len(table)} rows has at most preparation.max_tokens {limit} tokens, the "
                f"shortest has {min(lengths)}; raise max_tokens"
            )
        _log.info(
            f"{name} table: {len(table) - len(rows)} of {len(table)} rows left out, of more than "
            f"preparation.max_tokens {limit} tokens; the longest has {max(lengths)}"
        )
        self.tables[name] = table.select(rows)

    def _read_tables(self) -> None:
        if self.tables:
            return
        tables = {name: self._read(source) for name, source in self._named_sources().items()}
        if self.csv_types and not any(table.kind == "CSV" for table in tables.values()):
            raise UserError(f"csv_types: got {self.csv_types} without a CSV file, expected one to read; leave it out")
        if self.preparation.deduplicate:
            tables = {name: self._without_repeats(name, table) for name, table in tables.items()}
        if self.preparation.held_out_fraction:
            tables["train"], tables["validation"] = split(tables["train"], self.rows.asked, self.preparation)
            counts = f"{len(tables['train'])} rows to train on and {len(tables['validation'])} held out"
            _log.info(f"train table: {counts}, by their prompts")
        else:
            self._tell_shared(tables)
        self.tables = tables

    def _named_sources(self) -> dict[str, TableSource]:
        found: dict[str, Any] = {name: source for name, source in self.sources.items() if source is not None}
        if self.held_out_names:
            sets = found.pop("validation")
            found |= {f"validation/{name}": sets[name] for name in self.held_out_names}
        return found

    def _read(self, source: TableSource) -> Table:
        table = self.rows.arranged(read_table(source, self.required_columns(), self.csv_types))
        self.rows.check(table)
        return table

    def _without_repeats(self, name: str, table: Table) -> Table:
        found = without_repeats(table, self.identity)
        _log.info(f"{name} table: {len(table) - len(found)} of {len(table)} rows left out, which occur before")
        return found

    def _tell_shared(self, tables: dict[str, Table]) -> None:
        """Say which of the prompts that a policy is judged by it is trained on, too."""
        for name, table in tables.items():
            if name == "train":
                continue
            shared, asked = shared_prompts(tables["train"], table, self.rows.asked)
            if shared:
                _log.info(f"{name} table: {shared} of its {asked} prompts are in the train table, too")

    def train_dataloader(self) -> DataLoader:
        """Return a batch for each training step that is still to do."""
        trainer = self.trainer
        assert trainer is not None
        self.check(trainer.world_size)
        if trainer.max_steps < 1:
            raise UserError(f"no length: got trainer.max_steps {trainer.max_steps}, expected at least 1")
        # One Lightning epoch is the whole run, so that a step's rows depend on nothing but the step.
        self._sampler = StepSampler(
            len(self.tables["train"]),
            self.batch_size,
            resolve_seed(self.seed),
            batches_begun(trainer),
            batches_of_run(trainer, trainer.lightning_module),
            trainer.global_rank,
            trainer.world_size,
            self.spare_per_step,
        )
        return DataLoader(self.tables["train"], batch_sampler=self._sampler, collate_fn=self.collate_training)

    def upcoming(self) -> Any:
        """Return, within a training step, the batch of the next one on this rank, on the CPU."""
        assert self.trainer is not None
        rows = self._sampler.rows_of(batches_begun(self.trainer))
        return self.collate_training([self.tables["train"][row] for row in rows])

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the validation table in order, dealt out to the ranks row by row; nothing where there is none.

        Of several held-out sets, one loader each in the order of `held_out_names`.
        """
        if self.held_out_names:
            return [self._in_order(f"validation/{name}") for name in self.held_out_names]
        return self._in_order("validation") if "validation" in self.tables else []

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the test table in order, dealt out to the ranks row by row.

        Raises:
            UserError: no test table is named.
        """
        if "test" not in self.tables:
            raise UserError("no test table: got test null, expected a file; add `test: FILE` under `data.init_args`")
        return self._in_order("test")

    def held_out_digest(self) -> str | None:
        """Return the SHA-256 of all held-out rows in their order, by set; None where there are none.

        Runs of equal digests are evaluated on the same rows, unless the trainer limits the evaluation.
        """
        sets = [name for name in self.tables if name.split("/")[0] == "validation"]
        digest = hashlib.sha256()
        for name in sets:
            digest.update(f"{name}\n".encode())
            for row in self.tables[name]:
                values = {column: value for column, value in row.items() if column != "_row"}
                digest.update(f"{json.dumps(values, sort_keys=True, default=repr)}\n".encode())
        return digest.hexdigest() if sets else None

    def _in_order(self, name: str) -> DataLoader:
        trainer, table = self.trainer, self.tables[name]
        assert trainer is not None
        batches = batches_of_rank(len(table), self.validation_batch_size, trainer.global_rank, trainer.world_size)
        return DataLoader(table, batch_sampler=batches, collate_fn=self.collate)


def _checked_names(validation: HeldOut) -> list[str]:
    """Return the names of the held-out sets, in their order; none where there is a single one or none.

    Raises:
        UserError: a name cannot be part of a metric's, or is that of a setting.
    """
    if not isinstance(validation, dict) or "path" in validation:
        return []
    if not validation:
        raise UserError("validation: got no held-out set, expected names and what to read for each; or null")
    for name in validation:
        if name in DataSource.__annotations__:
            raise UserError(f"validation: got a set named {name!r}, which is a setting; a single set needs a `path`")
        if not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"validation: got a set named {name!r}, expected letters, digits, - and _")
    return list(validation)
