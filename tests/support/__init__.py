"""What tests share: a running mesh, users with keys, and bounded load."""
