"""Faults of processes, stores and networks, under load, with every request accounted for."""
