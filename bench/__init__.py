"""The benchmarks: each figure is a ratio, measured in one run beside a reference that anyone can run."""
