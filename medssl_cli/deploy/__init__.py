"""Exported models: the sealed bundle and its gate, and inference with it. Only the two exporters load torch."""
