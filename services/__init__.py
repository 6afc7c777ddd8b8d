"""The three services of the mesh and what they share: `chassis` (a gRPC server's life), `storage` (SQLite), `encoding`."""
