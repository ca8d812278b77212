"""Two directions between a server and its clients, over a channel that may lose, repeat and
reorder messages."""
