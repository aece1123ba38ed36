"""The four deployables: gateway, registry, scheduler, worker. Each runs with `python -m services.<name>`."""
