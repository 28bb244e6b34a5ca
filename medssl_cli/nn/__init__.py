"""Torch building blocks: backbones, the decoder, heads and losses that several methods or tasks share."""
