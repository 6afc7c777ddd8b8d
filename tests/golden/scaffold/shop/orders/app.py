"""Takes orders, and asks what is in stock."""

import os

import grpc
from grpc_health.v1 import health_pb2_grpc
from shop.orders.v1 import orders_pb2_grpc
from shop.stock.v1 import stock_pb2_grpc


def serve() -> None:
    stock = stock_pb2_grpc.StockServiceStub(grpc.insecure_channel(os.environ["NIPMESH_EGRESS"]))
    server = grpc.server(None)
    orders_pb2_grpc.add_OrderServiceServicer_to_server(stock, server)
    health_pb2_grpc.add_HealthServicer_to_server(stock, server)
    server.add_insecure_port(os.environ["NIPMESH_LISTEN"])
