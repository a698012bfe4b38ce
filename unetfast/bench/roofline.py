"""The roofline of a training step, layer by layer: the least time that its arithmetic and its bytes allow on this machine.

An operation can't end before max(FLOP / matrix rate, bytes / bandwidth) (Williams et al. 2009); a step, run one operation after
another, not before the sum of these. The bytes are counted twice: as the operations move them alone ("eager"), and as a
compiler would that fuses (fusion.py). Which count a step is held to depends on how it ran.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unetfast.bench.fusion import count_fused_bytes
from unetfast.bench.harness import format_table
from unetfast.bench.machine import Machine
from unetfast.bench.trace import Op, StepTrace

ARITHMETIC, MEMORY, KERNELS = "arithmetic", "memory", "kernels"
_MOST_OF = 0.75  # levels are named until they hold this share of what memory costs


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time of one operation.

    Args:
        op: what was done.
        num_bytes: that it moves, in the count the roofline is drawn from.
        arithmetic_s: seconds of its FLOPs at the matrix rate of their dtype.
        memory_s: seconds of its bytes at copy bandwidth.
    """

    op: Op
    num_bytes: float
    arithmetic_s: float
    memory_s: float

    @property
    def seconds(self) -> float:
        return max(self.arithmetic_s, self.memory_s)

    @property
    def limit(self) -> str:
        return ARITHMETIC if self.arithmetic_s >= self.memory_s else MEMORY


@dataclass(frozen=True, slots=True)
class Roofline:
    """Least times of a step's operations, in both counts.

    Args:
        eager: each by itself.
        fused: as a compiler joins them.
        measured_s: seconds that each took by itself, in the same order.
        is_fused: whether the step is held to `fused`.
    """

    eager: tuple[Bound, ...]
    fused: tuple[Bound, ...]
    measured_s: tuple[float, ...]
    is_fused: bool

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """Those in the count that the step is held to."""
        return self.fused if self.is_fused else self.eager

    @property
    def seconds(self) -> float:
        return sum(bound.seconds for bound in self.bounds)


def draw_roofline(trace: StepTrace, machine: Machine, *, is_fused: bool) -> Roofline:
    """Bound every operation of a step.

    Args:
        trace: of the step.
        machine: limits of the device that it runs on.
        is_fused: whether the step is compiled.
    """
    eager = tuple(_bound(op, op.num_bytes, machine) for op in trace.ops)
    fused = tuple(_bound(op, num, machine) for op, num in zip(trace.ops, count_fused_bytes(trace.ops), strict=True))
    return Roofline(eager, fused, trace.seconds, is_fused)


def _bound(op: Op, num_bytes: float, machine: Machine) -> Bound:
    return Bound(op, num_bytes, op.flop / machine.rate(op.dtype), num_bytes / machine.copy_bytes_per_s)


@dataclass(frozen=True, slots=True)
class NextLimit:
    """What holds a step back most.

    Args:
        name: "arithmetic" (of operations bound by the matrix rate), "memory" (traffic of the others) or "kernels" (time that no
            limit explains: kernels that stay below theirs, gaps between them).
        shares_pct: of the measured step, percent, of each of the three.
        levels_hw: where memory: the levels that most of it is moved at, largest share first.
        text: for people.
    """

    name: str
    shares_pct: dict[str, float]
    levels_hw: tuple[tuple[int, int], ...]
    text: str

    def to_json(self) -> dict[str, Any]:
        shares = {name: round(share, 1) for name, share in self.shares_pct.items()}
        return {"name": self.name, "shares_pct": shares, "levels_hw": [list(hw) for hw in self.levels_hw]}


def find_next_limit(roofline: Roofline, step_s: float) -> NextLimit:
    """Split a measured step into arithmetic, memory traffic and the rest, and name the largest.

    Args:
        roofline: of the step.
        step_s: measured, seconds. Where it is less than the roofline (feature maps that lie in a cache), nothing is left over
            and shares are of the roofline.
    """
    by_limit = {name: [bound for bound in roofline.bounds if bound.limit == name] for name in (ARITHMETIC, MEMORY)}
    seconds = {name: sum(bound.seconds for bound in bounds) for name, bounds in by_limit.items()}
    whole_s = max(step_s, sum(seconds.values()))
    seconds[KERNELS] = whole_s - sum(seconds.values())
    shares = {name: 100 * part_s / whole_s for name, part_s in seconds.items()}
    name = max(shares, key=lambda name: shares[name])
    levels = _costly_levels(by_limit[MEMORY]) if name == MEMORY else ()
    share = f"{shares[name]:.0f} % of a step"
    texts = {
        ARITHMETIC: f"arithmetic at the device's matrix rate ({share})",
        MEMORY: f"memory traffic {_name_levels(levels)} ({share})",
        KERNELS: f"kernels below their limits ({share}; arithmetic explains {shares[ARITHMETIC]:.0f} %, memory traffic "
        f"{shares[MEMORY]:.0f} %){_name_slowest(roofline, whole_s)}",
    }
    return NextLimit(name, shares, levels, texts[name])


def _costly_levels(bounds: Sequence[Bound]) -> tuple[tuple[int, int], ...]:
    """Levels by the time of their bytes, until they hold most of it; none where most is the weights'."""
    by_level: dict[tuple[int, int] | None, float] = defaultdict(float)
    for bound in bounds:
        by_level[bound.op.level_hw] += bound.seconds
    named: list[tuple[int, int]] = []
    held_s, total_s = 0.0, sum(by_level.values())
    for level, level_s in sorted(by_level.items(), key=lambda pair: -pair[1]):
        if held_s >= _MOST_OF * total_s:
            break
        held_s += level_s
        if level is not None:
            named.append(level)
    return tuple(named)


def _name_slowest(roofline: Roofline, step_s: float) -> str:
    """Name the operations that lose most time against their bounds; "" where single operations are not what ran."""
    lost: dict[tuple[str, bool, tuple[int, int] | None], float] = defaultdict(float)
    for bound, took_s in zip(roofline.eager, roofline.measured_s, strict=True):
        lost[bound.op.kind, bound.op.backward, bound.op.level_hw] += took_s - bound.seconds
    (kind, backward, hw), lost_s = max(lost.items(), key=lambda pair: pair[1])
    if roofline.is_fused or lost_s <= 0:
        return ""
    where = "" if hw is None else f" at {hw[0]}x{hw[1]}"
    return f", most in {kind}{' backward' if backward else ''}{where} ({100 * lost_s / step_s:.0f} %)"


def _name_levels(levels: Sequence[tuple[int, int]]) -> str:
    if not levels:
        return "of weights and their update"
    names = [f"{height}x{width}" for height, width in levels]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"at level{'s' * (len(names) > 1)} {listed}"


def describe_roofline(roofline: Roofline, num_images: int) -> dict[str, Any]:
    """Write a roofline as JSON.

    Args:
        roofline: of a step.
        num_images: of the step.

    Returns:
        Times of a step in ms, bytes of a step in MiB, GFLOP of a step; `layers` (one row for each module, kind of operation and
        pass) and `levels` (one for each size of feature maps, height x width; null: weights) in the count the step is held to;
        `measured_ms` is the time of operations by themselves, uncompiled, whichever count.
    """
    return {
        "counted": "fused" if roofline.is_fused else "eager",
        "images_per_step": num_images,
        "eager_ms": _ms(sum(bound.seconds for bound in roofline.eager)),
        "fused_ms": _ms(sum(bound.seconds for bound in roofline.fused)),
        "measured_ms": _ms(sum(roofline.measured_s)),
        "arithmetic_ms": _ms(sum(bound.arithmetic_s for bound in roofline.bounds)),
        "memory_bound_ms": _ms(sum(bound.seconds for bound in roofline.bounds if bound.limit == MEMORY)),
        "eager_mib": _mib(roofline.eager),
        "fused_mib": _mib(roofline.fused),
        "levels": _describe_levels(roofline),
        "layers": _describe_layers(roofline),
    }


def _describe_levels(roofline: Roofline) -> list[dict[str, Any]]:
    levels: dict[tuple[int, int], list[int]] = defaultdict(list)  # (0, 0): weights
    for place, bound in enumerate(roofline.bounds):
        levels[bound.op.level_hw or (0, 0)].append(place)
    rows = []
    for hw, places in sorted(levels.items(), key=lambda pair: -pair[0][0] * pair[0][1]):
        members = [roofline.bounds[place] for place in places]
        memory_s = sum(bound.seconds for bound in members if bound.limit == MEMORY)
        rows.append(
            {
                "level_hw": list(hw) if any(hw) else None,
                "gflop": _gflop(members),
                "mib": _mib(members),
                "bound_ms": _ms(sum(bound.seconds for bound in members)),
                "memory_bound_ms": _ms(memory_s),
                "measured_ms": _ms(sum(roofline.measured_s[place] for place in places)),
            }
        )
    return rows


def _describe_layers(roofline: Roofline) -> list[dict[str, Any]]:
    layers: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, bound in enumerate(roofline.bounds):
        op = bound.op
        layers[op.module, op.kind, op.backward, op.level_hw].append(place)
    rows = []
    for (module, kind, backward, hw), places in layers.items():
        bounds = [roofline.bounds[place] for place in places]
        memory_s = sum(bound.seconds for bound in bounds if bound.limit == MEMORY)
        total_s = sum(bound.seconds for bound in bounds)
        rows.append(
            {
                "module": module,
                "kind": kind,
                "pass": "backward" if backward else "forward",
                "level_hw": None if hw is None else list(hw),
                "gflop": _gflop(bounds),
                "eager_mib": _mib([roofline.eager[place] for place in places]),
                "fused_mib": _mib([roofline.fused[place] for place in places]),
                "bound_ms": _ms(total_s),
                "measured_ms": _ms(sum(roofline.measured_s[place] for place in places)),
                "limit": MEMORY if memory_s > total_s / 2 else ARITHMETIC,
            }
        )
    return rows


def format_roofline(described: dict[str, Any]) -> str:
    """Write a table for people: the levels of a step, from the finest to the weights.

    Args:
        described: of `describe_roofline`.
    """
    rows = [["level", "GFLOP", "MiB", "least ms", "of it memory", "took ms", "reached %"]]
    for level in described["levels"]:
        name = "weights" if level["level_hw"] is None else "x".join(map(str, level["level_hw"]))
        reached = 100 * level["bound_ms"] / level["measured_ms"] if level["measured_ms"] else 0.0
        cells = (level[key] for key in ("gflop", "mib", "bound_ms", "memory_bound_ms", "measured_ms"))
        rows.append([name, *(f"{cell:.4g}" for cell in cells), f"{reached:.3g}"])
    return format_table(rows)


def _gflop(bounds: Sequence[Bound]) -> float:
    return float(f"{sum(bound.op.flop for bound in bounds) / 1e9:.4g}")


def _mib(bounds: Sequence[Bound]) -> float:
    return float(f"{sum(bound.num_bytes for bound in bounds) / 2**20:.4g}")


def _ms(seconds: float) -> float:
    return float(f"{1000 * seconds:.4g}")
