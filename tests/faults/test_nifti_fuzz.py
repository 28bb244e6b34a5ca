"""Damaged files: each is refused with a code or read without loss; nothing else may happen.

Every mutant is a function of its number, so a failure can be repeated.
"""

import gzip
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import InputError
from medssl_cli.formats.gzip_strict import gzip_bytes
from medssl_cli.formats.nifti import decode_nifti, encode_nifti
from medssl_cli.formats.sniff import sniff

NUM_FLIPS = 400
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
AFFINE = np.array([[0.75, 0, 0, -10], [0, 0.5, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]], dtype=np.float64)
PLAIN = encode_nifti(VOXELS, AFFINE)
PACKED = gzip_bytes(PLAIN)


def outcome(data: bytes) -> str:
    """The code of the refusal, or "same" or "other" for what was read."""
    try:
        _, voxels, affine, _ = decode_nifti(data)
    except InputError as error:
        return error.code if error.code in CODES and len(error.message) <= 300 else "other"
    assert np.isfinite(affine).all()
    return "same" if np.array_equal(voxels, VOXELS) and np.array_equal(affine, AFFINE) else "other"


def flipped(data: bytes, bit: int) -> bytes:
    mutant = bytearray(data)
    mutant[bit // 8] ^= 1 << (bit % 8)
    return bytes(mutant)


@pytest.mark.parametrize("packed", [PACKED, gzip.compress(PLAIN)], ids=["ours", "python's"])
def test_no_flipped_bit_of_a_compressed_file_is_accepted_with_other_content(packed):
    bits = np.random.default_rng(1).choice(8 * len(packed), NUM_FLIPS, replace=False)

    outcomes = [outcome(flipped(packed, int(bit))) for bit in bits]

    # Some bits mean nothing: time and system name in the header, padding, one run of zeros copied from another place.
    assert "other" not in outcomes
    assert outcomes.count("same") < NUM_FLIPS // 10


def test_no_shortened_compressed_file_is_accepted():
    lengths = range(len(PACKED))

    assert {outcome(PACKED[:length]) for length in lengths} <= {"E_GZ_TRUNCATED", "E_NIFTI_HEADER"}


def test_every_flipped_bit_of_the_header_gives_a_code_or_finite_geometry():
    outcomes = [outcome(flipped(PLAIN, bit)) for bit in range(8 * 352)]

    # Fields that no reader may use (intent, slice times, description, cal_*) leave image and place as they are.
    assert outcomes.count("same") > 1000
    assert len(set(outcomes) - {"same", "other"}) >= 8


@pytest.mark.parametrize("seed", range(300))
def test_random_damage_gives_codes_only(seed):
    generator = np.random.default_rng(seed)
    mutant = bytearray(PLAIN if seed % 2 else PACKED)
    match seed % 3:
        case 0:
            start = int(generator.integers(0, len(mutant)))
            mutant[start : start + 8] = generator.bytes(8)
        case 1:
            del mutant[int(generator.integers(0, len(mutant))) :]
        case _:
            start = int(generator.integers(0, min(352, len(mutant))))
            mutant[start:start] = generator.bytes(int(generator.integers(1, 50)))

    outcome(bytes(mutant))


@pytest.mark.parametrize("seed", range(100))
def test_random_headers_never_allocate_or_crash(seed):
    generator = np.random.default_rng(seed)
    header = bytearray(generator.bytes(352))
    header[:4], header[344:348], header[123] = PLAIN[:4], PLAIN[344:348], 2
    header[40:56] = generator.integers(-2, 9 if seed % 2 else 32767, 8).astype("<i2").tobytes()
    header[70:74] = PLAIN[70:74]
    header[108:112] = PLAIN[108:112]

    assert outcome(bytes(header) + bytes(64)) != "same"


def test_recognition_takes_any_bytes():
    for seed in range(200):
        generator = np.random.default_rng(seed)
        data = generator.bytes(int(generator.integers(0, 600)))
        kind, code = sniff(data, Path("x.dcm").name)
        assert (kind == "other") == bool(code)
