"""Accuracy against bytes: federated training with this codec and other methods.

``python -m benchmarks.federated run`` trains and writes one JSON line per round to ``runs.jsonl``;
``report`` makes tables from it, ``chart`` a chart.
"""
