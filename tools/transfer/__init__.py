"""Parts of bench_transfer."""
