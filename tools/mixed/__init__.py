"""Parts of bench_mixed."""
