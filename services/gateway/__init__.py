"""HTTP gateway: accepts the request formats of common clients and calls the services over gRPC."""
