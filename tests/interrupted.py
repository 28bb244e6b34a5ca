"""Runs of pre-training that have lost what came after a checkpoint, as a kill leaves them."""

import shutil
from pathlib import Path


def interrupted_copy(run: Path, folder: Path, *, step: int) -> Path:
    """A copy of a finished run as it was after a step, whose checkpoint is the only one that is left."""
    shutil.copytree(run, folder)
    for path in [folder / "summary.json", folder / "encoder.safetensors", *(folder / "checkpoints").iterdir()]:
        if not path.name.startswith(f"step-{step:08d}-"):
            path.unlink()
    return folder
