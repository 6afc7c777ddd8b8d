"""What the Python applications of the carrier share. They know gRPC and the environment; they do not know nipmesh."""
