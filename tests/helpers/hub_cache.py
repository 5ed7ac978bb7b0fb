"""Data sets as `datasets` and `hf download` leave them in their caches, so that hub names can be read without a hub."""

import json
from pathlib import Path

from datasets import Dataset, DatasetInfo
from datasets.arrow_writer import ArrowWriter
from datasets.splits import SplitDict, SplitInfo

COMMIT = "a" * 40


def cached_by_datasets(cache: Path, owner: str, name: str, splits: dict[str, list[dict]], config="default") -> None:
    """Write what `load_dataset("owner/name", config)` leaves behind."""
    folder = cache / f"{owner}___{name}" / config / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    infos, features = SplitDict(), None
    for split, rows in splits.items():
        features = Dataset.from_list(rows).features
        with ArrowWriter(path=str(folder / f"{name}-{split}.arrow"), features=features) as writer:
            for row in rows:
                writer.write(row)
            writer.finalize()
        infos[split] = SplitInfo(name=split, num_examples=len(rows), dataset_name=name)
    DatasetInfo(config_name=config, dataset_name=name, features=features, splits=infos).write_to_directory(str(folder))


def downloaded(cache: Path, owner: str, name: str, splits: dict[str, list[dict]], commit=COMMIT, branch="main") -> None:
    """Write what `hf download --repo-type dataset owner/name` leaves behind."""
    repository = cache / f"datasets--{owner}--{name}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
