"""Real models to serve with Penstock, each built from public data by one command; see README.md."""
