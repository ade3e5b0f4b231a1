"""Plants a random sample of mutants, one in each copy of the tree at a time, and lists those that no test detects.

    python tests/support/mutate/run.py --seed 1 --count 30 [--resume] [--survivors] [--seconds 180] [--processes 2]

Results go to build/mutate/seed-SEED.json after every mutant; --resume continues from there. The next mutant replaces one that
does not compile, or compiles to the same machine code.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from threading import Lock

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/support"))

from mutate.mutants import Mutant, between, in_random_order  # noqa: E402
from mutate.scratch import NotCompiled, Outcome, Scratch, Tests  # noqa: E402
from tiers import SLOW  # noqa: E402


def stages_of(file: str, root: Path) -> list[list[str]]:
    """pytest's arguments for successive runs against a mutant of this file: the tests of `make check` for the file and the
    strong ones, the others of `make check`, and then those of `make test`."""
    data = tomllib.loads((root / "tests/support/mutate/tests.toml").read_text())
    own = next((entry["tests"] for entry in data["map"] if file.startswith(entry["files"])), [])
    left_out = {*data["never"]} - {*own}
    gpu = root / "tests/gpu"
    paths = {path.stem: path for path in sorted((root / "tests").rglob("test_*.py")) if path.parent != gpu}
    every = [name for name in paths if name not in left_out]
    ordered = [name for name in dict.fromkeys([*own, *data["first"], *every]) if name in every]
    checked = [name for name in ordered if name not in SLOW]
    quick = [name for name in checked if name in own or name in data["first"]]
    rest = [name for name in checked if name not in quick]
    return [
        [*(str(paths[name].relative_to(root)) for name in names), f"--tier={tier}"]
        for names, tier in ((quick, "check"), (rest, "check"), (ordered, "test"))
        if names
    ]


def equivalents(root: Path) -> set[tuple[str, str, str]]:
    listed = tomllib.loads((root / "tests/support/mutate/equivalent_mutants.toml").read_text())["mutant"]
    return {(m["file"], m["old"], m["new"]) for m in listed if m["reason"]}


def report(results: list[dict[str, object]]) -> str:
    counted = {v: sum(r["verdict"] == v for r in results) for v in ("killed", "timeout", "survived")}
    dead = counted["killed"] + counted["timeout"]
    lines = [
        str(r["diff"]) + ("" if r["finished"] else "\n(not all tests were run)")
        for r in results
        if r["verdict"] == "survived"
    ]
    rate = f"{dead / len(results):.0%}" if results else "nothing"
    last = f"{dead} of {len(results)} killed ({counted['timeout']} of them by a hang): {rate}"
    return "\n\n".join([*lines, last])


def by_hand(root: Path, folder: Path) -> Iterator[Mutant]:
    """The mutants that the *.patch files of a folder make, each a `git diff` of one file."""
    for patch in sorted(folder.glob("*.patch")):
        (file,) = re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.MULTILINE)
        command = ["patch", "--silent", "--output=-", str(root / file), str(patch.resolve())]
        yield between(file, (root / file).read_text(), subprocess.check_output(command, text=True))


def tested(results: list[dict[str, object]]) -> list[dict[str, object]]:
    return [r for r in results if r["verdict"] in ("killed", "timeout", "survived")]


def main(root: Path = ROOT, arguments: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=30, help="mutants that are tested")
    parser.add_argument("--seconds", type=float, default=180, help="for the tests of one mutant")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--resume", action="store_true", help="go on with the sample of this seed")
    parser.add_argument(
        "--survivors", action="store_true", help="test the survivors of this seed once more, and no others"
    )
    parser.add_argument(
        "--patches", type=Path, help="instead of a sample, the changes of the *.patch files of this folder"
    )
    args = parser.parse_args(arguments)

    folder = root / "build/mutate"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (f"{args.patches.name}.json" if args.patches else f"seed-{args.seed}.json")
    results = json.loads(file.read_text()) if (args.resume or args.survivors) and file.exists() else []
    again = [
        Mutant(**{key: r[key] for key in ("file", "line", "old", "new")}) for r in results if r["verdict"] == "survived"
    ]
    if args.survivors:
        results = [r for r in results if r["verdict"] != "survived"]
    seen = {(r["file"], r["old"], r["new"], r["line"]) for r in results}
    known = equivalents(root)
    mutants: Iterable[Mutant] = in_random_order(root, args.seed)
    if args.patches:
        mutants = list(by_hand(root, args.patches))
        args.count = len(mutants)
    if args.survivors:
        mutants = again
    new = (m for m in mutants if m.key() not in known and (m.file, m.old, m.new, m.line) not in seen)

    tests = Tests()
    copies: Queue[Scratch] = Queue()
    lock = Lock()

    def judge(mutant: Mutant) -> None:
        scratch, start = copies.get(), time.monotonic()
        try:
            outcome = scratch.judge(mutant, stages_of(mutant.file, root), args.seconds)
        except NotCompiled:
            outcome = Outcome("not compiled")
        finally:
            copies.put(scratch)
        seconds = round(time.monotonic() - start, 1)
        with lock:
            results.append({**asdict(mutant), **asdict(outcome), "seconds": seconds, "diff": mutant.diff()})
            file.write_text(json.dumps(results, indent=1))
            place = f"{mutant.file}:{mutant.line}"
            print(f"{len(tested(results)):3} {outcome.verdict:12} {seconds:6.1f} s  {place}  {outcome.by}", flush=True)

    with ThreadPoolExecutor(args.processes) as pool:
        for scratch in pool.map(lambda n: Scratch(root, folder / str(n), tests), range(args.processes)):
            copies.put(scratch)
        running: set[Future[None]] = set()
        # The sample is the shortest prefix of the order with `count` tested mutants.
        while running or len(tested(results)) < args.count:
            while len(tested(results)) + len(running) < args.count and (mutant := next(new, None)):
                running.add(pool.submit(judge, mutant))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                each.result()
    print("\n" + report(tested(results)))
    return tested(results)


if __name__ == "__main__":
    main()
