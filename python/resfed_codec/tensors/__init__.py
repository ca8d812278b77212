"""Models as callers hold them: layout, arrays of NumPy, torch and CUDA devices."""
