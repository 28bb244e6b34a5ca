"""A DICOM receiver that a hospital leaves running: what arrives is filed, asked about, and answered. No torch.

`spool` keeps the queue on disk, `receiver` takes objects, `worker` answers for studies, `peers` sends results,
`monitor` tells of health.
"""
