"""Resume refused: keys that do not change what is learnt block the continuation of a run.

Public: ultralytics/ultralytics#1462.
Right: a run that stopped goes on with another data.num_workers or log_every; if a key does block, it is named.
"""

import shutil
from pathlib import Path

from tests.cases._model import finetune, trained


def run(medssl: str, folder: Path) -> dict:
    _, good, cache = trained(medssl, folder)
    codes = {}
    for name, change in (("unchanged", ()), ("num_workers", ("data.num_workers=1",)), ("log_every", ("log_every=5",))):
        root = folder / name
        shutil.copytree(good, root)
        (root / "summary.json").unlink()
        codes[name] = finetune(medssl, good.parent / "balls.yaml", cache, root, *change).returncode
    return {"expected": dict.fromkeys(codes, 0), "found": codes}
