"""Instructions that a warp issues for one round of a kernel's loop, traced through its machine code.

A round is the shortest circuit of the control flow through its first load: the way of vectors that are whole, and of
elements whose exponents lie in the window. Calls and tails are longer.

    python tests/support/rounds.py [--write] [FILE ...]

prints those of compiled kernels (object files, or else the built module), or writes them into tests/builds/rounds.csv,
from which bench/predict.py has them.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from pathlib import Path

from machine_code import Kernel, demangled, lines_of, resources_of

TABLE = Path(__file__).resolve().parents[1] / "builds/rounds.csv"
CALL = 10_000  # instructions that a call stands for: no round takes one if there is another way
BRANCHES = ("BRA", "BRX", "JMP", "EXIT", "RET", "CALL")

CLASSES = {
    "float64": r"D(ADD|MUL|FMA|SETP|MNMX)\b|MUFU\.R(SQ|CP)64H",
    "conversions": r"(F2F|I2F|F2I|F2FP|FRND)\b",
    "special": r"MUFU\b",
    "memory": r"(LDG|STG|LDS|STS|LDC|LD|ST|ATOM\w*|RED\w*|CCTL\w*)\b",
    "shuffles": r"(SHFL|VOTE\w*|REDUX|MATCH)\b",
    "control": r"(BRA|BRX|JMP|BSSY|BSYNC|BREAK|CALL|RET|EXIT|WARPSYNC|BAR|YIELD|NOP|DEPBAR|MEMBAR|ERRBAR)\b",
    "float32": r"(FADD2?|FMUL2?|FFMA2?|FSETP|FMNMX|FSEL|FCHK|HADD2|HFMA2|HMUL2|PRMT)\b",
}


def class_of(opcode: str) -> str:
    """`integer` where no other class has it: addresses, predicates, moves."""
    return next((name for name, pattern in CLASSES.items() if re.match(pattern, opcode)), "integer")


@dataclass(frozen=True)
class Instruction:
    at: int
    guard: str  # "@P0", or ""
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> int | None:
        found = re.search(r"(?:^|[\s,])(0x[0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def access_bytes(self) -> int:
        """Of a lane."""
        bits = re.search(r"\.(64|128)$", self.opcode)
        return int(bits[1]) // 8 if bits else 4


def parse(line: str) -> Instruction | None:
    """A line of `cuobjdump -sass`."""
    found = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?\w+\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;", line)
    return Instruction(int(found[1], 16), (found[2] or "").strip(), found[3], found[4]) if found else None


Block = int  # its place in Flow.blocks
Circuit = list[Block]


class Flow:
    """The control flow of a kernel between blocks of instructions that are executed one after the other."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        targets = {i.target for i in instructions if i.name in ("BRA", "CALL")}
        self.blocks: list[list[Instruction]] = []
        for n, i in enumerate(instructions):
            if n == 0 or i.at in targets or instructions[n - 1].name in BRANCHES:
                self.blocks.append([])
            self.blocks[-1].append(i)
        self.block_at = {block[0].at: n for n, block in enumerate(self.blocks)}
        self.following = [self.after(n) for n in range(len(self.blocks))]
        self.cost = [len(block) + CALL * (block[-1].name == "CALL" and not block[-1].guard) for block in self.blocks]

    def after(self, n: Block) -> list[Block]:
        last = self.blocks[n][-1]
        following = [n + 1] if n + 1 < len(self.blocks) else []
        if last.name in ("EXIT", "RET"):
            return following if last.guard else []
        # On sm_8x a call with a guard is a branch out of a loop. BRA.DIV is taken where the lanes of a warp have parted.
        branches = (last.name == "BRA" and not last.opcode.startswith("BRA.DIV")) or (
            last.name == "CALL" and last.guard
        )
        if not branches:
            return following
        target = [] if last.target is None else [self.block_at[last.target]]
        conditional = last.guard or re.match(r"!?U?P\d", last.operands)
        return target + following if conditional else target

    def way(self, start: Block, end: Block) -> Circuit | None:
        """The blocks on the shortest way from one to another, or back to itself: without the first, with the last."""
        queue, best, before, done = [(0, start)], {start: 0}, dict[Block, Block](), set[Block]()
        while queue:
            so_far, n = heapq.heappop(queue)
            if n in done:
                continue
            done.add(n)
            for to in self.following[n]:
                if to == end:
                    way = [to]
                    while n != start:
                        way.append(n)
                        n = before[n]
                    return way[::-1]
                cost = so_far + self.cost[to]
                if cost < best.get(to, 1 << 60):
                    best[to], before[to] = cost, n
                    heapq.heappush(queue, (cost, to))
        return None

    def circuit(self, through: Iterable[Block]) -> Circuit | None:
        """The shortest circuit through blocks, in their order."""
        stops = list(dict.fromkeys(through))
        ways = [self.way(start, end) for start, end in zip(stops, stops[1:] + stops[:1], strict=True)]
        return None if None in ways else [n for way in ways if way for n in way]

    def instructions(self, circuit: Circuit) -> list[Instruction]:
        return [i for n in circuit for i in self.blocks[n]]

    def counts(self, circuit: Circuit) -> Counter[str]:
        return Counter(class_of(i.opcode) for i in self.instructions(circuit))

    def accesses(self, circuit: Circuit) -> Counter[str]:
        return Counter(i.opcode for i in self.instructions(circuit) if i.name in ("LDG", "STG", "LDS", "STS"))

    @cached_property
    def side_by_side(self) -> list[Block]:
        """Blocks that take several reciprocals. One that is checked stands alone."""
        return [
            n
            for n, block in enumerate(self.blocks)
            if sum(i.opcode == "MUFU.RCP" for i in block) > 1 and not any(i.name == "FCHK" for i in block)
        ]

    @cached_property
    def in_double(self) -> list[Block]:
        """Blocks with a root or a reciprocal in double."""
        return [n for n, block in enumerate(self.blocks) if any(re.match(r"MUFU\.\w+64H", i.opcode) for i in block)]

    def by_way_of(self, circuit: Circuit, stops: list[Block], others: Iterable[Block]) -> Circuit:
        """The circuit through stops and as many of the others as lie on it, with the same accesses of memory."""
        accesses = self.accesses(circuit)
        for other in others:
            if other in circuit or not min(circuit) < other < max(circuit):
                continue
            for place in range(len(stops), 0, -1):
                longer = self.circuit([*stops[:place], other, *stops[place:]])
                if longer is not None and self.accesses(longer) == accesses:
                    stops = [*stops[:place], other, *stops[place:]]
                    circuit = longer
                    break
        return circuit

    def loops(self, opcode: str) -> Iterator[Circuit]:
        """The innermost circuits through instructions whose name begins so."""
        seen: set[Block] = set()
        for n, block in enumerate(self.blocks):
            if n in seen or not any(i.opcode.startswith(opcode) for i in block):
                continue
            circuit = self.circuit([n])
            if circuit is not None:
                circuit = self.by_way_of(circuit, [n], self.side_by_side)
                seen.update(circuit)
                yield circuit


@dataclass(frozen=True, order=True)
class Round:
    """A part of a kernel, executed by a warp: its instructions by class, and the bytes that a lane loads and stores."""

    arch: str
    kernel: str
    part: str
    instructions: int
    float32: int
    float64: int
    conversions: int
    special: int
    shuffles: int
    memory: int
    control: int
    integer: int
    loaded: int
    stored: int


# Parts: what is done in a round (of `update`, also the write of what it has kept), and once for a row. Its sums over lanes
# take a stage for every halving, and statistics are joined in others.
Parts = Iterator[tuple[str, list[Circuit]]]  # the first without those that follow


def parts_of(flow: Flow, function: str) -> Parts:
    rounds = list(flow.loops("LDG.E.NA"))
    stages: dict[int, list[Circuit]] = {8: [], 10: []}  # by the shuffles of a sum, and of statistics
    writes: list[Circuit] = []
    if function == "update":
        rounds = [c for c in rounds if any(name.startswith("STS") for name in flow.accesses(c))]
        loops = flow.loops("LDS.128")
        writes = [c for c in loops if any(name.startswith("STG.E.EF") for name in flow.accesses(c))]
    if function in ("update", "gate_stats"):
        for circuit in flow.loops("SHFL"):
            shuffles = sum(i.name == "SHFL" for i in flow.instructions(circuit))
            if len(flow.instructions(circuit)) < 80 and shuffles in stages:
                stages[shuffles].append(circuit)
    for part, circuits in (("round", rounds), ("write", writes), ("sum", stages[8]), ("join", stages[10])):
        for circuit in circuits:
            yield part, [circuit]
    for own in rounds if stages[8] else []:
        rows = []
        for stage in stages[8]:
            for write in [[c] for c in writes] or [list[Circuit]()]:
                inner = [own, stage, *write]
                stops = [own[-1], *side_by_side(flow, own), *(c[-1] for c in inner[1:])]
                if row := flow.circuit(stops):
                    rows.append((len(flow.instructions(row)), row, stops, inner))
        _, row, stops, inner = min(rows)
        yield "row", [flow.by_way_of(row, stops, flow.in_double), *inner]


def side_by_side(flow: Flow, circuit: Circuit) -> Circuit:
    return [n for n in circuit if n in flow.side_by_side]


def rounds_of(binary: str | Path) -> list[Round]:
    """The parts of all kernels that visit elements. Where blocks and warps have one each, the longer."""
    code: dict[tuple[str, str], list[Instruction]] = defaultdict(list)
    for kernel, line in lines_of(binary, "-sass"):
        if found := parse(line):
            code[kernel].append(found)
    usage = resources_of(binary)
    longest: dict[tuple[str, str, str], Round] = {}
    for (key, instructions), name in zip(code.items(), demangled([f for _, f in code]), strict=True):
        kernel = Kernel(key[0], name, *usage[key], [])
        if kernel.function not in ("step", "update", "gate_stats", "correct", "square_sum"):
            continue
        flow = Flow(instructions)
        for part, (whole, *inner) in parts_of(flow, kernel.function):
            counts = flow.counts(whole)
            for circuit in inner:
                counts.subtract(flow.counts(circuit))
            own = Round(
                arch=kernel.arch,
                kernel=kernel.short_name,
                part=part,
                instructions=sum(counts.values()),
                loaded=0 if inner else streamed(flow, whole, "LDG.E.NA"),
                stored=0 if inner else streamed(flow, whole, "STG.E.EF"),
                **{name: counts[name] for name in (*CLASSES, "integer")},
            )
            before = longest.get((own.arch, own.kernel, own.part))
            if before is None or before.instructions < own.instructions:
                longest[own.arch, own.kernel, own.part] = own
    return sorted(longest.values())


def streamed(flow: Flow, circuit: Circuit, opcode: str) -> int:
    return sum(i.access_bytes for i in flow.instructions(circuit) if i.opcode.startswith(opcode))


def read_table() -> list[Round]:
    with TABLE.open(newline="") as file:
        return [Round(*row[:3], *map(int, row[3:])) for row in list(csv.reader(file))[1:]]


def write_table(rounds: Iterable[Round]) -> None:
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Round))
        writer.writerows(map(astuple, sorted(rounds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument(
        "--write", action="store_true", help="write tests/builds/rounds.csv; it needs every architecture"
    )
    args = parser.parse_args()
    if not args.files:
        from onepass.backend import compiled

        assert compiled._C is not None
        args.files = [compiled._C.__file__]
    rounds = [r for file in args.files for r in rounds_of(file)]
    if args.write:
        write_table(rounds)
    for r in rounds:
        print(*astuple(r))


if __name__ == "__main__":
    main()
