"""`compare` as a program of its own, with the stand-in as launcher, so that it can be sent signals."""

import sys
from pathlib import Path
from typing import Any

from grpovi_lightning.errors import UserError
from grpovi_lightning.study import Services, compare
from grpovi_lightning.study.launchers import make_launcher


def write_report(folder: Path) -> None:
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "index.html").write_text("report")


def choose_nothing(folder: Path) -> Any:
    raise AssertionError("these studies have no tuning seeds")


def main() -> int:
    study_file, output, jobs, patience, launcher, *settings = sys.argv[1:]
    program = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]
    services = Services(
        preflight=lambda arguments: None,
        settings=lambda arguments: [],
        choose=choose_nothing,
        undecided=lambda folder: [],
        report=write_report,
    )
    return compare(
        study_file,
        services,
        output=output,
        jobs=int(jobs),
        patience=float(patience),
        program=program,
        launcher=make_launcher(launcher, *map(Path, settings)),
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"grpovi: error: {error}", file=sys.stderr)
        sys.exit(2)
