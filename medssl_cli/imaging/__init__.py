"""Volumes and their geometry in numpy and SimpleITK: grids, resampling, preprocessing and the way back, tiles."""
