"""The NIfTI header: fields, affines and the rules by which they may be trusted."""

import struct
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from medssl_cli.base.errors import InputError
from medssl_cli.formats.affines import MAX_SIDE, Placement, assumed_affine, assumed_repair, checked, placed
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.quaternions import quaternion_of, rotation_of, within_rounding
from medssl_cli.imaging.geometry import (
    Affine,
    Shape,
    corner_displacement_mm,
    displacement_limit_mm,
    orthonormalised,
    spacing_mm,
)

LARGEST_HEADER: Final = 540
MAX_SPACING_ERROR: Final = 1e-3
MAX_SHEAR: Final = 0.1
_TYPES: Final = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_MILLIMETRES: Final = 2
_SCANNER: Final = 1
_LAST_CODE: Final = 5


@dataclass(frozen=True)
class _Layout:
    """Size, magic and struct formats with offsets of one NIfTI version."""

    size: int
    magic: bytes
    fields: dict[str, tuple[str, int]]


_NIFTI1: Final = _Layout(
    348,
    b"n+1\0",
    {
        "size": ("i", 0), "dim": ("8h", 40), "datatype": ("h", 70), "bitpix": ("h", 72), "pixdim": ("8f", 76),
        "vox_offset": ("f", 108), "slope": ("f", 112), "intercept": ("f", 116), "units": ("b", 123),
        "description": ("80s", 148), "intent_name": ("16s", 328),
        "qform_code": ("h", 252), "sform_code": ("h", 254), "quaternion": ("3f", 256),
        "qoffset": ("3f", 268), "srow": ("12f", 280), "magic": ("4s", 344),
    },
)  # fmt: skip
_NIFTI2: Final = _Layout(
    540,
    b"n+2\0\r\n\x1a\n",
    {
        "size": ("i", 0), "magic": ("8s", 4), "datatype": ("h", 12), "bitpix": ("h", 14), "dim": ("8q", 16),
        "pixdim": ("8d", 104), "vox_offset": ("q", 168), "slope": ("d", 176), "intercept": ("d", 184),
        "description": ("80s", 240), "intent_name": ("16s", 508),
        "qform_code": ("i", 344), "sform_code": ("i", 348), "quaternion": ("3d", 352),
        "qoffset": ("3d", 376), "srow": ("12d", 400), "units": ("i", 500),
    },
)  # fmt: skip
_GEOMETRY: Final = ("pixdim", "units", "qform_code", "sform_code", "quaternion", "qoffset", "srow")


@dataclass(frozen=True)
class NiftiHeader:
    """The fields that matter, after validation of sizes and types; the affines are judged by `world_placement`.

    `shape` is that of one 3D image; the file holds `num_images` of them, one after the other.
    """

    raw: bytes
    num_dimensions: int
    shape: Shape
    num_images: int
    dtype: np.dtype[Any]
    pixdim: tuple[float, ...]
    voxel_offset: int
    slope: float
    intercept: float
    qform_code: int
    sform_code: int
    quaternion: tuple[float, float, float]
    qoffset: tuple[float, float, float]
    srow: tuple[float, ...]

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels of all images."""
        x, y, z = self.shape
        return x * y * z * self.num_images * self.dtype.itemsize


def is_nifti(head: bytes) -> bool:
    """Whether bytes begin like a NIfTI header (single file or detached, version 1 or 2, either byte order)."""
    size = head[:4]
    if size in (struct.pack("<i", 348), struct.pack(">i", 348)):
        return head[344:348] in (b"n+1\0", b"ni1\0")
    return size in (struct.pack("<i", 540), struct.pack(">i", 540)) and head[4:8] in (b"n+2\0", b"ni2\0")


def parse_header(head: bytes, *, allow_4d: bool = False) -> NiftiHeader:
    """Parse and validate the first bytes of an unpacked file.

    Args:
        head: `LARGEST_HEADER` bytes, or all if there are fewer.
        allow_4d: Several 3D images may follow each other along the fourth dimension.

    Raises:
        InputError: `E_NIFTI_HEADER`, `E_NIFTI_DIMS`, `E_4D_INPUT`, `E_DATATYPE`, `E_TRUNCATED`.
    """
    layout, order = _layout_of(head)
    fields: dict[str, Any] = {}
    for name, (code, offset) in layout.fields.items():
        values = struct.unpack_from(order + code, head, offset)
        fields[name] = values if len(values) > 1 else values[0]
    if fields["magic"] != layout.magic:
        raise InputError("E_NIFTI_HEADER", "not a single-file NIfTI (detached .hdr/.img pairs are not read)")
    if (fields["units"] & 7) not in (0, _MILLIMETRES):
        raise InputError("E_NIFTI_HEADER", "the unit of length is not the millimetre")
    if max(fields["sform_code"], fields["qform_code"]) > _LAST_CODE:
        raise InputError("E_NIFTI_HEADER", "a code of an affine that the format does not define")
    minimum = layout.size + 4
    offset = fields["vox_offset"]
    if not minimum <= offset < 2**62 or offset != int(offset):
        raise InputError("E_NIFTI_HEADER", f"the voxels cannot begin at byte {offset:g}")
    shape, num_images = _shape(fields["dim"], allow_4d=allow_4d)
    return NiftiHeader(
        raw=head[: layout.size],
        num_dimensions=fields["dim"][0],
        shape=shape,
        num_images=num_images,
        dtype=_dtype(fields["datatype"], fields["bitpix"], order),
        voxel_offset=int(offset),
        **{name: fields[name] for name in _PLAIN_FIELDS},
    )


_PLAIN_FIELDS: Final = (
    "pixdim", "slope", "intercept", "qform_code", "sform_code", "quaternion", "qoffset", "srow",
)  # fmt: skip


def _layout_of(head: bytes) -> tuple[_Layout, Literal["<", ">"]]:
    if len(head) < 4:
        raise InputError("E_NIFTI_HEADER", "shorter than any NIfTI header")
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for layout in (_NIFTI1, _NIFTI2):
        for order in orders:
            if struct.unpack_from(order + "i", head)[0] == layout.size:
                if len(head) < layout.size:
                    raise InputError("E_TRUNCATED", f"{len(head)} bytes of a {layout.size}-byte header")
                return layout, order
    raise InputError("E_NIFTI_HEADER", "the first four bytes are not those of a NIfTI header")


def _shape(dim: tuple[int, ...], *, allow_4d: bool) -> tuple[Shape, int]:
    num_dimensions = dim[0]
    if not 2 <= num_dimensions <= 7:
        raise InputError("E_NIFTI_DIMS", f"{num_dimensions} dimensions")
    used = dim[1 : 1 + num_dimensions]
    if not all(1 <= size <= MAX_SIDE for size in used):
        raise InputError("E_NIFTI_DIMS", f"dimensions {used}")
    if any(size != 1 for size in used[4 if allow_4d else 3 :]):
        hint = "" if any(size != 1 for size in used[4:]) else "pass --split-4d to take each 3D image of the file"
        raise InputError("E_4D_INPUT", f"dimensions {used}", hint=hint)
    x, y, z, *others = (*used, 1, 1)
    return (x, y, z), others[0]


def _dtype(code: int, bitpix: int, order: str) -> np.dtype[Any]:
    if code not in _TYPES:
        raise InputError("E_DATATYPE", f"voxel type {code} (complex, colour or unknown)")
    dtype = np.dtype(order + _TYPES[code])
    if bitpix != 8 * dtype.itemsize:
        raise InputError("E_NIFTI_HEADER", f"voxel type {code} has {8 * dtype.itemsize} bits, the header says {bitpix}")
    return dtype


def world_placement(header: NiftiHeader, policy: Policy = STRICT, *, is_label: bool = False) -> Placement:
    """Where the voxels lie: the one RAS affine that the header's statements agree on, or that the policy chooses.

    Raises:
        InputError: `E_NO_ORIENTATION`, `E_AFFINE_INVALID`, `E_SFORM_QFORM_CONFLICT`, `E_PIXDIM_MISMATCH`,
            `E_AFFINE_SHEAR`, `E_SPACING_INVALID`.
    """
    affine, repairs = _stated_affine(header, policy)
    placement = placed(affine, header.shape, policy, is_label=is_label)
    return replace(placement, repairs=(*repairs, *placement.repairs))


def stated_placement(header: NiftiHeader) -> Placement:
    """Where the header says that the voxels lie, with whatever shear: for checking what was written.

    Raises:
        InputError: As `world_placement`, without `E_AFFINE_SHEAR`.
    """
    return Placement(_stated_affine(header, STRICT)[0], header.shape)


def geometry_bytes(head: bytes) -> tuple[bytes, ...]:
    """All fields of a header that say where voxels lie, as they are."""
    layout, order = _layout_of(head)
    places = [layout.fields[name] for name in _GEOMETRY]
    return tuple(head[offset : offset + struct.calcsize(order + code)] for code, offset in places)


def _stated_affine(header: NiftiHeader, policy: Policy) -> tuple[Affine, tuple[str, ...]]:
    """The affine as stated, and how the policy chose it if there was a choice."""
    has_sform, has_qform = header.sform_code > 0, header.qform_code > 0
    if not has_sform and not has_qform:
        return assumed_affine(policy, _lengths(header)), (assumed_repair(policy),)
    if not has_sform:
        return checked(_qform(header)), ()
    sform = np.array([*np.reshape(header.srow, (3, 4)), (0, 0, 0, 1)], dtype=np.float64)
    repairs: tuple[str, ...] = ()
    if has_qform:
        try:
            _check_agreement(sform, header)
        except InputError:
            if policy.nifti_affine == "agree":
                raise
            repairs = (f"nifti-affine={policy.nifti_affine}",)
            if policy.nifti_affine == "qform":
                return checked(_qform(header)), repairs
    _check_spacing(checked(sform), header)
    return sform, repairs


def _check_agreement(sform: Affine, header: NiftiHeader) -> None:
    checked(sform)
    qforms = [checked(_qform(header, a)) for a in (None, *within_rounding(header.quaternion))]
    distance = min(corner_displacement_mm(sform, qform, header.shape) for qform in qforms)
    if distance > displacement_limit_mm(sform):
        raise InputError(
            "E_SFORM_QFORM_CONFLICT",
            f"the two affines put one voxel {distance:.3g} mm apart",
            hint="find out which one is right, then pass --nifti-affine=sform or --nifti-affine=qform",
        )


def _check_spacing(sform: Affine, header: NiftiHeader) -> None:
    for axis in range(min(3, header.num_dimensions)):
        stated, actual = abs(header.pixdim[1 + axis]), spacing_mm(sform)[axis]
        if not abs(stated - actual) <= MAX_SPACING_ERROR * actual:
            raise InputError("E_PIXDIM_MISMATCH", f"axis {axis}: {stated:g} mm stated, {actual:g} mm in the affine")


def _lengths(header: NiftiHeader) -> tuple[float, float, float]:
    """Voxel size as stated; the missing third one of a 2D image is 1 mm."""
    x, y, z = header.pixdim[1:4]
    return x, y, 1.0 if header.num_dimensions < 3 and not z > 0 else z


def _qform(header: NiftiHeader, a: float | None = None) -> Affine:
    """nifti1.h, method 2: rotation from the quaternion, columns scaled by pixdim, the third one by its sign too.

    Args:
        header: Header with a quaternion.
        a: Its first component, if not the one that follows from the others.

    Raises:
        InputError: `E_AFFINE_INVALID`.
    """
    lengths = _lengths(header)
    rotation = rotation_of(header.quaternion, a)
    if rotation is None or not all(0 < length < np.inf for length in lengths):
        raise InputError("E_AFFINE_INVALID", "the quaternion or the voxel size is impossible")
    handedness = -1.0 if header.pixdim[0] == -1 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array([lengths[0], lengths[1], handedness * lengths[2]])
    affine[:3, 3] = header.qoffset
    return affine


def encode_header(
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    affine: Affine,
    like: bytes | None,
    *,
    description: str,
    intent: str = "",
    num_images: int = 1,
    slope: float = 1.0,
) -> tuple[bytes, np.dtype[Any]]:
    """A header from zeroed bytes, and the dtype with the byte order that its voxels must have.

    See `nifti.encode_nifti` for the other arguments.

    Args:
        num_images: So many images of the shape follow one another.
        slope: Factor of stored values.
    """
    layout, order = _layout_of(like) if like is not None else (_NIFTI1, "<")
    header = bytearray(layout.size + 4)

    def put(name: str, *values: Any) -> None:
        code, offset = layout.fields[name]
        struct.pack_into(order + code, header, offset, *values)

    codes = {kind: code for code, kind in _TYPES.items()}
    kind = f"{dtype.kind}{dtype.itemsize}"
    if kind not in codes:
        raise ValueError(f"NIfTI has no type for {dtype.name} voxels")
    put("size", layout.size)
    put("magic", layout.magic)
    put("dim", 3 if num_images == 1 else 4, *shape, num_images, 1, 1, 1)
    put("datatype", codes[kind])
    put("bitpix", 8 * dtype.itemsize)
    put("vox_offset", layout.size + 4)
    put("slope", slope)
    put("description", description.encode("ascii")[:79])
    put("intent_name", intent.encode("ascii")[:15])
    if like is None:
        for name, values in _geometry_fields(affine, (shape[0], shape[1], shape[2])).items():
            put(name, *values)
    else:
        if parse_header(like).shape != shape:
            raise ValueError(f"shape {shape} is not that of the other file, {parse_header(like).shape}")
        for name in _GEOMETRY:
            code, offset = layout.fields[name]
            end = offset + struct.calcsize(order + code)
            header[offset:end] = like[offset:end]
    return bytes(header), dtype.newbyteorder(order)


def _geometry_fields(affine: Affine, shape: Shape) -> dict[str, tuple[float, ...]]:
    """Both affines of a header from one. What a rotation in 32 bits cannot hold leaves the qform unused.

    The slices of a series may lean a little, which only the sform can say; nothing that leans a lot comes from here.
    """
    checked(affine)
    straight = orthonormalised(affine)
    limit = displacement_limit_mm(affine)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if (shear := float(np.abs(axes.T @ axes - np.eye(3)).max())) > MAX_SHEAR:
        raise InputError("E_AFFINE_SHEAR", f"cosines of up to {shear:.3g} between the axes")
    lengths = np.array(spacing_mm(straight), dtype=np.float32)
    rotation = straight[:3, :3] / np.array(spacing_mm(straight))
    handedness = -1.0 if np.linalg.det(rotation) < 0 else 1.0
    rotation = rotation * np.array([1.0, 1.0, handedness])
    quaternion = quaternion_of(rotation).astype(np.float32)
    offset = affine[:3, 3].astype(np.float32)
    fields: dict[str, tuple[float, ...]] = {
        "pixdim": (handedness, *map(float, lengths), 0, 0, 0, 0),
        "units": (_MILLIMETRES,),
        "sform_code": (_SCANNER,),
        "srow": tuple(map(float, affine[:3].astype(np.float32).ravel())),
        "quaternion": tuple(map(float, quaternion)),
        "qoffset": tuple(map(float, offset)),
    }
    blank = NiftiHeader(
        raw=b"", num_dimensions=3, shape=shape, num_images=1, dtype=np.dtype("u1"),
        pixdim=fields["pixdim"], voxel_offset=0, slope=1, intercept=0, qform_code=1, sform_code=1,
        quaternion=tuple(map(float, quaternion)),  # type: ignore[arg-type]
        qoffset=tuple(map(float, offset)), srow=fields["srow"],  # type: ignore[arg-type]
    )  # fmt: skip
    is_held = corner_displacement_mm(_qform(blank), affine, shape) <= limit
    return {**fields, "qform_code": (_SCANNER if is_held else 0,)}
