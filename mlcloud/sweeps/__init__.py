"""Sweeps: which configurations are tried next, which go on, and what is the best so far.

    space    {"lr": (1e-5, 1e-1, "log"), "layers": [1, 2, 3]}   as a user writes it
    search   ask / report / tell over Optuna: TPE, random, grid, NSGA-II; ASHA ends what lags behind
    trials   what is known of them, and which are best
    breeding population based training: who lags copies a leader's state, and tries other values

Nothing here runs a trial or knows a cluster: plain data in, plain data out.
"""
