"""What an inference-only installation is asked: `make` the inputs, `run` medssl on them, `compare` two outputs.

`.ci/inference-only` does so in two environments.
"""

import filecmp
import subprocess
import sys
from pathlib import Path

TIMES = ("report.json", "report.jsonl")  # of each run its own: they hold seconds


def make(folder: Path) -> None:
    """A model, three volumes and a DICOM series; needs all that tests need."""
    import numpy as np

    from medssl_cli.formats.nifti import write_nifti
    from tests.batch import AFFINE, phantom, write_series
    from tests.toy_model import write_toy_model

    (folder / "scans").mkdir(parents=True)
    write_toy_model(folder / "model.onnx", modality="CT")
    for number in range(3):
        noise = np.random.default_rng(number).integers(-60, 60, (40, 36, 30))
        write_nifti(
            folder / "scans" / f"s{number}.nii.gz", phantom(number, noise.shape) + noise.astype(np.int16), AFFINE
        )
    write_series(folder / "scans" / "ct", 3)


def run(folder: Path, out: Path) -> None:
    """The commands of a site that only answers, each of which must end with 0."""
    medssl = str(Path(sys.executable).parent / "medssl")
    scans, models, cache = str(folder / "scans"), str(out.with_suffix(".models")), str(out.with_suffix(".cache"))
    for words in (
        ["--version"],
        ["models", "add", str(folder / "model.onnx"), "--models", models],
        ["models", "ls", "--models", models],
        ["infer", scans, "--task", "toy-seg", "--models", models, "--device", "cpu", "-o", str(out)],
        ["ingest", scans, "--modality", "CT", "--cache", cache],
        ["cache", "ls", "--cache", cache],
        ["doctor", "--models", models, "--cache", cache],
        ["listen", "--help"],
    ):
        sys.stdout.write(f"$ medssl {' '.join(words)}\n")
        sys.stdout.flush()
        subprocess.run([medssl, *words], check=True)


def compare(one: Path, other: Path) -> None:
    """Every file but the reports is the same, byte for byte."""
    names = {str(path.relative_to(root)) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    names -= set(TIMES)
    assert sum(name.endswith(".nii.gz") for name in names) == 4, names
    assert sum(name.endswith(".dcm") for name in names) == 1, names
    _, different, missing = filecmp.cmpfiles(one, other, sorted(names), shallow=False)
    assert not different + missing, different + missing
    sys.stdout.write(f"{len(names)} files are the same, byte for byte\n")


if __name__ == "__main__":
    {"make": make, "run": run, "compare": compare}[sys.argv[1]](*map(Path, sys.argv[2:]))
