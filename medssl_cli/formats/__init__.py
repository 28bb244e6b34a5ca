"""Readers and writers of file formats: the only room that knows LPS, PixelSpacing, qform or photometric words."""
