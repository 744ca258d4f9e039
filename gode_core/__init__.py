"""Mathematics and networks of continuous depth. Knows tensors; knows no files, YAML or clusters.

`solvers` and `bases` import no torch, so that planning an experiment does not pay for it.
"""
