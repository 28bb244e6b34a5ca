"""A small painter of solids: signed distances in, voxels with partial volume and label maps out.

Distances are in millimetres, negative inside. A surface that cuts a voxel fills it in proportion, as a scanner would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Vector = Sequence[float] | NDArray[np.float64]
Distance = Callable[[Array, Array, Array], Array]
Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]

MARGIN_MM: Final = 14.0
EVERYWHERE: Final = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class Solid:
    """A closed surface.

    Args:
        distance: Distance of coordinates x, y, z in millimetres, approximately signed.
        low: Smallest coordinates that the solid reaches.
        high: Largest coordinates that the solid reaches.
    """

    distance: Distance
    low: Point
    high: Point

    def grown(self, by_mm: float) -> "Solid":
        """The solid with its surface moved outwards; inwards where negative."""
        inner = self.distance
        return Solid(
            lambda x, y, z: inner(x, y, z) - np.float32(by_mm),
            (self.low[0] - by_mm, self.low[1] - by_mm, self.low[2] - by_mm),
            (self.high[0] + by_mm, self.high[1] + by_mm, self.high[2] + by_mm),
        )

    def cut(self, *, beyond: Point, direction: Point) -> "Solid":
        """What lies beyond a plane through a point, on the side that the direction points to."""
        inner, (px, py, pz), (dx, dy, dz) = self.distance, beyond, direction
        return Solid(
            lambda x, y, z: np.maximum(inner(x, y, z), -((x - px) * dx + (y - py) * dy + (z - pz) * dz)),
            self.low,
            self.high,
        )


@dataclass(frozen=True)
class Frame:
    """A patient part's own coordinates: `world = linear @ own + offset`.

    Args:
        linear: `[3, 3]` rotation times scale.
        offset: `[3]` millimetres.
    """

    linear: NDArray[np.float64]
    offset: NDArray[np.float64]

    def to_world(self, point: Vector) -> NDArray[np.float64]:
        """Place of an own point in the world."""
        return self.linear @ np.asarray(point, dtype=np.float64) + self.offset

    def from_world(self, point: Vector) -> Point:
        """Own coordinates of a point in the world."""
        x, y, z = np.linalg.solve(self.linear, np.asarray(point, dtype=np.float64) - self.offset)
        return float(x), float(y), float(z)


class DemoCanvas:
    """Voxels that solids are painted into, later ones over earlier ones.

    Args:
        shape: Size (X, Y, Z) in voxels.
        affine: `[4, 4]` axis-parallel, voxel-centre index to RAS+ millimetres.
        background: Value of empty voxels.
    """

    def __init__(self, shape: tuple[int, int, int], affine: NDArray[np.float64], *, background: float) -> None:
        self.affine = affine
        self.values: Array = np.full(shape, background, dtype=np.float32)
        self.labels = np.zeros(shape, dtype=np.uint8)
        self.edge_mm = float(np.mean(np.diag(affine)[:3]))
        axes = [affine[axis, axis] * np.arange(shape[axis]) + affine[axis, 3] for axis in range(3)]
        x, y, z = np.meshgrid(*axes, indexing="ij")
        self.world = (x.astype(np.float32), y.astype(np.float32), z.astype(np.float32))

    def coordinates(self, frame: Frame, bend_mm: Callable[[Array, Array, Array], Array]) -> tuple[Array, Array, Array]:
        """Own coordinates of every voxel in a frame, displaced by a smooth bend so that no surface is perfect.

        Args:
            frame: Whose coordinates.
            bend_mm: Displacement `[3, X, Y, Z]` as a function of own coordinates.
        """
        inverse = np.linalg.inv(frame.linear).astype(np.float32)
        shifted = [axis - np.float32(offset) for axis, offset in zip(self.world, frame.offset, strict=True)]
        x, y, z = (sum(inverse[row, axis] * shifted[axis] for axis in range(3)) for row in range(3))
        bend = bend_mm(np.asarray(x), np.asarray(y), np.asarray(z))
        return x + bend[0], y + bend[1], z + bend[2]

    def box(self, solid: Solid, frame: Frame) -> Box:
        """Index box that surely holds a solid of a frame."""
        ends = np.array([solid.low, solid.high])
        corners = [frame.to_world((ends[i][0], ends[j][1], ends[k][2])) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        step, origin = np.diag(self.affine)[:3], self.affine[:3, 3]
        low = np.floor((np.min(corners, axis=0) - MARGIN_MM - origin) / step).astype(int)
        high = np.ceil((np.max(corners, axis=0) + MARGIN_MM - origin) / step).astype(int) + 1
        limits = self.values.shape
        x, y, z = (slice(max(0, int(low[axis])), min(limits[axis], max(0, int(high[axis])))) for axis in range(3))
        return x, y, z

    def fill(
        self, distance_mm: Array, value: float | Array, *, label: int | None = None, box: Box = EVERYWHERE
    ) -> None:
        """Paint where a distance is negative, in proportion where the surface cuts a voxel.

        Args:
            distance_mm: Signed distance of the voxels of the box.
            value: What to paint.
            label: Label of voxels that are at least half inside; None leaves the labels.
            box: The part of the canvas that the distances belong to.
        """
        share = np.clip(np.float32(0.5) - distance_mm / np.float32(self.edge_mm), 0, 1)
        self.values[box] += share * (value - self.values[box])
        if label is not None:
            self.labels[box][share >= 0.5] = label


def ellipsoid(centre: Point, semi_axes: Point, axes: NDArray[np.float64] | None = None) -> Solid:
    """An ellipsoid.

    Args:
        centre: Its centre.
        semi_axes: Its three semi-axes in millimetres.
        axes: `[3, 3]` orthonormal, one axis per row; None means x, y, z.

    Returns:
        A solid whose distance is right to first order near the surface.
    """
    cx, cy, cz = centre
    rows = np.eye(3) if axes is None else axes
    scaled = (rows / np.asarray(semi_axes)[:, None]).astype(np.float32)
    reach = np.sqrt(((rows.T * np.asarray(semi_axes)) ** 2).sum(axis=1))

    def distance(x: Array, y: Array, z: Array) -> Array:
        px, py, pz = x - np.float32(cx), y - np.float32(cy), z - np.float32(cz)
        parts = [row[0] * px + row[1] * py + row[2] * pz for row in scaled]
        radius = np.sqrt(parts[0] ** 2 + parts[1] ** 2 + parts[2] ** 2)
        slope = np.sqrt(sum((part / np.float32(semi)) ** 2 for part, semi in zip(parts, semi_axes, strict=True)))
        return np.asarray(radius * (radius - 1) / np.maximum(slope, np.float32(1e-6)), dtype=np.float32)

    low, high = np.asarray(centre) - reach, np.asarray(centre) + reach
    return Solid(distance, (low[0], low[1], low[2]), (high[0], high[1], high[2]))


def cone(start: Point, end: Point, start_radius_mm: float, end_radius_mm: float) -> Solid:
    """A round-ended tube whose radius changes linearly from start to end."""
    first, second = np.asarray(start), np.asarray(end)
    along = (second - first).astype(np.float32)
    length_squared = np.float32(max(float(along @ along), 1e-6))
    widest = max(start_radius_mm, end_radius_mm)

    def distance(x: Array, y: Array, z: Array) -> Array:
        px, py, pz = (axis - np.float32(value) for axis, value in zip((x, y, z), start, strict=True))
        t = np.clip((px * along[0] + py * along[1] + pz * along[2]) / length_squared, 0, 1)
        away = np.sqrt((px - t * along[0]) ** 2 + (py - t * along[1]) ** 2 + (pz - t * along[2]) ** 2)
        return np.asarray(away - (start_radius_mm + t * (end_radius_mm - start_radius_mm)), dtype=np.float32)

    low, high = np.minimum(first, second) - widest, np.maximum(first, second) + widest
    return Solid(distance, (low[0], low[1], low[2]), (high[0], high[1], high[2]))


def tube(points: Sequence[Point], radii_mm: Sequence[float]) -> Solid:
    """Cones joined end to end: a vessel along a broken line."""
    parts = [
        cone(points[index], points[index + 1], radii_mm[index], radii_mm[index + 1]) for index in range(len(points) - 1)
    ]
    return union(parts)


def union(parts: Sequence[Solid]) -> Solid:
    """Everything that is in at least one of the parts."""
    low, high = np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0)

    def distance(x: Array, y: Array, z: Array) -> Array:
        result = parts[0].distance(x, y, z)
        for part in parts[1:]:
            result = np.minimum(result, part.distance(x, y, z))
        return result

    return Solid(distance, (low[0], low[1], low[2]), (high[0], high[1], high[2]))


def point(vector: NDArray[np.float64]) -> Point:
    """Three plain numbers of a vector."""
    return float(vector[0]), float(vector[1]), float(vector[2])
