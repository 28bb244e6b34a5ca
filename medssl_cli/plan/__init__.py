"""From labelled images to a recipe with reasons: what they are like, what follows from it, and how it is written down.

What only one task knows stays in that task's `plan.py`; measuring on a device, which needs torch, in `engine/planning.py`.
"""
