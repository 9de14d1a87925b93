"""Speed and memory, measured: run one with `python -m benchmarks.train_step`, `.inference` or `.pooling`."""
