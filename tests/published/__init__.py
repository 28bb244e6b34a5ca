"""Published data sets as they are distributed, in small, and the road that each goes with its recipe."""
