"""How fast the services are: calls through the sidecars, the stores alone, and LNbits beside them, in one run.

`python -m benchmarks.services --output json`. Each kind of call has its turn in each round, with CALLERS callers; a figure is the
median of the rounds, a ratio the median of the rounds' ratios, so that a slow moment of the machine hits both sides.

- `echo` is an empty call of a service on the same chassis, through the gateway and the sidecars; `nest` one that makes as many empty
  calls through its sidecar as PayInvoice (inside the mesh) makes real ones.
- `sign_event` signs a note with a key of the caller's, which is decrypted for it; `verify_events` verifies one such note.
- `..._cpu_ms` is the processor time of one call in milliseconds, of all processes of the mesh and of the client together: on a
  machine that does other things it says more than the rate, and so do the ratios `..._by_cpu`. `--processes` shows it by process.
- `..._reserve_...` is the payment service's first transaction (idempotency row, payment, pending transfer, account, saga, outbox)
  through `Database.write`, durable, without gRPC, two processes writing for half of the callers each.
- `encode_...` and `decode_...` are BOLT11's, in processor microseconds each.
- `lnbits_...` is LNbits with its FakeWallet and SQLite, in an environment of its own; `lnbits_..._cpu_ms` is that of its processes alone.
  It works on after its answers: the next kind of call waits until it rests.
"""
