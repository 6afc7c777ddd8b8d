"""The invoice service: BOLT11 invoices that credit accounts of this mesh, and how payments settle them."""
