"""What is measured, how and against whom; every figure is a ratio from one run. `python -m benchmarks --help`."""
