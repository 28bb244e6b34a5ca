"""Ledger wrong: a table of nodules of which one row fails is called "nothing usable", but its other rows are stored.

Public: none; the layout of LUNA16's annotations.csv.
Right: one box of the first series is stored and counted, the row outside of the second series is refused by number,
exit 3; or nothing is stored and exit 4. The corrected table can be ingested.
"""

from pathlib import Path

from tests.cases._case import ingest, stored
from tests.cases._dicom import noise, series


def run(medssl: str, folder: Path) -> dict:
    uids = [
        series(folder / f"in/{n}", noise(n, (40, 40, 12)), patient=f"SYN-{n}", spacing=(1, 1, 2))[0].SeriesInstanceUID
        for n in (1, 2)
    ]
    cache = folder / "cache"
    ingest(medssl, cache, folder / "in")
    table = folder / "annotations.csv"
    head = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    table.write_text(f"{head}{uids[0]},20,20,12,6\n{uids[1]},20,20,500,6\n")
    code, _ = ingest(medssl, cache, table, "--label-set", "luna")
    boxes = sorted(i["boxes"] for i in stored(medssl, cache))
    table.write_text(f"{head}{uids[0]},20,20,12,6\n{uids[1]},20,20,10,6\n")
    again, _ = ingest(medssl, cache, table, "--label-set", "luna")
    consistent = (code == 3 and boxes == [0, 1]) or (code == 4 and boxes == [0, 0])
    return {
        "expected": {"code_and_cache_agree": True, "corrected_table": 0},
        "found": {"code": code, "boxes": boxes, "code_and_cache_agree": consistent, "corrected_table": again},
    }
