"""What tests of compiled code need of the machine and of torch."""

import shutil

import pytest
import torch

OLD = not hasattr(torch._dynamo.config, "recompile_limit")
"""Whether torch's compiler lacks settings that compiled passes need."""

needs_torch = pytest.mark.skipif(OLD, reason="torch is too old to compile passes")
needs_compiler = pytest.mark.skipif(OLD or shutil.which("g++") is None, reason="no C++ compiler here, or an old torch")
