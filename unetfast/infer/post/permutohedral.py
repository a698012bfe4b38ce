"""Gaussian filtering in a space of several dimensions, in time linear in the number of points.

After Adams, Baek and Davis, "Fast high-dimensional filtering using the permutohedral lattice" (Eurographics 2010): points are
spread over the corners of the simplices of a lattice that they lie in, the lattice is blurred along its axes, and read back.
Constants and normalisation are those of the code of Kraehenbuehl and Koltun's dense CRF (2011), so results are comparable with
programs built on it. Here every step is done for all points at once.

Axis legend: P points, D dimensions, E = D + 1 corners of a simplex, C = E * P corners of all points, M lattice points that are
used, K values a point.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_NONE = 0  # row of the table that stands for lattice points without any point near: always 0


class Lattice:
    """A fixed set of points, ready to filter values at them.

    Args:
        points_PD: positions, in standard deviations of the Gaussian, float.

    Raises:
        ValueError: the positions span more lattice points than 63 bits can number: the Gaussian is too narrow.
    """

    def __init__(self, points_PD: np.ndarray) -> None:
        num_points, num_dims = points_PD.shape
        corner_EDP, share_EP = _find_corners(points_PD)
        code_EP, radix_D = _number_corners(corner_EDP)
        code_C = code_EP.reshape(-1)  # of all corners of all points
        order_C = np.argsort(code_C)
        sorted_C = code_C[order_C]
        is_first_C = np.concatenate([[True], sorted_C[1:] != sorted_C[:-1]])
        start_M = np.flatnonzero(is_first_C)
        code_M = sorted_C[start_M]
        row_C = np.empty(len(code_C), dtype=np.int64)  # of each corner's lattice point in the table
        row_C[order_C] = np.cumsum(is_first_C)
        self.num_dims = num_dims
        self._neighbours = [tuple(map(torch.from_numpy, pair)) for pair in _find_neighbours(code_M, radix_D)]
        # spreading: each lattice point sums the points around it; reading: each point sums its corners
        self._spread_index = torch.from_numpy(order_C % num_points)
        self._spread_share = torch.from_numpy(share_EP.reshape(-1)[order_C])
        self._spread_start = torch.from_numpy(start_M)
        self._read_index = torch.from_numpy(np.ascontiguousarray(row_C.reshape(-1, num_points).T))
        self._read_share = torch.from_numpy(np.ascontiguousarray(share_EP.T))

    @property
    def num_lattice_points(self) -> int:
        return len(self._spread_start)

    def filter(self, values_PK: Tensor) -> Tensor:
        """Sum, for each point, the values of all points, weighted by a Gaussian of their distance (itself with weight 1).

        Args:
            values_PK: float32, on the CPU.

        Returns:
            float32, (P, K); up to the lattice's approximation, and a factor of the whole that it leaves free.
        """
        # embedding_bag is a product with a sparse matrix, on all threads
        spread_MK = F.embedding_bag(
            self._spread_index, values_PK, self._spread_start, mode="sum", per_sample_weights=self._spread_share
        )
        table_MK = F.pad(spread_MK, (0, 0, 1, 0))
        for before_M, after_M in self._neighbours:
            blurred_MK = table_MK[1:] + 0.5 * (table_MK.index_select(0, before_M) + table_MK.index_select(0, after_M))
            table_MK = F.pad(blurred_MK, (0, 0, 1, 0))
        read_PK: Tensor = F.embedding_bag(self._read_index, table_MK, mode="sum", per_sample_weights=self._read_share)
        return read_PK.div_(1 + 2.0**-self.num_dims)


def _find_corners(points_PD: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the corners of the simplex around each point, E arrays (D, P) of int32, and the point's share in each, (E, P)."""
    num_points, num_dims = points_PD.shape
    num_corners = num_dims + 1
    # onto the plane in which coordinates sum to 0; the lattice's own blur has this standard deviation
    scale_D = math.sqrt(2 / 3) * num_corners / np.sqrt(np.arange(1, num_dims + 1) * np.arange(2, num_dims + 2))
    elevated_EP = np.zeros((num_corners, num_points), dtype=np.float32)
    total_P = np.zeros(num_points, dtype=np.float32)
    for dim in range(num_dims, 0, -1):
        scaled_P = (points_PD[:, dim - 1] * scale_D[dim - 1]).astype(np.float32)
        elevated_EP[dim] = total_P - dim * scaled_P
        total_P += scaled_P
    elevated_EP[0] = total_P

    # the nearest corner of remainder 0, and by the order of the rests in which of the simplices around it the point lies
    nearest_EP = np.round(elevated_EP / num_corners).astype(np.int32)
    excess_P = nearest_EP.sum(axis=0, dtype=np.int32)
    nearest_EP *= num_corners
    rest_EP = elevated_EP - nearest_EP
    rank_EP = np.zeros((num_corners, num_points), dtype=np.int32)
    for one in range(num_corners):
        for other in range(one + 1, num_corners):
            is_less_P = rest_EP[one] < rest_EP[other]
            rank_EP[one] += is_less_P
            rank_EP[other] += ~is_less_P
    rank_EP += excess_P  # back onto the plane
    turn_EP = num_corners * ((rank_EP < 0).astype(np.int32) - (rank_EP > num_dims))
    nearest_EP += turn_EP
    rank_EP += turn_EP

    share_EP = np.zeros((num_corners + 1, num_points), dtype=np.float32)
    offset_EP = (elevated_EP - nearest_EP) / np.float32(num_corners)
    every_P = np.arange(num_points)
    for rank_P, offset_P in zip(rank_EP, offset_EP, strict=True):  # a point's ranks differ, so no cell is met twice
        share_EP[num_dims - rank_P, every_P] += offset_P
        share_EP[num_corners - rank_P, every_P] -= offset_P
    share_EP[0] += 1 + share_EP[num_corners]

    corner_EDP = [
        nearest_EP[:num_dims] + np.where(rank_EP[:num_dims] <= num_dims - remainder, remainder, remainder - num_corners)
        for remainder in range(num_corners)
    ]
    return corner_EDP, share_EP[:num_corners]


def _number_corners(corner_EDP: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Give each lattice point a number, (E, P), so that a step in a dimension adds that dimension's entry of (D,)."""
    num_dims = len(corner_EDP[0])
    margin = num_dims + 2  # steps to neighbours stay inside
    least_D = np.min([corner_DP.min(axis=1) for corner_DP in corner_EDP], axis=0).astype(np.int64) - margin
    span_D = np.max([corner_DP.max(axis=1) for corner_DP in corner_EDP], axis=0) + margin - least_D + 1
    if math.prod(span_D.tolist()) >= 2**63:
        raise ValueError("the Gaussian is too narrow for these points: widen it")
    radix_D = np.concatenate([[1], np.cumprod(span_D[:-1])]).astype(np.int64)
    code_EP = np.zeros((len(corner_EDP), corner_EDP[0].shape[1]), dtype=np.int64)
    for code_P, corner_DP in zip(code_EP, corner_EDP, strict=True):
        for corner_P, least, radix in zip(corner_DP, least_D, radix_D, strict=True):
            code_P += (corner_P - least) * radix
    return code_EP, radix_D


def _find_neighbours(code_M: np.ndarray, radix_D: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each of the E axes, the table rows before and after each lattice point; 0 where there is none."""
    num_corners = len(radix_D) + 1
    found = []
    for axis in range(num_corners):
        step = -radix_D.sum() + (num_corners * radix_D[axis] if axis < len(radix_D) else 0)
        found.append((_look_up(code_M, code_M - step), _look_up(code_M, code_M + step)))
    return found


def _look_up(sorted_M: np.ndarray, wanted_M: np.ndarray) -> np.ndarray:
    place_M = np.minimum(np.searchsorted(sorted_M, wanted_M), len(sorted_M) - 1)
    return np.where(sorted_M[place_M] == wanted_M, place_M + 1, _NONE)
