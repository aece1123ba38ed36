"""What tests stand on: real processes, started and broken on purpose."""
