"""Prove on an NVIDIA GPU that openmae works there, and how fast: python tools/gpu_check.py OUT [--minutes 6].

Parts in order of importance, each a group of processes with a limit of its own (`--list` names them): every command,
what a run must survive, the rows of docs/benchmarks/ that need a GPU, and end to end at 224 px. Nothing is downloaded:
images are embedded ones or made. Results are written to OUT as they come: `check.json`, `check.md` (the table), and
`check.log` (what the parts said). What does not fit into the minutes is "no time"; `--only PART …` goes on with some
and keeps the other results. Exit 0 only when some ran and all that ran passed.

    python tools/gpu_check.py OUT --work /tmp/check                # 6 minutes; what is made and compiled is kept
    python tools/gpu_check.py OUT --work /tmp/check --only rows    # by name, pattern or group
    python tools/gpu_check.py OUT --device cpu                     # walks the parts at tiny sizes: tries this program
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from gpu_parts.catalogue import MACHINE, PARTS, select_parts
from gpu_parts.part import Part
from gpu_parts.report import Report
from gpu_parts.schedule import Schedule


def main(arguments: list[str] | None = None, parts: tuple[Part, ...] = PARTS, machine: Part = MACHINE) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder for check.json, check.md and check.log")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all parts together; 6 unless given")
    parser.add_argument("--only", nargs="+", metavar="PART", help="names, patterns or groups; other results are kept")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: tiny sizes, says nothing")
    parser.add_argument("--work", type=Path, help="folder for data, runs and compiled code, kept for a second call")
    parser.add_argument("--commit", help="of the sources, where they are no git checkout")
    parser.add_argument("--list", action="store_true", help="name the parts and end")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(f"{part.group:12} {part.name:24} {part.does}" for part in parts))
        return 0
    if given.out is None:
        parser.error("no OUT given: python tools/gpu_check.py OUT")
    deadline = time.monotonic() + 60 * given.minutes
    signal.signal(signal.SIGTERM, _interrupt)
    work = given.work or Path(tempfile.mkdtemp(prefix="openmae-gpu-check-"))
    work.mkdir(parents=True, exist_ok=True)
    report = Report(given.out, parts, is_merged=given.only is not None, commit=given.commit)
    schedule = Schedule(report, work.resolve(), given.device, deadline)
    try:
        selected = select_parts(parts, given.only, schedule.is_done)
        schedule.run([machine])
        report.machine = report.results.pop(machine.name)
        report.write()
        if report.machine["status"] != "passed":
            print(f"nothing was checked: {report.machine['said']}", file=sys.stderr)
            return 1
        schedule.learn(report.machine["figures"])
        schedule.run(selected)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted: what was done until here is kept", file=sys.stderr)
        return 1
    finally:
        report.write()
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    ran = [report.results[part.name] for part in selected]
    print(f"\n{report.words(ran)}; {given.out / 'check.md'} has the table")
    statuses = {result["status"] for result in ran}
    return 0 if "passed" in statuses and not statuses & {"failed", "skipped"} else 1


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
