"""The record cache: items and what was added to them, their catalog, the key of their pseudonyms, prepared views.

Checks (audit, verify), erasure, export and the split of patients are here too. Loads no torch.
"""
