"""Questions that users ask of their own data: whether pre-training helps there, and what an encoder knows."""
