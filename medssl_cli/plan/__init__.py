"""From labelled images to a recipe with reasons: what they are like, what follows from it, and how it is written.

What only one task knows stays in that task's `plan.py`; trials on a device, which need torch, in `engine/planning.py`.
"""
