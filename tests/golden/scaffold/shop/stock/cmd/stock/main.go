// Command stock says what is on the shelf.
package main

import (
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	stock "example.org/stock/gen"
)

func main() {
	listener, _ := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	server := grpc.NewServer()
	stock.RegisterStockServiceServer(server, nil)
	stock.RegisterShelfServiceServer(server, nil)
	healthpb.RegisterHealthServer(server, health.NewServer())
	_ = server.Serve(listener)
}
