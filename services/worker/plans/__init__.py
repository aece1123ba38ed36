"""Where a worker takes a plan from that a version does not bring: its cache, the registry, its own compiler."""
