"""Accuracy against bytes: federated trainings through this codec and through others.

``python -m benchmarks.federated run`` trains and writes one JSON line per round to ``runs.jsonl``;
``report`` makes tables of it, ``chart`` a chart.
"""
