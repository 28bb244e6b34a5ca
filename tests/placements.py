"""Short ways to say where an image lies on the grid that a network sees, for tests."""

import numpy as np

from medssl_cli.imaging.geometry import Affine, Shape, ras_index_affine
from medssl_cli.imaging.placement import GridPlacement, placement_of
from medssl_cli.imaging.preprocessing import network_input, on_grid
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing


def gridded(volume: Volume, preprocessing: Preprocessing, *, is_label: bool = False) -> Volume:
    """An image or a label map on the grid, in its own values."""
    placement = placement_of([volume], preprocessing)
    if is_label:
        voxels = placement.labels(volume.voxels)
    else:
        voxels, _ = on_grid(volume.voxels, placement, preprocessing.rules[0])
    return Volume(voxels, placement.affine, volume.modality, volume.units)


def preprocessed(volume: Volume, preprocessing: Preprocessing) -> Volume:
    """What a network sees of one image."""
    seen = network_input([volume], preprocessing)
    return Volume(seen.voxels, seen.placement.affine, volume.modality, volume.units)


def placed(grid_affine: Affine, grid_shape: Shape, source_affine: Affine, source_shape: Shape) -> GridPlacement:
    """Of a grid without padding that shows all of an image."""
    to_ras = ras_index_affine(source_affine, source_shape)
    x, y, z = (int(size) for size in np.array(source_shape) @ np.abs(to_ras[:3, :3]))
    return GridPlacement(
        source_affine, source_shape, (0, 0, 0), (x, y, z), grid_affine, grid_shape, (0, 0, 0), grid_shape, False
    )
