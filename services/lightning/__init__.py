"""What the services know of Lightning: payment requests (BOLT11) and the key that signs them."""
