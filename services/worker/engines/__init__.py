"""Engines: what runs a model. One contract (engine.py), one table (catalogue.py), one file per library.

Everything here runs in the child process of a replica; only `probe_all` may be asked by the worker itself.
"""
