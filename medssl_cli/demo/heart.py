"""The heart: chambers, walls, great vessels and the fat around them."""

from typing import Final

import numpy as np

from medssl_cli.demo.build import AORTA_AT, FAT, MUSCLE, Bend, Build, DemoPainter
from medssl_cli.demo.canvas import DemoCanvas, Solid, ellipsoid, point, tube, union

LONG_AXIS: Final = np.array([-0.66, 0.55, -0.51])


class Heart(DemoPainter):
    """Chambers, their walls, the great vessels and the fat around them, in the heart's own frame."""

    def __init__(self, canvas: DemoCanvas, build: Build, rng: np.random.Generator) -> None:
        super().__init__(canvas, build, build.heart, Bend(rng, 3.0))

    def draw(self) -> None:
        build, solids = self.build, self._solids()
        left, right = build.left_hu, build.right_hu
        arch = self._arch()
        veins = self._veins()
        outer = solids[5]
        around = [*(solids[label] for label in (2, 3, 4, 6, 7)), outer]
        self.paint(ellipsoid((-6, 44, -12), (50, 42, 50)), FAT)
        for solid in around:
            self.paint(solid.grown(6.5), FAT + 5)
        for solid in (*around, *veins, arch):
            self.paint(solid.grown(2.2), MUSCLE)
        for vein in veins[:2]:
            self.paint(vein, right)
        for vein in veins[2:]:
            self.paint(vein, left)
        self.paint(arch, left)
        self.paint(solids[4], right, label=4)
        self.paint(solids[3], left, label=3)
        self.paint(solids[2], right, label=2)
        self.paint(solids[7], right, label=7)
        self.paint(outer.grown(1.2), FAT + 70)
        self.paint(outer, build.myocardium_hu, label=5)
        self.paint(solids[6].grown(1.8), MUSCLE, label=0)
        self.paint(solids[6], left, label=6)
        self.paint(solids[1], left, label=1)

    def _solids(self) -> dict[int, Solid]:
        size, wall = self.build.chambers, self.build.wall_mm
        axis = LONG_AXIS / np.linalg.norm(LONG_AXIS)
        side = np.cross(axis, (0, 0, 1))
        side /= np.linalg.norm(side)
        axes = np.stack([axis, side, np.cross(axis, side)])
        cavity = (43 * size[1], 23 * size[1], 22 * size[1])
        centre = (-37.0, 43.0, -17.0)
        base, forward = point(np.asarray(centre) - 0.62 * cavity[0] * axis), point(axis)
        outer = (cavity[0] + 0.85 * wall, cavity[1] + wall, cavity[2] + wall)
        right_axis = np.array([-0.78, 0.38, -0.50])
        right_axis /= np.linalg.norm(right_axis)
        right_up = np.cross(right_axis, (0.3, 0.9, 0.2))
        right_up /= np.linalg.norm(right_up)
        right_axes = np.stack([right_axis, right_up, np.cross(right_axis, right_up)])
        inlet = ellipsoid((-6, 60, -22), (46 * size[2], 30 * size[2], 25 * size[2]), right_axes)
        outlet = tube([(2, 66, -14), (-10, 66, 12), (-15, 60, 28)], [19 * size[2], 15 * size[2], 13 * size[2]])
        atrium = ellipsoid((0, 7, 8), (33 * size[3], 19 * size[3], 23 * size[3]))
        appendage = tube([(-24, 14, 16), (-42, 30, 20), (-46, 42, 18)], [10 * size[3], 8 * size[3], 5 * size[3]])
        right_atrium = ellipsoid((39, 36, -10), (21 * size[4], 25 * size[4], 30 * size[4]))
        right_appendage = tube([(38, 50, 6), (24, 64, 18), (14, 70, 22)], [12 * size[4], 9 * size[4], 5 * size[4]])
        trunk = [(-15, 60, 28), (-17, 48, 44), (-20, 30, 54)]
        branches = [tube([(-17, 40, 50), (2, 20, 47), (26, 15, 42), (44, 8, 36)], [11, 10.5, 9.5, 7]),
                    tube([(-20, 30, 54), (-34, 12, 52), (-48, -4, 42)], [11, 9.5, 7])]  # fmt: skip
        return {
            1: ellipsoid(centre, cavity, axes).cut(beyond=base, direction=forward),
            2: union([inlet, outlet]),
            3: union([atrium, appendage]),
            4: union([right_atrium, right_appendage]),
            5: ellipsoid(centre, outer, axes).cut(beyond=base, direction=forward),
            6: tube([(-8, 34, 4), (2, 40, 22), (11, 42, 44), (12, 38, 66)],
                    [13 * size[6], 16 * size[6], 15 * size[6], 14.5 * size[6]]),
            7: union([tube(trunk, [13.5 * size[7], 13.5 * size[7], 12 * size[7]]), *branches]),
        }  # fmt: skip

    def _arch(self) -> Solid:
        """From the ascending aorta over the left bronchus to the descending aorta, wherever the body has put it."""
        end = self.frame.from_world(self.build.body.to_world((*AORTA_AT, 58)))
        radius = 14 * self.build.chambers[6]
        return tube([(12, 38, 66), (6, 26, 80), (-10, 4, 84), (-22, -12, 76), end], [radius, radius, 13, 12.5, 12])

    def _veins(self) -> list[Solid]:
        """Superior and inferior vena cava, then four pulmonary veins."""
        return [
            tube([(30, 24, 120), (36, 26, 60), (39, 32, 14)], [9, 9.5, 10]),
            tube([(37, 30, -30), (30, 16, -62), (24, 4, -110)], [11, 12, 11]),
            tube([(22, 4, 14), (48, 6, 26), (60, 12, 34)], [8, 6.5, 4]),
            tube([(24, 2, 2), (46, -12, -4), (62, -22, -12)], [8, 6.5, 4]),
            tube([(-22, 4, 16), (-44, 2, 28), (-58, 8, 38)], [8, 6.5, 4]),
            tube([(-24, 2, 2), (-44, -10, -6), (-60, -22, -14)], [8, 6.5, 4]),
        ]
