"""Text encodings that more than one service needs."""
