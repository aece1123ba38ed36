"""What every service process is made of; knows nothing of models. There is one way to start, to authenticate, to log,
to trace, to measure and to drain, and this is it."""
