"""The small server beside the gateway: reflection of the exposed methods, and health as the gateway sees it."""
