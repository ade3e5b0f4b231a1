"""Times of variants of the CUDA kernels, each built apart from edited sources: what limits the kernels on this GPU.

Each variant takes away one cost, or adds one mechanism, so that its gain tells what that is worth. Some step wrongly; their
time is right. AdamW and AdamP with every matrix projected are timed as replays of captured steps, so that the host does
not count.

    python bench/explore.py [--only NAME] [--rehearse]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from program import RESULTS, say
from shapes import MODELS

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests/support"))  # edits.py
WORK = ROOT / "build/explore"


@dataclass(frozen=True)
class Variant:
    """Edits of csrc/cuda: file, text, and what takes its place."""

    name: str
    edits: tuple[tuple[str, str, str], ...] = ()
    environment: Mapping[str, str] | None = None


AHEAD = """const auto ahead = [&](const auto& place) {
        if constexpr (decltype(whole)::value && requires { place.index; }) {
          const auto line = [](const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); };
          line(o.p.data + place.index), line(o.g.data + place.index);
          if (Rule::moments > 0) line(o.m.data + place.index);
          if (Rule::moments > 1) line(o.v.data + place.index);
        }
      };
      for (int n = 0; n < count && j + (n + count) * width < vectors; ++n) ahead(o.place(s, j + (n + count) * width));
      Elements<O, Rule> e[count];"""

VARIANTS = (
    Variant("as it is"),
    Variant("without correct", (("executor.cpp", "launch_where(&Work::gated, Kernel::correct);", ";"),)),
    Variant(
        "without publishing",
        (("kernels.cuh", "if (publishes && (++finished == warps || last))", "if (publishes && false)"),),
    ),
    Variant(
        "a product in place of quotients",
        (("pack.cuh", "out.x[i] = quotient_in_window(a.x[i], b.x[i]);", "out.x[i] = a.x[i] * b.x[i];"),),
    ),
    Variant("32 KiB of row cache", (("launch_layout.cpp", "return best; }", "return std::min(best, 32 * 1024); }"),)),
    Variant("the next round prefetched", (("rows.cuh", "Elements<O, Rule> e[count];", AHEAD),)),
    Variant("zero gradients in half of the rows", environment={"ONEPASS_EXPLORE_ZEROS": "1"}),
)
FIELDS = ("device", "variant", "model", "optimizer", "us", "q1_us", "q3_us", "copy_share")


def sources_of(variant: Variant, target: Path) -> None:
    """A copy of the tree with the variant's edits."""
    from edits import edited

    shutil.rmtree(target, ignore_errors=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "python", "triton_kernels"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for file, text, instead in variant.edits:
        path = target / "csrc/cuda" / file
        path.write_text(edited(path.read_text(), text, instead))


def build(variant: Variant) -> Path:
    """A folder from which the variant can be imported."""
    tree = WORK / variant.name.replace(" ", "-")
    sources_of(variant, tree)
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "lib", "--build-temp", "objects"]
    subprocess.run(command, cwd=tree, env={**os.environ, "ONEPASS_CUDA": "1"}, check=True)
    return tree / "lib"


def time_models(quick: bool, zeros: bool) -> list[dict[str, object]]:
    """Times of the onepass that is imported here. `quick`: on the CPU, a rehearsal."""
    import torch

    import onepass
    from gpu_clock import FULL, Gpu
    from inputs import off_rows
    from rehearsal import Rehearsal

    clock = Rehearsal() if quick else Gpu(FULL)
    copy, _ = clock.copy_bandwidth(2**16 if quick else 2**30, rounds=5)
    rows: list[dict[str, object]] = []
    for model, shapes in MODELS.items():
        generator = torch.Generator(clock.device).manual_seed(0)
        normal = partial(torch.randn, generator=generator, device=clock.device)
        params = [0.02 * normal(shape) for shape in (shapes[2:8] if quick else shapes)]
        for p in params:
            p.grad = off_rows(1e-3 * normal(p.shape), p)
            if zeros:
                p.grad[: p.shape[0] // 2] = 0
        for make in (onepass.AdamW, onepass.AdamP):
            opt = make(params, lr=1e-8, capturable=not quick, backend=clock.backend("cuda"))
            graph = clock.graph_of(opt.step)
            for _ in range(20):  # until the gates are predicted
                graph.replay()
            times = 2 if quick else 20
            found = sorted(1e6 * clock.seconds(graph.replay, times, plugged=True) for _ in range(15))
            share = 28e6 * sum(p.numel() for p in params) / median(found) / copy
            names = (clock.about()["device"], "", model, make.__name__)
            rows.append(dict(zip(FIELDS, (*names, median(found), found[3], found[11], share), strict=True)))
            graph.reset()
    return rows


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[variant.name for variant in VARIANTS])
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with the package as it is installed")
    parser.add_argument("--time", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(given)
    if args.time:
        print(json.dumps(time_models(args.rehearse, "ONEPASS_EXPLORE_ZEROS" in os.environ)))
        return
    rows = []
    for variant in VARIANTS:
        if args.only and variant.name not in args.only:
            continue
        environment = {**os.environ, **(variant.environment or {})}
        if not args.rehearse:
            environment["PYTHONPATH"] = str(build(variant))
        command = [sys.executable, __file__, "--time", *["--rehearse"] * args.rehearse]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        own = [{**row, "variant": variant.name} for row in json.loads(done.stdout)]
        for row in own:
            say("{variant:36} {model:10} {optimizer:6} {us:9.1f} us  {copy_share:6.1%} of a copy".format(**row))
        rows += own
    if args.rehearse:
        return
    device = str(rows[0]["device"]).lower().replace(" ", "-")
    path = args.out / f"explore-{device}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    say(f"Written: {os.path.relpath(path)}")


if __name__ == "__main__":
    main(sys.argv[1:])
