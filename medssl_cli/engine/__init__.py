"""The verbs of training: one trainer with its goals, runs, checkpoints, devices and processes, foreign weights."""
