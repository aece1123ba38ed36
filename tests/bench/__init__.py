"""Benchmarks of the running suite. They print and write numbers and judge no speed; a wrong answer is an error."""
