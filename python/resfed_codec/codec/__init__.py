"""Updates and keyframes: a model to bytes and back, without state."""
