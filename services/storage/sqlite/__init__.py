"""The SQLite engine: one file, shared by the replicas of a service on one host."""
