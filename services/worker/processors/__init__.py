"""Processors: from raw input to what an engine takes, and from what it gives to an answer.

pipeline.py puts together the ones that a manifest names.
"""
