"""The benchmarks run at toy size and say what they measured; their figures are for people."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medssl_cli.data import loading
from medssl_cli.formats.dicom import group_headers, read_headers, read_series
from tests.bench import pretrain
from tests.bench.__main__ import app
from tests.bench.catalog import COLUMNS as CATALOG_COLUMNS
from tests.bench.catalog import bench_catalog
from tests.bench.ingest import COLUMNS, IngestBenchmark, Run, bench_ingest, timed, total
from tests.bench.kills import _moments
from tests.bench.memory import COLUMNS as MEMORY_COLUMNS
from tests.bench.memory import Peak, bench_memory
from tests.bench.read import bench_read, nnunet_chunks
from tests.bench.synthetic import PADDING_HU, synthetic_ct, write_tiny_series
from tests.toy_model import write_toy_model

RUN = Run("tool", wall_s=2.0, cpu_s=1.0, peak_bytes=100, is_done=True)


def test_a_synthetic_ct_is_the_same_for_the_same_seed_and_looks_like_a_body() -> None:
    volume = synthetic_ct((32, 32, 8), seed=3)

    assert volume.dtype == np.int16
    assert (volume == synthetic_ct((32, 32, 8), seed=3)).all()
    assert (volume != synthetic_ct((32, 32, 8), seed=4)).any()
    assert volume[0, 0, 0] == PADDING_HU  # outside of the round field of view
    assert abs(volume[16, 10, 4] - 40) < 120  # soft tissue


@pytest.mark.parametrize(
    ("shape", "patch", "chunk", "block"),
    [
        # 128^3 is halved, the last of the longest axes first, to 16 KB of at most 26 KB. Blocks are added, to the first
        # axis that has the fewest, until 0.8 x 1,441,792 bytes are passed: 5 x 4 x 4. nnU-Net 2.8 itself gives these.
        ((512, 512, 300), (96, 96, 96), (160, 64, 64), (32, 16, 16)),
        # The image is smaller than a chunk may be: one chunk.
        ((40, 40, 40), (64, 64, 64), (40, 40, 40), None),
    ],
    ids=["whole body", "smaller than a chunk"],
)
def test_nnunets_rule(
    shape: tuple[int, ...], patch: tuple[int, ...], chunk: tuple[int, ...], block: tuple[int, ...] | None
) -> None:
    found_chunk, found_block = nnunet_chunks(shape, patch, bytes_per_voxel=2)

    assert found_chunk == chunk
    assert np.prod(found_block) * 2 <= 0.8 * 32_768
    assert block is None or found_block == block


def test_reading_is_measured_for_every_way_of_storing() -> None:
    volume = synthetic_ct((40, 36, 12), seed=0)

    found = {rates.storage: rates for rates in bench_read(volume, reads=2, rounds=1)}

    assert len(found) == 8
    assert found["memory map, kept open"].size_ratio == 1
    assert 0 < found["medssl cache, kept open"].size_ratio < 1
    assert all(len(rates.reads_per_s) == 3 and min(rates.reads_per_s) > 0 for rates in found.values())


def test_a_command_is_measured_with_its_children() -> None:
    parent = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'bytearray(200 << 20)']))"

    run = timed("two processes", [sys.executable, "-c", parent])

    assert run.is_done
    assert run.peak_bytes > 200 << 20
    assert run.cpu_s > 0
    assert not timed("fails", [sys.executable, "-c", "raise SystemExit(3)"]).is_done


def test_commands_one_after_the_other_are_added_up() -> None:
    assert total("both", [RUN, Run("tool", 1.0, 0.5, 300, is_done=True)]) == Run("both", 3.0, 1.5, 300, is_done=True)


def test_ratios_are_to_the_first_run_and_failed_runs_have_no_figures() -> None:
    slower = Run("slower", wall_s=4.0, cpu_s=3.0, peak_bytes=100, is_done=True)
    failed = Run("broken", wall_s=0.1, cpu_s=0.1, peak_bytes=100, is_done=False)
    found = IngestBenchmark(2, 10, 64, pixel_bytes=1_000_000, runs=(RUN, slower, failed))

    assert all(len(row) == len(COLUMNS) for row in found.rows())
    assert found.rows()[1][5:7] == ("2.000", "3.000")
    assert found.rows()[2][1] == "failed"
    assert found.to_json()["runs"][1]["cpu_ratio"] == 3


def test_ingest_is_measured_beside_the_tools_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = shutil.which("dcm2niix")
    monkeypatch.setattr(shutil, "which", lambda name: installed if name == "dcm2niix" else None)

    found = bench_ingest(num_series=1, num_slices=8, size=32)

    names = [run.name for run in found.runs]
    assert names[:2] == ["medssl, 1 worker", "medssl, again"]
    assert len(names) == 2 + 2 * (installed is not None)
    assert all(run.is_done for run in found.runs)
    assert found.pixel_bytes == 8 * 32 * 32 * 2


def test_bench_read_prints_a_table_or_json(tmp_path: Path) -> None:
    options = ["read", "--slices", "6", "--size", "24", "--reads", "1"]

    text = CliRunner().invoke(app, options)
    document = CliRunner().invoke(app, [*options, "--json"])

    assert text.exit_code == 0
    assert "memory map" in text.stdout
    assert {entry["storage"] for entry in json.loads(document.stdout)} >= {
        "medssl cache, kept open",
        "memory map, kept open",
    }


def test_memory_is_measured_of_a_large_series_and_of_many_small_files() -> None:
    large, small = bench_memory(num_slices=6, size=24, num_files=150)

    assert large.is_done
    assert small.is_done
    assert small.name == "150 files of 16 x 16"
    assert min(large.peak_bytes, small.peak_bytes) > 10_000_000  # no Python with numpy is smaller


def test_a_peak_is_held_against_its_limit() -> None:
    rows = [Peak("x", 1.0, 1.0, peak, 100, is_done=True).row() for peak in (99, 100)]

    assert [len(row) for row in rows] == [len(MEMORY_COLUMNS)] * 2
    assert [row[-1] for row in rows] == ["yes", "no"]


def test_small_files_are_images_of_their_own(tmp_path: Path) -> None:
    write_tiny_series(tmp_path, num_files=250)

    headers = [header for path in sorted(tmp_path.rglob("*.dcm")) for header in read_headers(path)]
    parts, refusals = group_headers(headers)

    assert len(headers) == 300  # whole series of 100
    assert len(parts) == 3
    assert refusals == []
    assert len({read_series(part).volume.voxels.tobytes() for part in parts}) == 3
    assert len({part.identity.patient for part in parts}) == 3


def test_steps_are_timed_in_turn_and_set_against_the_released_one(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def contender(name: str, queries: int) -> tuple[str, tuple[int, tuple[int, int, int], object]]:
        return name, (queries, (6, 6, 4), lambda canvases, number: turns.append(f"{name} {tuple(canvases.shape)}"))

    kinds = [contender(pretrain.RELEASED_V2, 2), contender("ours", 8)]
    monkeypatch.setattr(pretrain, "_contenders", lambda setting, device: iter(kinds))
    monkeypatch.setattr(pretrain, "_loader_rates", lambda *sizes: {0: 4.0, 2: 6.0})

    found = pretrain.bench_pretrain(pretrain.Setting(12, (2, 2, 4)), rounds=2)

    assert turns == ["released v2 (2, 1, 6, 6, 4)", "ours (2, 1, 6, 6, 4)"] * 2
    assert [step.queries for step in found.steps] == [4, 16]
    assert all(len(row) == len(pretrain.COLUMNS) for row in found.rows())
    assert found.rows()[0][-2:] == ("1.00", "1.00")
    assert json.loads(json.dumps(found.to_json()))["steps"][1]["queries"] == 16


def test_ratios_count_queries_not_steps() -> None:
    released = pretrain.StepTime("released", 2, wall_s=1.0, cpu_s=2.0)
    ours = pretrain.StepTime("ours", 8, wall_s=2.0, cpu_s=2.0)

    assert ours.ratios(released) == (2.0, 4.0)  # 4 times the queries in twice the time, in the same CPU time


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_loader_delivers_whole_canvases_with_and_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "START_METHOD", "fork")

    rates = pretrain._loader_rates((8, 8, 4), batch_size=1, volumes=2, num_batches=2)

    assert list(rates) == [0, 2]
    assert min(rates.values()) > 0


def test_a_cache_of_very_many_items_is_measured_stage_by_stage() -> None:
    stages = bench_catalog(40)

    assert stages[0].name == "open the catalog"
    assert all(len(stage.row()) == len(CATALOG_COLUMNS) for stage in stages)
    peaks = [stage.peak_bytes for stage in stages]
    assert peaks == sorted(peaks)


@pytest.mark.parametrize("scan", ["nifti", "dicom"])
def test_what_comes_before_the_first_tile_is_told_of_the_command_itself(tmp_path: Path, scan: str) -> None:
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    told = CliRunner().invoke(
        app,
        ["infer", "--first-tile", "--model", str(model), "--scan", scan, "--size", "16", "--slices", "8", "--json"],
        catch_exceptions=False,
    )

    loaded, first = json.loads(told.stdout)
    assert (loaded["name"], first["name"]) == ("model is loaded", "first tile")
    assert 0 < loaded["cpu_s"] <= first["cpu_s"]
    assert 0 < first["others_cpu_s"] < first["cpu_s"]


def test_kills_come_at_different_moments() -> None:
    assert len({round(moment) for moment in _moments(1000, 50)}) > 40
