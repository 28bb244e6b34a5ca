"""Codes of labels: label maps, segmentations, contours, boxes, tables of findings."""

from typing import Final

from medssl_cli.base.codes.code import Code

LABEL_CODES: Final[dict[str, Code]] = {
    "E_LABEL_GRID_MISMATCH": Code(
        "Label and image do not lie on the same grid",
        "resample the label onto its image with labels kept whole, or draw it again on this image",
    ),
    "E_LABEL_VALUES": Code(
        "The label is not a map of small whole numbers, or has undeclared classes",
        "write whole numbers from 0 to 65535, and name every one in dataset.json if there is one",
    ),
    "E_LABEL_WITHOUT_IMAGE": Code(
        "No image belongs to this label",
        "ingest the image too, now or before; docs/concepts/annotations.md says how labels find images",
    ),
    "E_NAME_COLLISION": Code(
        "Two names of classes become the same once what may not be stored is left out",
        "rename one of them; letters and digits of any script, space and ._+/- are kept, 64 characters at most",
    ),
    "E_NAME_ENCODING": Code(
        "A name holds bytes that are not of the character set that the file declares",
        "correct (0008,0005) where the file was made, or take other structures with --structures",
    ),
    "E_LABEL_AMBIGUOUS": Code(
        "A label may belong to several images and does not say to which",
        "ingest it together with the one image that it was drawn on; in a table, write folders in front of file names",
    ),
    "E_LABEL_CONFLICT": Code(
        "The item has another label of the same set already", "medssl ingest --label-set NAME keeps both"
    ),
    "E_LABEL_FORMAT": Code(
        "The file of labels cannot be read as what it says it is",
        "export it again; docs/concepts/annotations.md says what is read",
    ),
    "E_LABEL_KEYS": Code(
        "Columns of one row name different images, or a mask names an image of one patient and another patient",
        "correct the row, or name the column that counts with --key-column; ask who drew a mask whose it is",
    ),
    "E_LABEL_COLUMN": Code(
        "A column of findings holds something else in some of its rows, and was not taken",
        "write 0, 1, a number between them or nothing; or name the columns to take with --label-column",
    ),
    "E_LABEL_ORIENTATION": Code(
        "The picture was turned as its EXIF orientation says, and nothing says whether its label was drawn before",
        "write the picture the right way up, without an EXIF orientation, and draw the label on it",
    ),
    "E_CONTOUR": Code(
        "Contours do not lie on the slices of their series",
        "export the contours again on the series they were drawn on",
    ),
    "W_CONTOUR_LEFT_OUT": Code(
        "Contours without area (points, open lines, fewer than three corners) were left out",
        "nothing if they are markers; else draw the structure again on these slices",
    ),
    "W_CONTOUR_NESTED": Code(
        "A closed contour inside another one of the same structure was taken for a hole",
        "look at the mask; if both were meant as one area, unite them in the planning system",
    ),
    "W_CONTOUR_OVERLAP": Code(
        "Closed contours of one structure overlap in part on a slice; they were united",
        "look at the mask; nothing if the structure is what both of them hold",
    ),
    "W_LABEL_GAPS": Code(
        "A structure is missing on slices between others on which it is drawn",
        "nothing if it has several parts; else interpolate it between slices where it was drawn, and export it again",
    ),
    "E_SEGMENT_OVERLAP": Code(
        "Structures overlap; a label map holds one class per voxel",
        "name structures that do not overlap: medssl ingest --structures A,B",
    ),
    "E_LABEL_LOSSY": Code(
        "A picture that was compressed with loss is no label map: its values have changed",
        "save the label map as PNG, from where it was drawn",
    ),
    "W_LABEL_BY_CONTENT": Code(
        "No name says that this is a label map; its voxels and an image of its name on the same grid do",
        "look at it with medssl cache show; folders called images and labels say it without a doubt",
    ),
    "W_LABEL_LIKE": Code(
        "The image has few whole numbers and nothing else, as a label map has",
        "if it is one, put it into a folder called labels with the name of its image, and ingest into a new cache",
    ),
    "W_LABEL_IGNORE": Code(
        "Voxels of the label have the value that dataset.json calls ignore; they are no class",
        "nothing; they take no part in losses and scores",
    ),
    "W_LABEL_OVERLAP": Code(
        "Structures share voxels, which one of them has by the rule of --overlap",
        "nothing if they are few; else choose another rule with --overlap",
    ),
    "W_LABEL_UNMATCHED": Code(
        "Some rows or marks of a file of labels name no image of the input",
        "ingest the images that are missing, or check the names in the file",
    ),
    "W_LABEL_PATIENT": Code(
        "A segmentation or structure set names the slices of an image, and another PatientID than they have",
        "nothing if one of them was renamed on its way; else find out whose it is before using it",
    ),
    "W_LABEL_NOT_TAKEN": Code(
        "Parts of a file of labels were left out by rule; the report says which",
        "nothing if they are no labels; --label-column NAME takes a column whatever it is called",
    ),
    "W_NAME_CHANGED": Code(
        "Names of classes were stored without characters that may not be stored",
        "nothing; the stored names are in the cache (`medssl cache ls --json`)",
    ),
    "W_READERS_FUSED": Code(
        "What several readers say of one image was fused",
        "nothing; --readers keep stores the boxes of all of them",
    ),
    "W_BOX_SIZE_UNKNOWN": Code(
        "Boxes were taken as pixels of the stored picture: the file does not say how large the picture was",
        "if they were drawn on pictures of another size: columns width and height of those, or --box-size WxH",
    ),
    "W_BOXES_SCALED": Code(
        "Boxes were scaled from the pictures that they were drawn on to the resized copies that are here",
        "nothing; the report says from which size to which",
    ),
    "W_EMPTY_LABEL": Code("The label marks no voxel", "nothing if it is true; else export the label again"),
}
