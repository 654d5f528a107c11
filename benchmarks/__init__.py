"""Side-by-side measurements: `make bench-NAME` runs `benchmarks/NAME/`, its figures go to `benchmarks/results/`."""
