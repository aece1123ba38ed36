"""The whole suite as processes on one machine: `python -m deploy.local up`. Tests start it the same way."""
