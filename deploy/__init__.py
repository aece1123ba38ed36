"""How Penstock is run: configuration files and the local suite."""
