import ast
import subprocess
import sys
from pathlib import Path

import analysis

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "lightning", "transformers", "tensorflow"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
from analysis import write_report
print(write_report(sys.argv[1]))
loaded = sorted(name for name in sys.modules if name.startswith("grpovi_lightning"))
print(" ".join(loaded))
"""


ALLOWED = {"grpovi_lightning.diagnoses", "grpovi_lightning.metric_keys", "grpovi_lightning.run_record"}


def test_a_report_is_written_without_torch_and_imports_only_metric_names_and_records(tmp_path: Path):
    from synthetic_runs import line, write_study

    write_study(tmp_path / "study", {"a": {1: line(0, 1)}, "b": {1: line(0, 2)}}, {"b": "a"})
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tmp_path / "study")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    path, loaded = done.stdout.splitlines()
    assert Path(path).is_file()
    modules = set(loaded.split()) - {"grpovi_lightning"}
    assert {".".join(name.split(".")[:2]) for name in modules} == ALLOWED


def test_no_file_of_the_package_names_another_module_of_the_training_package():
    for file in Path(analysis.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grpovi_lightning"):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                assert {".".join(name.split(".")[:2]) for name in names} <= ALLOWED, file
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("grpovi_lightning") for alias in node.names), file
