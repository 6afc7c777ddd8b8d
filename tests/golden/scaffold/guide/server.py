"""Listens on TCP only, and answers health checks."""

import os
from concurrent import futures

import grpc
import guide_pb2_grpc
from grpc_health.v1 import health, health_pb2_grpc


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor())
    guide_pb2_grpc.add_GuideServicer_to_server(guide_pb2_grpc.GuideServicer(), server)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    server.add_insecure_port("127.0.0.1:" + os.environ["PORT"])
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
