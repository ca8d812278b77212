"""One direction: versions of a model, predictions from them, payloads that build on them."""
