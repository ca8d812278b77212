"""Two directions: one server and its clients, over a channel that loses and repeats messages."""
