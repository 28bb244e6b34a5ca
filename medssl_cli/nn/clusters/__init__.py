"""Learning by clusters: `heads.py` what it adds to a backbone, `losses.py` agreement and prototypes, `sinkhorn.py` and
`kmeans.py` who finds clusters, `memory.py` queue and bank, `health.py` and `group_table.py` whether it has collapsed.
"""
