"""How many bytes a step moves where a compiler fuses what can be fused.

The rule is that of a good compiler today, such as Inductor: operations on each pixel by itself (casts, activations, sums, the
second half of a norm), concatenations, and a reduction at the end of such a chain become one kernel, which reads what comes
from outside once and writes what somebody outside reads. Convolutions and matrix products stay kernels of their own, and a norm
reads its input twice: once for the statistics, once to apply them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unetfast.bench.trace import OPAQUE, POINTWISE, REDUCTION, Op, Piece

_Value = tuple[int, int]  # storage and version


@dataclass(slots=True)
class _Node:
    """An operation, or one half of a norm, and where it stands in the order of kernels.

    Args:
        op: its place in the trace.
        style: pointwise, reduction or opaque.
        reads: from memory.
        writes: to memory.
        level: kernels that must have ended before it can begin, on the longest way through the step.
        group: place of the node that stands for its kernel.
    """

    op: int
    style: str
    reads: tuple[Piece, ...]
    writes: tuple[Piece, ...]
    level: int = 0
    group: int = 0


def count_fused_bytes(ops: Sequence[Op]) -> list[float]:
    """Share out the bytes of a fused step among its operations.

    Args:
        ops: in order.

    Returns:
        Bytes of each, in the same order: what its kernel moves, in proportion to what the operations in it would move alone.
        Never more than `Op.num_bytes` in sum over a kernel.
    """
    nodes = [node for place, op in enumerate(ops) for node in _split(place, op)]
    producers = _group(nodes)
    readers: dict[_Value, set[int]] = defaultdict(set)
    for node in nodes:
        for piece in node.reads:
            readers[piece.storage, piece.version].add(node.group)
    kernels: dict[int, list[_Node]] = defaultdict(list)
    for node in nodes:
        kernels[node.group].append(node)
    fused = [0.0] * len(ops)
    for group, members in kernels.items():
        num_bytes = _count_kernel(group, members, nodes, producers, readers)
        alone = [_sum(node.reads) + _sum(node.writes) for node in members]
        for node, share in zip(members, alone, strict=True):
            fused[node.op] += num_bytes * share / max(1, sum(alone))
    return fused


def _split(place: int, op: Op) -> Iterator[_Node]:
    """Make a norm two nodes: statistics, and what they are applied to; anything else is one."""
    if op.kind != "norm" or not op.second_reads:
        yield _Node(place, op.style, (*op.reads, *op.second_reads), op.writes)
        return
    statistics = Piece(-1000 - place, 0, 0, 0)  # a few numbers, which stay in no count
    yield _Node(place, REDUCTION, op.second_reads, (statistics,))
    yield _Node(place, POINTWISE, (*op.reads, statistics), op.writes)


def _group(nodes: Sequence[_Node]) -> dict[_Value, int]:
    """Settle level and group of every node; return which node made each value.

    A node joins the pointwise nodes that it reads from if they have its level. Then no other kernel can lie between them: on
    any way through one, the level would have grown. So the kernels have an order.
    """
    producers: dict[_Value, int] = {}
    for number, node in enumerate(nodes):
        node.group = number
        sources = [producers[value] for value in _needed(node) if value in producers]
        node.level = max((nodes[source].level + (nodes[source].style != POINTWISE) for source in sources), default=0)
        if node.style != OPAQUE:
            for source in sources:
                if nodes[source].style == POINTWISE and nodes[source].level == node.level:
                    _join(nodes, number, source)
        producers.update({(piece.storage, piece.version): number for piece in node.writes})
    for node in nodes:
        node.group = _find(nodes, node.group)
    return producers


def _needed(node: _Node) -> Iterator[_Value]:
    yield from ((piece.storage, piece.version) for piece in node.reads)
    yield from ((piece.storage, piece.version - 1) for piece in node.writes if piece.version)  # what it writes over, in part


def _find(nodes: Sequence[_Node], number: int) -> int:
    while nodes[number].group != number:
        nodes[number].group = nodes[nodes[number].group].group
        number = nodes[number].group
    return number


def _join(nodes: Sequence[_Node], first: int, second: int) -> None:
    nodes[_find(nodes, first)].group = _find(nodes, second)


def _count_kernel(
    group: int, members: Sequence[_Node], nodes: Sequence[_Node], producers: dict[_Value, int], readers: dict[_Value, set[int]]
) -> int:
    """Count what a kernel reads from others, once, and writes for others, or for nobody that the trace knows."""
    if len(members) == 1:
        return _sum(members[0].reads) + _sum(members[0].writes)
    read, written = set[Piece](), set[Piece]()
    for node in members:
        for piece in node.reads:
            producer = producers.get((piece.storage, piece.version))
            if producer is None or nodes[producer].group != group:
                read.add(piece)
        for piece in node.writes:
            wanted = readers.get((piece.storage, piece.version), set())
            if not wanted or wanted != {group}:
                written.add(piece)
    return _sum(read) + _sum(written)


def _sum(pieces: Sequence[Piece] | set[Piece]) -> int:
    return sum(piece.num_bytes for piece in pieces)
