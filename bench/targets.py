"""What is to be reached, by case and contender."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

# What is measured: columns of the GPU's CSV, the memory beyond parameters, gradients and moments, and the time over
# another contender's. Of the measures in AT_LEAST more is better.
TIME, FASTER, COPY, HOST, MEMORY = "time over", "times faster than", "copy_share", "host_us", "extra_memory_percent"
AT_LEAST = (FASTER, COPY)
WORDS = {
    COPY: "share of the bandwidth of a copy",
    HOST: "microseconds of the host",
    MEMORY: "extra memory, in percent of the parameters",
}
BASELINE = ""  # of the contender, in its case


@dataclass(frozen=True)
class Target:
    """cases, contender: patterns, several of cases with a space between them. limits: why it is missed, where that is known."""

    cases: str
    contender: str
    limit: float
    against: str = BASELINE
    measure: str = TIME
    limits: str = ""

    @property
    def sign(self) -> str:
        return ">=" if self.measure in AT_LEAST else "<="

    def fits(self, case: str, contender: str) -> bool:
        return fnmatchcase(contender, self.contender) and any(fnmatchcase(case, p) for p in self.cases.split())

    def what(self, baseline: str) -> str:
        return WORDS.get(self.measure) or f"{self.measure} {self.against or baseline}"


SMALL = (
    "asking torch for the addresses of each tensor and for its `.grad`, and telling autograd that it was written to, which a"
    " step that must never use a stale pointer cannot skip"
)
TWO_VISITS = (
    "the gate of a bfloat16 weight must be known before its update, so p and g are read twice: as many bytes are read as by AdamW in"
    " float32"
)
COMPUTE = "computing, which these processors do not hide behind memory: see the nanoseconds in the cache"
# Bytes over torch's 28, wherever memory is the bound.
STORED = (
    *(
        Target("gpt2-1 gpt2-2", f"onepass {name}", round(traffic / 28, 3), limits=COMPUTE)
        for name, traffic in {
            "AdamW short": 20, "AdamW 8-bit": 16, "AdamW bf16 exact": 26, "AdamW bf16 exact short": 18, "AdamW bf16 exact 8-bit": 14,
            "AdamW bf16 stochastic short": 14, "AdamW bf16 stochastic 8-bit": 10,
            "AdamP bf16 exact": 26, "AdamP bf16 exact short": 18, "AdamP bf16 exact 8-bit": 14,
        }.items()
    ),
    Target("gpt2-1 gpt2-2", "onepass AdamW", 1, "DeepSpeed CPUAdam", limits=COMPUTE),
    Target("gpt2-1 gpt2-2", "onepass AdamW bf16 exact", 1, "DeepSpeed CPUAdam", limits=COMPUTE),
)  # fmt: skip
CPU = (
    Target("gpt2-adam*", "onepass AdamW", 1.00),
    Target("gpt2-adam*", "onepass AdamProx", 1.02, "onepass AdamW"),
    Target("gpt2-adam* resnet50 resnet50-tangent", "onepass AdamP", 1.05),
    Target("gpt2-adam*", "onepass AdamP", 1 / 15, "adamp AdamP"),
    Target("gpt2-adam*", "onepass AdamP proximal", 1.05),
    Target("gpt2-adam*", "onepass AdamP proximal", 1 / 15, "adamp AdamP"),
    Target("gpt2-sgd*", "onepass SGDP", 1.10),
    Target("gpt2-clip*", "onepass AdamW, clip", 0.85),
    Target("gpt2-clip*", "onepass AdamP, clip", 0.85),
    Target("gpt2-bf16", "onepass AdamP bf16", 1.00, limits=TWO_VISITS),
    Target("resnet50-each", "onepass AdamW each", 1.3, "onepass AdamW"),
    Target("resnet50-each", "onepass AdamP each", 1.3, "onepass AdamP"),
    Target("small*", "onepass AdamW", 0.05, limits=SMALL),
    Target("small*", "onepass AdamP", 0.05, limits=SMALL),
    Target("memory", "onepass *", 1, measure=MEMORY),
    *STORED,
)
UP_TO_1000_TENSORS = "gpt2* resnet50* llama-1b* 1000-*"
GPU = (
    Target("llama-1b", "onepass AdamW", 0.95, measure=COPY),
    Target("*", "onepass AdamW", 1.00),
    Target("1000-*", "onepass AdamW", 5, measure=FASTER),
    Target("*", "onepass AdamP", 1.05, "onepass AdamW"),
    Target("*", "onepass AdamP", 10, "adamp AdamP", FASTER),
    Target("*", "onepass AdamP as timm", 10, "timm AdamP", FASTER),
    Target(UP_TO_1000_TENSORS, "onepass AdamW", 100, measure=HOST),
    Target(UP_TO_1000_TENSORS, "onepass AdamP", 100, measure=HOST),
    Target("llama-1b", "onepass AdamW (triton)", 1.10, "onepass AdamW"),
    Target("gpt2 llama-1b", "onepass AdamW (triton)", 1.00),
    Target("*", "onepass AdamP (triton)", 1.10, "onepass AdamW (triton)"),
)


@dataclass(frozen=True)
class Goal:
    """What was to be reached in one case, and what was measured."""

    case: str
    contender: str
    target: Target
    baseline: str
    measured: float

    @property
    def what(self) -> str:
        return f"{self.contender}, {self.target.what(self.baseline)}"

    @property
    def reached(self) -> bool:
        limit = self.target.limit
        return self.measured >= limit if self.target.measure in AT_LEAST else self.measured <= limit

    def __str__(self) -> str:
        verdict = "reached" if self.reached else "MISSED"
        return f"{verdict:<8} {self.case:<18} {self.what}: {self.measured:.3g}, to be {self.target.sign} {self.target.limit:.3g}"


def goals(
    targets: Iterable[Target], case: str, contender: str, baseline: str, measured: Callable[[Target], float | None]
) -> Iterator[Goal]:
    """Of one contender in one case; `measured` returns None where a target cannot be compared with anything."""
    for target in targets:
        if target.fits(case, contender) and (value := measured(target)) is not None:
            yield Goal(case, contender, target, baseline, value)
