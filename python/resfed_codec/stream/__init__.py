"""One direction: versions of a model, predictions from them, and payloads that refer to them."""
