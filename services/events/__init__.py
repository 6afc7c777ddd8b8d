"""Events between services: an outbox in every service, a bus between them, an inbox at every consumer.

    async with open_bus(app.settings) as bus:                     # None without NIPMESH_EVENTS_URL
        if bus is not None:
            app.spawn(run_outbox_relay(database, bus, service=..., source=...), name="outbox relay")
            app.spawn(run_consumer(database, bus, name="zaps", types=[...], handle=on_settled), name="zaps")

docs/events.md says what is guaranteed.
"""
