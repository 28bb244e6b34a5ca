"""How good a result is, and how sure one can be of it: overlap, surface distances, statistics over patients."""
