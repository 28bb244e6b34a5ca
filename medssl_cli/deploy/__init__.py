"""Exported models: the sealed bundle and its gate, and inference with it. Only export and its gate load torch."""
