"""Studies: many runs from one file, on this machine or a cluster, restartable, and their table.

The thing studied is any function of a configuration that gives numbers; training is one of them. Nothing here knows
how a network is trained, nor how results are drawn.
"""
