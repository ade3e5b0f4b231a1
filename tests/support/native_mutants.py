"""Mutants of csrc/ except csrc/cuda/, all compiled into one module with a switch that enables one.

For csrc/cuda/ see cuda_mutants.py.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pybind11
from ninja.ninja_syntax import Writer

import onepass
from edits import edited, home_of
from paths import ROOT


@dataclass(frozen=True)
class Mutant:
    """The expression `old` in csrc/ becomes `new`. `at`, with @ in its place, and `file` say which one."""

    name: str
    old: str
    new: str
    at: str = "@"
    file: str = ""


MUTANTS = [
    Mutant("the l2 decay is dropped", "has_l2 ? g + l2 * p : g", "g"),
    Mutant("u uses the previous step's m", "m / D", "(m - one_minus_beta1 * g) / R(beta1) / D", "return @;"),
    Mutant("v averages g, not g^2", "one_minus_beta2 * (g * g)", "one_minus_beta2 * g"),
    Mutant("no bias correction of v", "1 / std::sqrt(1 - std::pow(h.beta2, t))", "1.0"),
    Mutant("no bias correction of m", "h.lr / (1 - std::pow(h.beta1, t))", "h.lr"),
    Mutant("0/0 is NaN", "R(std::numeric_limits<S>::infinity())", "R(S(0))"),
    Mutant("the first buffer is dampened", "(first ? 0.0 : h.dampening)", "h.dampening"),
    Mutant("maximize is ignored", "grad_scale * g", "g", "g = @;", "gradient.h"),
    Mutant("the decay is dropped", "gate == Gate::none ? decay : decay * wd_ratio", "0.0"),
    Mutant("wd_ratio is ignored", "gate == Gate::none ? decay : decay * wd_ratio", "decay"),
    Mutant("proximal decay is decoupled", "!proximal", "true", "if (@) return {d, s};"),
    Mutant("the projection is dropped", "(gate == Gate::none ? 0 : s * c)", "0.0"),
    Mutant("the threshold is not strict", "max_cosine < delta / std::sqrt(row_length)",
           "max_cosine <= delta / std::sqrt(row_length)"),
    Mutant("the maximum drops NaN", "a > b || a != a ? a : b", "a > b ? a : b"),
    Mutant("eps does not bound norms", "x < low ? low : x", "x"),
    Mutant("the maximum is a sum", "a > b || a != a ? a : b", "a + b"),
    Mutant("correction ignores the step that was taken", "to.k - r * from.k", "to.k"),
    Mutant("every step is recoverable", "std::fabs(1 - a.d) >= 0.5", "true"),
    Mutant("the counter does not saturate", "counter < 3 ? counter + 1 : 3", "counter + 1"),
    Mutant("the gate counter counts layer as channel", "verdict == Gate::channel", "verdict != Gate::none"),
    Mutant("channel is predicted too soon", "counter >= 2", "counter >= 1"),
    Mutant("the tail of a row is skipped", "i < end", "false"),
    Mutant("only the last run is summed", "low_ += __builtin_convertvector(half[0], Double8)",
           "low_ = __builtin_convertvector(half[0], Double8)"),
    Mutant("no coefficient of a layer", "gate == Gate::layer ? layer : own", "own"),
    Mutant("deferred rows are not restored", "t.policy == WritePolicy::now && row_step.deferred", "false"),
    Mutant("the buffer is not projected", "t.scalars->project_momentum && s.gate != Gate::none", "false"),
    Mutant("the buffered momentum is not projected", "Rule::id == RuleId::momentum && c", "false"),
    Mutant("u is cached for the wrong place", "store_some(cache + i, u, n)", "store_some(cache, u, n)"),
    Mutant("nothing is corrected", "v.corrected || (step.needs_sums && step.deferred)", "false"),
    Mutant("16-bit steps are corrected", "bytes_of(t.storage.param) >= 4", "true"),
    Mutant("the layer gate always passes", "elements", "0.0", "pr.passes(layer_cosine, @)"),
    Mutant("the layer gate has the elements of one row", "all.rows * length", "length"),
    Mutant("an exchange does not speculate", "exchanges ? t.projected : predicts(t)", "predicts(t)"),
    Mutant("p is written before an exchange", "step.speculates && !step.predicts", "false"),
    Mutant("pieces are treated as rows", "item.end < t.length", "false"),
    Mutant("the last batch is dropped", "b < count", "b + 1 < count", "@; ++b) run_batch(b, scratch_[0])"),
    Mutant("moments are not scattered back", "writes.moments && t.moment[j].data", "false"),
    Mutant("every item begins at row 0", "row * t.length + item.begin", "item.begin", file="strided.cpp"),
    Mutant("the rest of the rows has no item", "row < t.rows", "row + rows_per_item <= t.rows || row == 0"),
    Mutant("a gradient's address is read once", "view.data = x.data",
           "view.data = view.data ? view.data : x.data"),
    Mutant("a step count's address is read once", "number(source.step, dlpack::float32, count_device)",
           "t.step ? t.step : number(source.step, dlpack::float32, count_device)"),
    Mutant("a number's dtype is not compared", "x.dtype == dtype", "true"),
    Mutant("other strides are not seen", "same_strides(x, view.strides)", "true"),
    Mutant("the sign of a gradient is not asked", "reader_.is_negated(gradients_[i].ptr())", "false"),
    Mutant("the sign of a gradient is asked until it is negated", "reader_.is_negated(gradients_[i].ptr())",
           "(t.negated || reader_.is_negated(gradients_[i].ptr()))"),
    # --- exact weights
    Mutant("ties go to even", "bits_as<Bits32>(x.v) + (number & 0x8000)",
           "bits_as<Bits32>(x.v) + (number & (((bits_as<Bits32>(x.v) >> 16) & 1) + 0x7fff))"),
    Mutant("a NaN is rounded like a number", "(number & 0x8000)", "(Bits32{} + 0x8000)", "bits_as<Bits32>(x.v) + @"),
    Mutant("a remainder makes a NaN of zero", "joined == joined ? joined : bits_as<Floats::Vector>(high)", "joined"),
    Mutant("remainders have no sign", "high + widen_signed(from.remainder)", "high + widen(from.remainder)"),
    Mutant("exact weights are not corrected", "t.storage.master()", "false", "|| @);"),
    Mutant("remainders are not scattered back", "writes.p && t.storage.master()", "false"),
    # --- short moments and random bits
    Mutant("the step is not in the draws", "DrawKey{}.with(uint32_t(seed)).with(uint32_t(seed >> 32)).with(step)",
           "DrawKey{}.with(uint32_t(seed)).with(uint32_t(seed >> 32))"),
    Mutant("the seed is not in the draws", "DrawKey{}.with(uint32_t(seed)).with(uint32_t(seed >> 32)).with(step)", "DrawKey{}.with(step)"),
    Mutant("the tensor is not in the draws", "step.scalars.draw_key.with(t.number)", "step.scalars.draw_key"),
    Mutant("draws go by the place in the item", "t.first + item.row * t.whole_length + item.begin", "t.first"),
    Mutant("draws go by the place in the row", "first = t.first + row * t.next_row", "first = t.first"),
    Mutant("draws go by the place in memory", "!plan_.draws(t) || is_contiguous(t)", "true"),
    Mutant("v is rounded to nearest", "rounded_by<false>(bits, x[1])", "rounded_to_nearest(x[1])"),
    Mutant("m is rounded stochastically", "x[0] = rounded_to_nearest(x[0])",
           "x[0] = rounded_by<false>(drawn<true>(0), x[0])"),
    Mutant("p and v are rounded by the same bits", "rounded_by<true>(bits, x)", "rounded_by<false>(bits, x)"),
    Mutant("short moments are cut off", "(bits_as<Bits32>(x.v) + (up & number)) & 0xffff0000",
           "bits_as<Bits32>(x.v) & 0xffff0000"),
    Mutant("a NaN of short moments is rounded", "(up & number)", "up"),
    Mutant("a correction draws other bits", "row.template drawn<is_stochastic>(i)", "row.template drawn<is_stochastic>(i + 1)",
           "row.store_weights(apply(p, u, d, k), i, n, @);\n      });\n    }\n  }\n\n  static double square_sum"),
    # --- moments of 8 bits, gradients of another dtype
    Mutant("a small v becomes 0", "sum < smallest ? U{} + smallest : sum", "sum < smallest ? U{} : sum"),
    Mutant("v of 8 bits is rounded to nearest", "number + up", "number + nearest"),
    Mutant("m of 8 bits is cut off", "(number & magnitude_mask) + nearest", "(number & magnitude_mask)"),
    Mutant("m of 8 bits has no sign", "digits | (stored & sign_mask) >> 24", "digits"),
    Mutant("a scale leaves no room", "(largest + most_added) >> fraction_bits", "largest >> fraction_bits"),
    Mutant("the scale of what is not finite is a number", "exponent >= 255 ? nan_scale : exponent <= span ? 1 : exponent - span",
           "exponent <= span ? 1 : exponent >= 255 ? 254 - span : exponent - span"),
    Mutant("u is made of moments before they are rounded", "row.round_moments(moment, i, bits)", "(void)0"),
    Mutant("scales of the first row", "t.scale[j] + row * t.blocks", "t.scale[j]"),
    Mutant("scales of the tensor's first row", "item.row * tile.blocks", "0"),
    Mutant("scales of a row's first piece", "item.begin / block_length", "0"),
    Mutant("the scale is of the first lanes", "x > largest ? x : largest", "each[0]"),
    Mutant("gradients of float32 are read as 16 bits", "bytes_of(storage.param)", "2", "wide_gradient ? 4 : @"),
    Mutant("sums of float32 gradients have another order", "std::is_same_v<P, Master> || row.g.wide", "std::is_same_v<P, Master>"),
    # --- scaled gradients
    Mutant("gradients are not scaled", "h.grad_scale *= factor", "h.grad_scale *= 1", "@;", "cpu/executor.cpp"),
    Mutant("half of the elements are not in the norm", "high_ += b * b", "high_ += b - b"),
    Mutant("the norm of the first row", "t.rows * t.length", "t.length", "(0, @, [&](int64_t i, auto n) { sum.add_square",
           "kernels.cpp"),
    Mutant("the norm of the first item", "sums[plan_.items[index].tensor] += row_stats_[index].sums.gg",
           "sums[plan_.items[index].tensor] += index == items[0] ? row_stats_[index].sums.gg : 0"),
]  # fmt: skip

# Another namespace, and so other types for pybind11, lets both modules be in one process.
DEFINES = ["onepass=onepass_mutants", "ONEPASS_ISA=baseline", 'ONEPASS_BUILD_FLAGS=""']
DEFINES += [f'ONEPASS_VERSION="{onepass.__version__}"']
SOURCES = (".h", ".cpp", ".cuh", ".cu")
FLAGS = ["-std=c++20", "-O1", "-w", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-ffp-contract=off"]


def switched(texts: Mapping[str, str], mutants: Sequence[Mutant]) -> dict[str, str]:
    """The texts with every mutation behind the switch `onepass_mutant`; 0 is none."""
    texts = dict(texts)
    expressions: dict[tuple[str, str, str], str] = {}
    for number, mutant in enumerate(mutants, 1):
        place = (mutant.file, mutant.at, mutant.old)
        expressions[place] = f"(onepass_mutant == {number} ? {mutant.new} : {expressions.get(place, mutant.old)})"
    for (file, at, old), expression in expressions.items():
        code = at.replace("@", old)
        path = home_of(code, {path: text for path, text in texts.items() if path.endswith(file)})
        texts[path] = edited(texts[path], code, at.replace("@", expression))
    return texts


def write_sources(folder: Path, without: str, more: Sequence[Path], mutants: Sequence[Mutant], module: Path) -> None:
    """Writes csrc/ with every mutation, without one of its folders, and the sources in `more`; the switch is defined in `module`.

    Files that are up to date stay as they are, so that ninja recompiles only what has changed since the last run.
    """
    found = [path for place in (Path("csrc"), *more) for path in (ROOT / place).rglob("*.*") if path.suffix in SOURCES]
    texts = {
        str(path.relative_to(ROOT)): path.read_text() for path in found if ROOT / "csrc" / without not in path.parents
    }
    ours = {path: text for path, text in texts.items() if path.startswith("csrc")}
    texts |= switched(ours, mutants)
    texts["csrc/rules/config.h"] += "\nextern int onepass_mutant;\n"
    texts[str(module)] += '\n__attribute__((visibility("default"))) int onepass_mutant = 0;\n'
    for path in folder.rglob("*.*"):
        if path.suffix in SOURCES and str(path.relative_to(folder)) not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def build(folder: Path = ROOT / "build/native-mutants") -> Any:
    """Builds the module with all mutants, for one instruction set and with little optimization; without csrc/cuda/, which needs
    another compiler."""
    write_sources(folder, "cuda", [], MUTANTS, Path("csrc/module.cpp"))
    cxx = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or "g++"]
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    library = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "build.ninja").open("w") as file:
        n = Writer(file)
        flags = shlex.join([*FLAGS, *(f"-D{define}" for define in DEFINES), *includes])
        command = f"{shlex.join(cxx)} {flags} -MD -MF $out.d -c $in -o $out"
        n.rule("cxx", command, depfile="$out.d", deps="gcc")
        n.rule("link", f"{shlex.join(cxx)} -shared -fopenmp $in -o $out")
        units = sorted((folder / "csrc").rglob("*.cpp"), key=lambda unit: -unit.stat().st_size)
        objects = [str(unit.with_suffix(".o")) for unit in units]
        for unit, target in zip(units, objects, strict=True):
            n.build(target, "cxx", str(unit))
        n.build(str(library), "link", objects)
    subprocess.run([sys.executable, "-m", "ninja", "--quiet", "-C", str(folder)], check=True)
    loader = importlib.machinery.ExtensionFileLoader("_C", str(library))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_C", loader))
    loader.exec_module(module)
    return module


def switch_of(module: Any) -> ctypes.c_int:
    return ctypes.c_int.in_dll(ctypes.CDLL(module.__file__), "onepass_mutant")
