"""Worker: runs models on this machine. Pulls what it is assigned, loads, batches, answers."""
