"""The command ``resfed-codec``."""
