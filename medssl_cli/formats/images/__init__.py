"""One file for each format of images: how its files are recognised and read. A file that is put here is in the table.

Each holds a `FORMAT`, an `ImageFormat` of `medssl_cli.formats.table`; its name is the kind of the files.
"""
