"""Speed, measured: what `unetfast bench` does, and what the programs in benchmarks/ share with it."""
