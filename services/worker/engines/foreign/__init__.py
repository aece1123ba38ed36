"""A model that is somebody's Python code, in a process and an interpreter of its own.

`bundle` unpacks it, `process` is this side, `served` is the other: a script that knows nothing of Penstock.
"""
