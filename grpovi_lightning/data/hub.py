"""Data sets by their name on the Hugging Face hub: downloaded once, then read from the cache, also offline.

No code of a data set is run.
"""

import inspect
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from grpovi_lightning.data.local import choose_split
from grpovi_lightning.data.sources import Source
from grpovi_lightning.data.tables import Table
from grpovi_lightning.errors import UserError
from grpovi_lightning.models.files import loading


def read_hub(source: Source, limit: int | None) -> Table:
    """Read the split of a hub data set, or its first `limit` rows; then no other rows are downloaded or kept.

    Raises:
        UserError: it is neither on the hub nor in the cache, or is not what the source says.
    """
    name = f"data set {source.path}"
    with loading(name):
        builder = _builder(source, name)
        if limit is None:
            builder.download_and_prepare()
        found: Any = builder.as_dataset() if limit is None else builder.as_streaming_dataset()
        splits = {str(key): rows for key, rows in found.items()}
        split = choose_split(list(splits), source.split, name)
        if limit is None:
            rows = splits[split].with_format(None)
            return Table(f"{name} ({split})", "the hub", rows.column_names, rows, range(len(rows)))
        some = [dict(row) for row in islice(splits[split], limit)]
    return Table(f"{name} ({split})", "the hub", list(some[0]) if some else [], some, range(len(some)))


def _builder(source: Source, name: str) -> DatasetBuilder:
    folder = _snapshot(source)
    # Version 4 of `datasets` has no such setting, and runs no code.
    never: dict[str, Any] = {"trust_remote_code": False} if "trust_remote_code" in _PARAMETERS else {}
    try:
        found = load_dataset_builder(source.path, source.name, revision=source.revision, **never)
        if not _is_another_revision(found, source.revision, folder):
            return found
        problem = "the cache has another revision"
    except DatasetNotFoundError as error:
        raise UserError(
            f"{name}: {' '.join(str(error).split())} No such file is here, either; check the name, and that you may "
            "read it (`hf auth login`)"
        ) from error
    except ValueError as error:  # such as a configuration that is not there; over several lines it says which are
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    except ConnectionError as error:
        problem = " ".join(str(error).split())
    if folder is not None:
        return load_dataset_builder(str(folder), source.name, **never)
    revision = "" if source.revision is None else f" --revision {source.revision}"
    raise UserError(
        f"{name}: no such file is here, and of the hub: {problem}; to have it in the cache, run `hf download "
        f"--repo-type dataset {source.path}{revision}` where there is a network"
    )


_PARAMETERS = inspect.signature(load_dataset_builder).parameters


def _snapshot(source: Source) -> Path | None:
    """Return the folder to which `hf download` put the data set, named by its commit; None where it did not."""
    try:
        folder = snapshot_download(source.path, repo_type="dataset", revision=source.revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def _is_another_revision(builder: DatasetBuilder, revision: str | None, folder: Path | None) -> bool:
    """Tell whether what was found is a copy of another revision: the cache's newest is taken where there is no hub."""
    from_cache = type(builder).__module__.startswith("datasets.packaged_modules.cache")
    return from_cache and revision is not None and builder.hash != (folder.name if folder else revision)
