"""Codes of one input: a file, a series, an answer of a PACS."""

from typing import Final

from medssl_cli.base.codes.code import Code

INPUT_CODES: Final[dict[str, Code]] = {
    # Discovery
    "S_NOT_AN_IMAGE": Code(
        "Not an image: no known signature", "nothing; if it is an image, export it as DICOM or NIfTI"
    ),
    "S_NON_IMAGE": Code(
        "A DICOM object that holds no image (report, structure set, presentation state)",
        "nothing; its images are in other files",
    ),
    "S_LOCALIZER": Code("A localizer (scout) image", "nothing; scouts are not training data"),
    "S_SECONDARY_CAPTURE": Code(
        "A screenshot or other secondary capture", "export the original series instead of a screenshot of it"
    ),
    "S_UNSUPPORTED_MODALITY": Code(
        "An image of a modality that this version does not take", "nothing; convert it to NIfTI if you need it"
    ),
    "S_PREDICTION": Code(
        "A mask, segmentation or preview that medssl infer wrote: neither a scan nor a reference label",
        "nothing; medssl ingest --predictions takes them as labels",
    ),
    "S_LABEL_MAP": Code(
        "By its name or folder a label map of another image, so it is not segmented",
        "name the file itself to segment it",
    ),
    "S_OTHER_CHANNEL": Code(
        "An image of a channel that the model does not take, so it is not looked at",
        "nothing; if its name misleads, medssl infer --channel NAME=PATH says which channel it is",
    ),
    "S_NOT_CHOSEN": Code(
        "A scan that no rule of --series chooses", "nothing; the message says which condition does not hold"
    ),
    "S_DUPLICATE": Code("The same file, or the same bytes, as another one that is taken", "nothing; it is taken once"),
    "S_SPECIAL_FILE": Code("Not a regular file (pipe, socket, device)", "nothing; only regular files are read"),
    "S_LINK_OUTSIDE": Code(
        "A symbolic link that leaves the input folder or leads nowhere", "name the folder it points to as another input"
    ),
    "S_ARCHIVE": Code(
        "An archive; unpack it first", "unpack it and name the folder; zip archives are read as they are"
    ),
    "S_TIME_SERIES": Code(
        "A time series of which single frames lie beside it as images of their own",
        "nothing; to take all of its images, ingest it alone with --split-4d",
    ),
    "S_LABEL_PART": Code(
        "A part of a label map, or the drawing of one reader, beside the label map that was made from all of them",
        "nothing; to take it as a label map of its own, put it into a folder labels with the name of its image",
    ),
    "S_DERIVED": Code("A derived image (projection, subtraction, reformatted)", "export the original series"),
    "E_ARCHIVE": Code("The archive cannot be read", "copy or download the archive again, or unpack it yourself"),
    "E_ARCHIVE_CRC": Code("A member of the archive is damaged", "copy or download the archive again"),
    "E_ARCHIVE_ENCRYPTED": Code("The archive is encrypted", "unpack it yourself, and name the folder"),
    "E_ARCHIVE_OVERLAP": Code(
        "Members of the archive overlap: it was made to deceive", "do not trust its sender; ask for plain files"
    ),
    "E_ARCHIVE_BOMB": Code(
        "The archive unpacks to more than the limit", "unpack it yourself if you trust it, and name the folder"
    ),
    "E_NESTED_ARCHIVE": Code("An archive inside an archive", "unpack the outer archive, and name the folder"),
    "S_SIDECAR": Code(
        "A file that describes a data set and holds no image",
        "nothing; what it says about images is used where it can be",
    ),
    "E_PERMISSION": Code(
        "The file cannot be read with the permissions of this user",
        "run as a user who may read it, or change its permissions",
    ),
    "E_CHANGED_DURING_READ": Code(
        "The file changed while it was read", "run the same command again when nothing writes to the input any more"
    ),
    # Parsing
    "E_DICOM_PARSE": Code("The file says it is DICOM and cannot be parsed", "retrieve the file again"),
    "E_TRUNCATED": Code("The file ends before its data do", "copy or retrieve the file again"),
    "E_DICOM_DEPTH": Code(
        "The data set is nested deeper than the limit",
        "no scanner writes this; retrieve the file again, or leave it out",
    ),
    "E_DICOM_TOO_BIG": Code(
        "The data set has more elements or a longer header than the limit",
        "no scanner writes this; retrieve the file again, or leave it out",
    ),
    "E_DICOM_LENGTH": Code("An element claims to be longer than the file", "retrieve the file again"),
    "E_DEFLATE_BOMB": Code(
        "The deflated data set unpacks to more than the limit",
        "do not trust its sender; retrieve the file again, or leave it out",
    ),
    "W_PREAMBLE_NONZERO": Code(
        "The 128 bytes before the DICOM signature are not empty; they were not read",
        "nothing; TIFF files in two formats look like this, and disguised programs do",
    ),
    "E_PIXEL_LENGTH": Code("The pixel data are longer or shorter than the header says", "retrieve the file again"),
    "E_PIXEL_DECODE": Code("The pixel data cannot be decoded", "retrieve the file again, or ask for it uncompressed"),
    "E_CODESTREAM_MISMATCH": Code(
        "The compressed image and the DICOM header disagree on size, precision or sign",
        "retrieve the file again; if it stays so, ask for it uncompressed",
    ),
    "E_DECODER_CRASH": Code(
        "The decoder process died or hung on this series", "retrieve the series again, or ask for it uncompressed"
    ),
    "E_TOO_BIG": Code(
        "The image is larger than the limit",
        "if it is real and the memory suffices, raise --max-volume-gib of medssl ingest or medssl infer",
    ),
    "E_PHOTOMETRIC": Code(
        "Colour, palette or an unknown photometric interpretation", "export the image in grey values"
    ),
    "E_NO_SERIES_UID": Code(
        "The file does not say to which study and series it belongs",
        "export the series again from where it is archived; slices without these identifiers cannot be put together",
    ),
    "E_VALUE_INVALID": Code(
        "A header value that places or scales a voxel is missing, malformed or contradicts itself",
        "retrieve the file again, or have its header corrected where it was made",
    ),
    "E_ENHANCED_UNSUPPORTED": Code("Enhanced multi-frame DICOM is not supported yet", "export single-frame images"),
    "E_MOSAIC_UNSUPPORTED": Code(
        "Siemens mosaics are not supported yet",
        "export one picture per slice, or keep the private elements of group 0029",
    ),
    "E_DEFLATED": Code(
        "Deflated DICOM is not supported yet", "update medssl: deflated files are read now", is_retired=True
    ),
    "E_NIFTI_HEADER": Code("The NIfTI header is not valid", "write the file again with the program that made it"),
    "E_NIFTI_DIMS": Code(
        "The dimensions of the NIfTI file are impossible", "write the file again with the program that made it"
    ),
    "E_NRRD_HEADER": Code(
        "The NRRD header is not valid or not supported",
        "write the file again, as one NRRD file with raw or gzip encoding",
    ),
    "E_METAIMAGE_HEADER": Code(
        "The MetaImage header is not valid or not supported", "write the file again, as one .mha file"
    ),
    "E_DETACHED_DATA": Code(
        "The voxels lie in another file", "write header and data into one file, or pass --allow-detached"
    ),
    "E_PICTURE_PARSE": Code("The picture cannot be read", "copy or export the picture again"),
    "E_4D_INPUT": Code(
        "The image has more than three dimensions", "pass --split-4d (NIfTI), or write each 3D image to its own file"
    ),
    "E_DATATYPE": Code(
        "Complex, colour or other voxel types that cannot be used",
        "write the image with integer or real voxels, one value each",
    ),
    "E_SCALE": Code(
        "An impossible intensity scale factor", "write the file again with a slope that is right, or with none"
    ),
    "E_NONFINITE_VOXELS": Code(
        "The image holds NaN or infinite voxels", "find out where they come from, or pass --nonfinite=background"
    ),
    "E_GZ_CRC": Code("The gzip stream is damaged: checksum or length do not match", "copy or download the file again"),
    "E_GZ_TRUNCATED": Code("The gzip stream ends too early", "copy or download the file again"),
    "E_GZ_TRAILING": Code("Bytes follow the gzip stream", "copy or download the file again, or compress it again"),
    "E_GZ_BOMB": Code(
        "The gzip stream unpacks to more than the header announces",
        "copy or download the file again; no program writes such a file by itself",
    ),
    "W_SCL_IGNORED": Code(
        "An intercept without a slope in the NIfTI header was ignored",
        "compare the values with those of the program that wrote it",
    ),
    "W_EXTENSION_MISMATCH": Code(
        "File name and content disagree about compression", "nothing; the content was read for what it is"
    ),
    # Geometry
    "E_GEOM_MISSING": Code(
        "Position, orientation or spacing is missing", "retrieve the series again from where its headers are complete"
    ),
    "E_TOO_FEW_SLICES": Code(
        "Fewer than four slices do not make a volume", "retrieve the series again, or pass --min-slices"
    ),
    "E_MISSING_SLICES": Code(
        "Slices are missing: some gaps are multiples of the spacing",
        "retrieve the series again, or pass --gaps=interpolate",
    ),
    "E_SPACING_NOT_UNIFORM": Code("The distance between slices changes", "export the series with equal slice spacing"),
    "E_SPACING_INVALID": Code(
        "A voxel spacing is zero, negative or not finite", "write or export the image again with its true spacing"
    ),
    "E_GANTRY_TILT": Code(
        "The slices are stacked at an angle (gantry tilt)",
        "export the series corrected for gantry tilt, or pass --tilt=resample",
    ),
    "E_PIXEL_SPACING_VARIES": Code(
        "The pixel spacing differs between slices",
        "retrieve the series again; export reconstructions as series of their own",
    ),
    "E_MATRIX_VARIES": Code(
        "The image matrix differs between slices", "export images of different size as series of their own"
    ),
    "E_ORIENTATION_VARIES": Code(
        "The slice orientation differs within the series", "export each orientation as a series of its own"
    ),
    "E_IOP_NOT_ORTHONORMAL": Code(
        "The direction cosines are not orthonormal", "retrieve the series again; the header is damaged"
    ),
    "E_FRAME_OF_REFERENCE_VARIES": Code(
        "The frame of reference differs within the series", "export each frame of reference as a series of its own"
    ),
    "E_DUP_POSITION": Code(
        "Several slices share a position and nothing tells them apart consistently",
        "export each time point, echo or phase as its own series",
    ),
    "E_DUP_SOP_CONFLICT": Code(
        "The same SOP Instance UID occurs with different bytes", "remove the wrong copy, or retrieve the series again"
    ),
    "E_PATIENT_MIX": Code(
        "One series carries several patient identities",
        "find out whose series it is, and correct it where it is archived",
    ),
    "E_GEOMETRY_INEXACT": Code(
        "The slices do not fit one affine within tolerance",
        "retrieve the series again, or export it reconstructed on straight slices",
    ),
    "E_NO_ORIENTATION": Code(
        "The file does not say how the image lies in the patient",
        "if you know it, pass for example --assume-orientation=RAS",
    ),
    "E_AFFINE_INVALID": Code(
        "The affine is singular or not finite", "write the file again with the program that made it"
    ),
    "E_PIXDIM_MISMATCH": Code(
        "Voxel sizes and affine disagree", "write the file again with a header that agrees with itself"
    ),
    "E_SFORM_QFORM_CONFLICT": Code(
        "The two affines of the NIfTI file disagree",
        "find out which is right, then pass --nifti-affine=sform or --nifti-affine=qform",
    ),
    "E_AFFINE_SHEAR": Code(
        "The axes of the image are not orthogonal", "pass --shear=resample, or resample it yourself"
    ),
    "W_AFFINE_ORTHONORMALISED": Code(
        "A negligible shear was removed from the affine", "nothing; it moved no corner by more than the tolerance"
    ),
    "W_SLICE_JITTER": Code(
        "Slice positions deviate a little from one affine", "nothing; no corner is off by more than the tolerance"
    ),
    "W_INSTANCE_GAP": Code(
        "Instance numbers have gaps: the first or last slices may be missing",
        "compare the number of slices with the archive's",
    ),
    "W_SPLIT_BY_INSTANCE": Code(
        "Only instance numbers tell the time points or directions of this series apart",
        "look at one image of each part",
    ),
    "E_INCOMPLETE_SERIES": Code(
        "A file of the series was refused, or fewer instances arrived than the series has",
        "retrieve the series again, or pass --gaps=interpolate to take what is left",
    ),
    "W_INCOMPLETE_SERIES": Code(
        "A file of this series, or one beside it that does not say of which, was refused: slices may be missing",
        "compare the number of slices with the archive's; retrieve the refused files again",
    ),
    "W_SPLIT_BY_ORDER": Code(
        "Only the order of times at each slice tells the phases of this series apart",
        "look at one image of each part",
    ),
    "E_NO_PATIENT_GEOMETRY": Code(
        "An image of this kind has no place in the patient that could be trusted",
        "nothing; films and pictures without a place are not volumes",
    ),
    # Meaning of the pixels
    "W_HU_IMPLAUSIBLE": Code(
        "CT values are outside of what Hounsfield units allow",
        "look at the image; a wrong rescale slope or an export program may be the cause",
    ),
    "W_POLARITY": Code(
        "Photometric interpretation and presentation LUT shape disagree about what is bright",
        "look at the picture: bone is bright; export it again with a header that agrees with itself",
    ),
    "W_PADDING": Code(
        "Padding of the picture was brighter than what it shows and has its lowest value now",
        "nothing; there was no X-ray",
    ),
    "W_HIGH_BITS": Code("Bits above BitsStored were set and masked", "nothing; overlays were drawn in these bits"),
    "W_LOSSY": Code("The image was compressed with loss", "if small detail matters, ask for the original"),
    "W_CONSTANT_IMAGE": Code("All voxels have the same value", "look at the image; it may be empty"),
    "E_BURNED_IN": Code(
        "Writing is burned into the picture, or may be",
        "mask the writing first; or, if nobody can be recognised, pass --burned-in=accept or accept-risk",
    ),
    "W_BURNED_IN_UNKNOWN": Code(
        "The header does not say whether writing is burned into the picture",
        "look at the pictures in the page of the report; --burned-in=refuse leaves them out",
    ),
    "W_SUV_UNAVAILABLE": Code(
        "Uptake by body weight does not follow from the header; values stay as the scanner wrote them",
        "if you need SUV, retrieve the series with its complete header",
    ),
    "W_DERIVED": Code("A derived image was accepted", "look at the image before training on it"),
    "W_UNKNOWN_MODALITY": Code("The modality is not known", "pass --modality if you know it"),
    "W_MODALITY_CHANGED": Code(
        "The same voxels were in the cache under another modality; this one counts from now on",
        "nothing if the new modality is right; else ingest once more with the right --modality",
    ),
    "W_CHANNELS": Code(
        "Several images of one case are stored as an image each, with its channel and the case that they share",
        "nothing; medssl cache ls says which channel an image is, and a recipe names those that it takes",
    ),
    "W_OTHER_CHANNEL": Code(
        "The same image is in the cache as another channel or of another case; it stays what it was first called",
        "nothing if both names are right; else ingest its case into a new cache, with --channel where no name says it",
    ),
    "W_PICTURE_SLICE": Code(
        "The picture may be a slice of a volume; it is an image of its own",
        "if they are slices, ingest the series as DICOM or NIfTI, which know where each lies, or pass --stack-pictures",
    ),
    "W_PICTURE_STACK": Code(
        "Numbered pictures of a folder are a volume; how far apart they lie is not known, 1 mm is assumed",
        "nothing where millimetres do not matter; else ingest the series as DICOM or NIfTI",
    ),
    "W_ONE_PATIENT": Code(
        "Files of different names count as one patient because of one number in all of them",
        "nothing if they are of one person; else pass --patient-pattern with the part of a name that says whose it is",
    ),
    "W_NO_PATIENT_KEY": Code(
        "No patient identity: grouped by study or file instead",
        "pass --patient-pattern if names of files tell patients apart, those of DICOM files too",
    ),
    # A PACS
    "E_PACS": Code(
        "The PACS cannot be reached or answers with an error",
        "check host, port and path; --ca-bundle trusts a hospital's own certificates",
    ),
    "E_PACS_BUSY": Code(
        "The PACS is busy or failing; what is retrieved is kept",
        "run the same command again later: what arrived is kept",
    ),
    "E_PACS_DENIED": Code(
        "The PACS refused the credentials", "set MEDSSL_PACS_TOKEN, or MEDSSL_PACS_USER and MEDSSL_PACS_PASSWORD_FILE"
    ),
    "E_INCOMPLETE_RETRIEVE": Code(
        "Not all instances of the series arrived", "run the same command again: what arrived is kept"
    ),
    "E_UID_MISMATCH": Code(
        "The PACS sent an instance of another study or series than was asked for",
        "tell the operator of the PACS: images may be filed under a wrong patient",
    ),
}
