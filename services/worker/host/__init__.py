"""The host of an engine: one child process per engine, tensors in shared memory, messages over a socket pair.

host.py is the worker's side, child.py the process; frames.py and arena.py belong to both.
"""
