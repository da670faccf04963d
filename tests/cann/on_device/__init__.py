"""Checks that run in a process whose CANN is the simulated one; the tests beside this folder start it."""
