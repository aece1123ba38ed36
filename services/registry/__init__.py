"""The registry: models, immutable versions, aliases, artifacts, and what should run.

Its database is the truth; what the cluster must know of it is projected into etcd (projector.py).
"""
