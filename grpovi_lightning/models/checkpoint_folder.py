"""A checkpoint as a folder: each process writes its own rows of the tensors that are spread, and nothing is gathered.

`part_2_of_4.safetensors` holds the rows of the second of four processes; the rows of all, in the order of the
processes, are the whole tensor. `rest.pt` holds everything else, with a tensor of the device `meta` where a spread one
belongs. Nothing is unpickled but plain values (`weights_only`).

Why not `torch.distributed.checkpoint` with its `HuggingFaceStorageWriter`, which writes safetensors as well: torch 2.6
has none. It builds each file in memory before it writes it, has no place for what is no tensor, and tells the shape of
a tensor by the files that it finds, so that the last rows could be missing unnoticed.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_map, tree_map_with_path

from grpovi_lightning.distributed import from_first_rank, gather_objects, is_first_rank, world_size
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.run_record.checkpoints import REST_FILE, flaw, found_parts, part_files

SPREAD = ("state_dict", "optimizer_states")
"""The keys of a checkpoint under which spread tensors are."""
UNFINISHED, REMOVED = "unfinished.new", "removed.old"
"""What a checkpoint is called while it is written and while it is removed. What a killed run leaves of them, the next
checkpoint clears away."""
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What safetensors calls the types of tensors."""


# Writing


def write_folder(path: Path, rest: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; all processes do so together. It appears when all of it is on the disk.

    Args:
        path: the folder, the same for all processes; one that is there is replaced.
        rest: the checkpoint without the tensors that are spread; that of the first process is written.
        parts: this process's rows of those, by their place.

    Raises:
        OSError: this process could not write.
        TrainingError: another could not, or the processes do not see each other's files.
    """
    draft = path.with_name(UNFINISHED)
    from_first_rank(lambda: [remove(path.with_name(name)) for name in (UNFINISHED, REMOVED)])
    try:
        _on_all_ranks(lambda: _write_part(draft, parts))
        from_first_rank(lambda: _finish(draft, path, rest))
    except BaseException:
        if is_first_rank():
            shutil.rmtree(draft, ignore_errors=True)  # it may have filled the disk
        raise


def remove_checkpoint(path: Path) -> None:
    """Remove a file, or a folder, which is no checkpoint any more before its first file is gone."""
    if is_real_folder(path):
        away = path.with_name(REMOVED)
        remove(away)
        path = path.rename(away)
    remove(path)


def _on_all_ranks(compute: Callable[[], None]) -> None:
    """Call a function on all processes and wait; if it fails on one, all of them fail."""
    mine: OSError | None = None
    try:
        compute()
    except OSError as error:  # raised again below: the others would wait for ever
        mine = error
    reasons = gather_objects(None if mine is None else str(mine))
    if mine is not None:
        raise mine
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise TrainingError(f"rank {rank}: {reason}")


def _write_part(draft: Path, parts: Mapping[str, Tensor]) -> None:
    draft.mkdir(parents=True, exist_ok=True)
    rank = dist.get_rank() if world_size() > 1 else 0
    write_safetensors(part_files(draft, world_size())[rank], parts)


def _finish(draft: Path, path: Path, rest: Mapping[str, Any]) -> None:
    with (draft / REST_FILE).open("wb") as out:
        torch.save(dict(rest), out)
        out.flush()
        os.fsync(out.fileno())
    if found := flaw(draft):
        raise TrainingError(
            f"checkpoint {path}: the first process sees {found}: processes on several machines need a file system that "
            "they share; or leave out save_distributed_checkpoint"
        )
    _folder_to_disk(draft)
    remove_checkpoint(path)  # no system call replaces a folder
    draft.rename(path)
    _folder_to_disk(path.parent)


def write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a file, one after the other, and wait until they are on the disk.

    `safetensors.torch.save_file` would first have all tensors of a GPU in main memory.
    """
    # The largest types first: the numbers of each tensor begin at a multiple of their size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, tensor in ordered:
            out.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        out.flush()
        os.fsync(out.fileno())


# Reading


@dataclass(frozen=True)
class PartedTensor:
    """A tensor in the folder of a checkpoint, of which nothing is read yet.

    Attributes:
        shape: of the whole tensor.
        dtype: its type.
        name: in the files.
        files: those that have rows of it, opened, in the order of the rows.
    """

    shape: torch.Size
    dtype: torch.dtype
    name: str
    files: Sequence[Any]

    def rows(self, first: int, end: int) -> Tensor:
        """Read the rows from `first` to before `end`."""
        found, start = [torch.empty((0, *self.shape[1:]), dtype=self.dtype)], 0
        for file in self.files:
            part = file.get_slice(self.name)
            count = part.get_shape()[0]
            low, high = max(first - start, 0), min(end - start, count)
            if low < high:
                found.append(part[low:high])
            start += count
        return torch.cat(found)

    def whole(self) -> Tensor:
        """Read all of it."""
        return self.rows(0, self.shape[0])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, a file or a folder, without its numbers: those are read where they are used.

    Returns:
        What was saved, with a `PartedTensor` for each tensor that was spread.

    Raises:
        UserError: the files of a folder do not belong together.
    """
    if not path.is_dir():
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    content = torch.load(path / REST_FILE, map_location="cpu", weights_only=True)
    files = [(file, set(file.keys())) for file in (safe_open(part, framework="pt") for part in found_parts(path))]

    def found(place: Any, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        name = keystr(place)
        parted = PartedTensor(value.shape, value.dtype, name, [file for file, names in files if name in names])
        slices = [file.get_slice(name) for file in parted.files]
        shapes = [each.get_shape() for each in slices]
        shape = (sum(each[0] for each in shapes if each), *value.shape[1:])
        fits = all(tuple(each[1:]) == shape[1:] for each in shapes)
        if shape != value.shape or not fits or {each.get_dtype() for each in slices} - {DTYPES.get(value.dtype)}:
            raise UserError(
                f"checkpoint {path}: got rows of shapes {shapes} for {name}, expected {tuple(value.shape)} in all: its "
                "files do not belong together; give another one"
            )
        return parted

    if isinstance(content, dict):  # what else it may be, `continuation` refuses
        content |= tree_map_with_path(found, {key: content[key] for key in SPREAD if key in content})
    return content


def in_memory(state: Any) -> Any:
    """Return a state that was read, with all of its numbers in main memory."""
    return tree_map(lambda value: value.whole() if isinstance(value, PartedTensor) else value, state)


def without_numbers(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a state that was read, by which one can tell whether it fits a model; nothing of a folder is read for it.

    The model's own tensors stand for those that have their shape.
    """
    own = model.state_dict()

    def stand_in(name: str, value: Any) -> Any:
        if not isinstance(value, PartedTensor):
            return value
        mine = own.get(name)
        if isinstance(mine, Tensor) and mine.shape == value.shape:
            return mine
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    return {name: stand_in(name, value) for name, value in state.items()}


def is_real_folder(path: Path) -> bool:
    """Tell whether a path is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, where there is one."""
    if is_real_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _folder_to_disk(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can tell."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
