"""`python -m onepass`: what can be used here, and how fast it is beside torch."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Any

import torch

from . import doctor, quick_bench

COLOURS = {"good": "32", "bad": "31;1", "quiet": "2"}


def paint(text: str, colour: str) -> str:
    """A text in a colour, where the output is a terminal and NO_COLOR (no-color.org) is not set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def say(text: str) -> None:
    print(text, flush=True)


def silent(_: Any) -> None:
    pass


def run_doctor(args: argparse.Namespace) -> int:
    try:
        found = doctor.findings()
    except RuntimeError as reason:  # of an instruction set that is not there
        say(json.dumps({"error": str(reason)}) if args.json else paint(str(reason), "bad"))
        return 1
    if not args.json:
        for line in doctor.told(found, paint):
            say(line)
    found["self_test"] = doctor.self_test(paint, silent if args.json else say)
    if args.json:
        say(json.dumps(found, indent=2))
    return 0 if found["self_test"]["passed"] else 1


def run_bench(args: argparse.Namespace) -> int:
    watched = sys.stderr.isatty() and not args.json

    def progress(part: float) -> None:
        if watched:
            print(f"\r{round(100 * part):3d}%" + "\r    \r" * (part >= 1), end="", file=sys.stderr, flush=True)

    found = quick_bench.measured(args.device, args.seconds, progress)
    for line in [json.dumps(found, indent=2)] if args.json else quick_bench.told(found):
        say(line)
    return 0


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text}")
    return value


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m onepass", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    of_doctor = "what can be used on this machine, what cannot and why, and a self-test; the command if there is none"
    of_bench = "time a step beside torch's optimizers, and adamp's if it is installed"
    doctors = commands.add_parser("doctor", help=of_doctor, description=of_doctor)
    benches = commands.add_parser("bench", help=of_bench, description=of_bench)
    for command, run in ((doctors, run_doctor), (benches, run_bench)):
        command.add_argument("--json", action="store_true", help="print one JSON object, for programs")
        command.set_defaults(run=run)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    benches.add_argument("--device", choices=("cpu", "cuda"), default=here, help=f"default: {here}")
    benches.add_argument("--seconds", type=positive, default=10.0, help="how long to measure, at least (default: 10)")
    args = parser.parse_args(given)
    if args.command is None:
        args = parser.parse_args(["doctor"])
    if args.command == "bench" and args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    return int(args.run(args))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it in silence
    sys.exit(main())
