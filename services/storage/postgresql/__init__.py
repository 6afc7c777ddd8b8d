"""The PostgreSQL engine: one schema of a database, shared by the replicas of a service on any number of hosts."""
