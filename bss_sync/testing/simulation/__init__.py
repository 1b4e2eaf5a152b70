"""A world from one seed: a reseller's BSS, a network, stores and a distributor's BSS, all in one process.

Everything that happens is a step; who takes the next one, what the network does and when a process dies is drawn from
the seed. The same seed gives the same schedule. tests/simulation puts the line into it and compares the end with the
model.
"""
