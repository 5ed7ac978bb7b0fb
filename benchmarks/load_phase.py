"""One phase of `load_runs.py` in a process of its own: python benchmarks/load_phase.py {load,report} STUDY."""

import argparse
import json
import re
import resource
import sys
import time
from pathlib import Path

from analysis import load_runs, write_report


def load(folder: Path) -> int:
    """Return how many values there are."""
    return len(load_runs(folder))


def report(folder: Path) -> int:
    """Return the size of the page in bytes."""
    return write_report(folder).stat().st_size


PHASES = {"load": load, "report": report}


def peak_memory_mb() -> int:
    """Return the most memory that this process had, MiB.

    Linux hands `ru_maxrss` down from the parent, whose memory is not this one's; `VmHWM` begins anew.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; on macOS bytes
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Print the seconds of the call, without those of the imports, the peak memory and the result as JSON."""
    parser = argparse.ArgumentParser(prog="load_phase.py", description=__doc__)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("study", type=Path)
    arguments = parser.parse_args()
    start, processor = time.perf_counter(), time.process_time()
    result = PHASES[arguments.phase](arguments.study)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor
    times = {"seconds": round(seconds, 3), "processor_seconds": round(processor_seconds, 3)}
    print(json.dumps(times | {"peak_rss_mb": peak_memory_mb(), "result": result}))


if __name__ == "__main__":
    main()
