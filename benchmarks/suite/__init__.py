"""The comparison with other codecs, ``python -m benchmarks``: a file for each table."""
