"""`python -m orders`."""

from orders.app import serve

serve()
