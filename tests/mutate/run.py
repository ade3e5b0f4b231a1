"""Plants a random sample of mutants, one after the other, and says which of them no test notices.

    python tests/mutate/run.py --seed 1 --count 30 [--resume] [--seconds 180]

Results go to build/mutate/seed-SEED.json after every mutant; --resume goes on from there. A mutant that does not compile, or
of which the compiler makes the same machine code, is replaced by the next one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mutate.mutants import in_random_order  # noqa: E402
from mutate.scratch import NotCompiled, Outcome, Scratch  # noqa: E402


def tests_of(file: str, root: Path) -> list[str]:
    """The test files to run against a mutant of this file: those that know it, the strong ones, the rest."""
    data = tomllib.loads((root / "tests/mutate/tests.toml").read_text())
    own = next((entry["tests"] for entry in data["map"] if file.startswith(entry["files"])), [])
    rest = sorted(path.stem for path in (root / "tests").glob("test_*.py"))
    names = [n for n in dict.fromkeys([*own, *data["first"], *rest]) if n in rest and n not in data["never"]]
    return [f"tests/{name}.py" for name in names]


def equivalents(root: Path) -> set[tuple[str, str, str]]:
    listed = tomllib.loads((root / "tests/equivalent_mutants.toml").read_text())["mutant"]
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


def main(root: Path = ROOT, arguments: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=30, help="mutants that are tested")
    parser.add_argument("--seconds", type=float, default=180, help="for the tests of one mutant")
    parser.add_argument("--resume", action="store_true", help="go on with the sample of this seed")
    args = parser.parse_args(arguments)

    folder = root / "build/mutate"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"seed-{args.seed}.json"
    results = json.loads(file.read_text()) if args.resume and file.exists() else []
    seen = {(r["file"], r["old"], r["new"], r["line"]) for r in results}
    known = equivalents(root)
    scratch = Scratch(root, folder)
    for mutant in in_random_order(root, args.seed):
        tested = [r for r in results if r["verdict"] in ("killed", "timeout", "survived")]
        if len(tested) >= args.count:
            break
        if mutant.key() in known or (mutant.file, mutant.old, mutant.new, mutant.line) in seen:
            continue
        start = time.monotonic()
        try:
            outcome = scratch.judge(mutant, tests_of(mutant.file, root), args.seconds)
        except NotCompiled:
            outcome = Outcome("not compiled")
        seconds = round(time.monotonic() - start, 1)
        results.append(
            {
                **mutant.record(),
                "verdict": outcome.verdict,
                "by": outcome.by,
                "finished": outcome.finished,
                "seconds": seconds,
                "diff": mutant.diff(),
            }
        )
        file.write_text(json.dumps(results, indent=1))
        print(f"{outcome.verdict:12} {seconds:6.1f} s  {mutant.file}:{mutant.line}  {outcome.by}", flush=True)
    tested = [r for r in results if r["verdict"] in ("killed", "timeout", "survived")]
    print("\n" + report(tested))
    return tested


if __name__ == "__main__":
    main()
