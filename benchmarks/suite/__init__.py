"""The comparison with peers, ``python -m benchmarks``: one file for each table it makes."""
