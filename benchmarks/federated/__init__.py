"""Accuracy against bytes: federated trainings through this codec and through others.

``python -m benchmarks.federated run`` trains and writes one JSON line per round;
``python -m benchmarks.federated report`` makes figures and tables from what was written.
"""
