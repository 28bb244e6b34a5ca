"""From feature maps of slices to vectors of slices and volumes: `embedding.py`, `encoder.py` with
`deformable_attention.py`, `volume_encoder.py`; `relation.py` lets a network that segments know of the slices around.
"""
