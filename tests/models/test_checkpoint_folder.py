"""Checkpoints into which each process writes its part: what is written is what is read, by any number of processes."""

import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers.two_processes import run_in_two_processes
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._pytree import tree_map

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.models import checkpoint_folder
from grpovi_lightning.models.checkpoint_folder import in_memory, read_checkpoint, remove_checkpoint, write_folder
from grpovi_lightning.models.sharded_state import own_parts, spread_optimizer_state, spread_state, whole_state
from grpovi_lightning.run_record.checkpoints import flaw, is_whole_checkpoint, last_checkpoint, part_files


class Odd(nn.Module):
    """Five rows for two processes, one row, bfloat16, and what is no weight."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.rows, self.one = nn.Linear(3, 5), nn.Linear(4, 1)
        self.brief = nn.Linear(2, 3, dtype=torch.bfloat16)
        self.register_buffer("count", torch.tensor(7 + seed))

    def forward(self, x):
        return self.rows(x).sum() + self.one(x.new_ones(4)).sum() + self.brief(torch.ones(2).bfloat16()).float().sum()


def sharded(seed, steps, mesh):
    """A model and its optimiser after some steps, the same on all processes."""
    model = Odd(seed)
    if mesh is not None:
        for part in (model.rows, model.one, model.brief):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3) + step).backward()
        optimizer.step()
    return model, optimizer


def state_of(model, optimizer):
    return {"state_dict": dict(model.state_dict()), "optimizer_states": [optimizer.state_dict()], "global_step": 3}


def flat(state):
    found = []
    tree_map(lambda value: found.append(value.clone() if torch.is_tensor(value) else value), state)
    return found


def same(first, second):
    pairs = list(zip(flat(first), flat(second), strict=True))
    return all(torch.equal(a, b) and a.dtype == b.dtype if torch.is_tensor(a) else a == b for a, b in pairs)


def write_and_read(rank, folder):
    path = Path(folder, "step=3.ckpt")
    mesh = init_device_mesh("cpu", (2,))
    model, optimizer = sharded(0, 3, mesh)
    rest, parts = own_parts(state_of(model, optimizer))
    assert len(parts) == 6 * 3
    write_folder(path, rest, parts)
    assert [file.is_file() for file in part_files(path, 2)] == [True, True] and is_whole_checkpoint(path)

    found = read_checkpoint(path)
    again, fresh = sharded(1, 1, mesh)
    again.load_state_dict(spread_state(found["state_dict"], again))
    fresh.load_state_dict(spread_optimizer_state(found["optimizer_states"][0], fresh))
    expected = whole_state(state_of(model, optimizer))
    whole = whole_state(state_of(again, fresh))
    if rank == 0:
        assert same(whole, expected) and same(in_memory(found), expected)

    # One that cannot write stops all, and what was there stays.
    write = checkpoint_folder.write_safetensors
    checkpoint_folder.write_safetensors = full_disk if rank == 1 else write
    try:
        with pytest.raises(OSError if rank == 1 else TrainingError, match="No space left on device"):
            write_folder(path, rest, parts)
    finally:
        checkpoint_folder.write_safetensors = write
    torch.distributed.barrier()
    assert [file.name for file in path.parent.iterdir()] == [path.name] and is_whole_checkpoint(path)


def full_disk(file, tensors):
    raise OSError(28, "No space left on device", str(file))


@pytest.mark.slow
def test_two_processes_read_what_two_wrote_and_so_does_one(tmp_path):
    run_in_two_processes(write_and_read, tmp_path)
    found = in_memory(read_checkpoint(tmp_path / "step=3.ckpt"))
    model, optimizer = sharded(1, 0, None)
    model.load_state_dict(found["state_dict"])
    optimizer.load_state_dict(found["optimizer_states"][0])
    expected, steps = sharded(0, 3, None)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert optimizer.state_dict()["state"][0]["step"] == steps.state_dict()["state"][0]["step"] == 3


ROWS, FLAGS = torch.arange(10.0).reshape(5, 2), torch.tensor([True, False, True])


def write(path, step=1):
    """A folder of two processes, written without any."""
    weights = (
        {"['state_dict']['rows']": ROWS[:3], "['state_dict']['flags']": FLAGS},
        {"['state_dict']['rows']": ROWS[3:]},
    )
    empty = {"rows": torch.empty(5, 2, device="meta"), "flags": torch.empty(3, dtype=torch.bool, device="meta")}
    path.mkdir(parents=True)
    torch.save({"state_dict": empty | {"plain": torch.tensor(2)}, "global_step": step}, path / "rest.pt")
    for file, part in zip(part_files(path, 2), weights, strict=True):
        checkpoint_folder.write_safetensors(file, part)
    return path


def test_the_files_are_safetensors_and_any_rows_can_be_read(tmp_path):
    path = write(tmp_path / "a.ckpt")
    assert torch.equal(load_file(part_files(path, 2)[1])["['state_dict']['rows']"], ROWS[3:])
    found = read_checkpoint(path)["state_dict"]
    for first, end in product(range(6), repeat=2):
        assert torch.equal(found["rows"].rows(first, end), ROWS[first : max(first, end)])
    assert torch.equal(found["flags"].whole(), FLAGS) and found["plain"] == 2


FILES = ["rest.pt", "part_1_of_2.safetensors", "part_2_of_2.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_without_one_of_its_files_or_with_half_of_it_is_no_checkpoint(tmp_path, name):
    before, path = write(tmp_path / "step=1.ckpt"), write(tmp_path / "step=2.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step=2.ckpt")
    assert flaw(path) is None and last_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    content = (path / name).read_bytes()
    for length in (0, 4, 8, 20, len(content) // 2, len(content) - 1):
        (path / name).write_bytes(content[:length])
        assert flaw(path) == f"a folder whose {name} is damaged or was cut short"
        assert last_checkpoint(tmp_path) == before
    (path / name).unlink()
    assert flaw(path) == f"a folder without {name}" and last_checkpoint(tmp_path) == before


HEADERS = [b"", b"null", b"[]", b'{"a": 1}', b'{"a": {"data_offsets": ["0", "1"]}}', b"\xff", b"[" * 200_000]


@pytest.mark.parametrize("content", HEADERS, ids=range(len(HEADERS)))
def test_a_part_with_another_header_is_no_part(tmp_path, content):
    path = write(tmp_path / "a.ckpt")
    part_files(path, 2)[0].write_bytes(len(content).to_bytes(8, "little") + content)
    assert flaw(path) == "a folder whose part_1_of_2.safetensors is damaged or was cut short"


def test_a_folder_with_the_parts_of_two_numbers_of_processes_is_no_checkpoint(tmp_path):
    path = write(tmp_path / "a.ckpt")
    shutil.copy(part_files(path, 2)[0], part_files(path, 3)[0])
    assert flaw(path) == "a folder that does not hold the parts of one checkpoint"


def test_parts_of_different_checkpoints_are_refused(tmp_path):
    path = write(tmp_path / "a.ckpt")
    checkpoint_folder.write_safetensors(part_files(path, 2)[1], {"['state_dict']['rows']": ROWS})
    with pytest.raises(UserError, match=r"expected \(5, 2\) in all: its files do not belong together"):
        read_checkpoint(path)


def test_a_folder_that_is_removed_is_no_checkpoint_from_the_first_moment(tmp_path, monkeypatch):
    path = write(tmp_path / "a.ckpt")

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(path)
    assert not list(tmp_path.glob("*.ckpt"))
    monkeypatch.undo()
    write_folder(path, {"state_dict": {}}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]  # the next clears what the killed one left


def test_processes_that_do_not_see_each_other_s_files_are_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_folder, "world_size", lambda: 2)
    monkeypatch.setattr(checkpoint_folder.dist, "get_rank", lambda: 0)
    with pytest.raises(TrainingError, match=r"sees a folder without part_2_of_2.*need a file system that they share"):
        write_folder(tmp_path / "a.ckpt", {"state_dict": {}}, {"['state_dict']['rows']": ROWS})
    assert not list(tmp_path.iterdir())
