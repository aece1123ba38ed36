"""Builds: from the files that were published to the files that are served, step by step, each in its own process."""
