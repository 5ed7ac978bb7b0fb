"""Memory that was freed is taken again: counted by the pages that the system has to hand out."""

import os
import platform
import subprocess
import sys

import pytest

BLOCKS = """
import resource, sys
if sys.argv[1] == "kept":
    from grpovi_lightning.allocator import keep_large_blocks
    keep_large_blocks()
import torch
torch.set_num_threads(1)
torch.ones(16_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16_000_000)  # 64 MB, 15,625 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how, **environment):
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_"))}
    command = [sys.executable, "-c", BLOCKS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=known | environment).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_block_that_was_freed_is_taken_again():
    assert pages("kept") < 20_000 < 200_000 < pages("as it comes")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_what_the_environment_says_of_the_allocator_is_left_alone():
    assert pages("kept", MALLOC_MMAP_THRESHOLD_="1048576", THP_MEM_ALLOC_ENABLE="0") > 200_000
