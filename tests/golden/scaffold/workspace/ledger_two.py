"""One of two programs that serve the same."""

import grpc
from ledger.v1 import ledger_pb2_grpc

if __name__ == "__main__":
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger_pb2_grpc.LedgerServiceServicer(), grpc.server(None))
