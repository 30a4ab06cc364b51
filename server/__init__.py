"""The map of the package, from its highest layer to its lowest. Imports go from one layer to a lower one.

- cli/                 the `ordernumbers` command, one file per command group
- run/                 processes: up, serve, worker, edge, and their supervisor
- run/embedded/        the PostgreSQL that `up` starts, its guard, and the demo
- rpc/                 what every call goes through: request id, key, scope, field rules, status, log
- api/                 protobuf to domain, one file per resource
- batching.py          many waiting orders become one transaction
- writing.py           all other writes
- one_by_one.py        writes that are tried alone until their deadline, orders among them
- reading.py           reads, on connections of their own
- admission.py         the limits of writes, and the wait for what becomes of each
- write_connection.py  a database connection for writes, one transaction at a time
- pending.py           writes that wait for their transaction
- store/               connections, the transactions of all writes, reads, admin work, the check
- store/sql/           the statements of the calls
- store/migrations/    the steps from one schema to the next
- messages.py          domain to response bytes
- rules/               the decisions, without gRPC and without SQL
- config.py            every setting, and the limits of the contract
- certificates.py      whether a certificate can be used
- server_addresses.py  where the edge finds the workers
- errors.py            every error code, in one table
- keys.py scopes.py    API keys as text, and what they may do
- money.py log.py      amounts, JSON log lines
- metrics.py           what a worker counts
- tracing.py spans.py  which calls are traced, and their spans; traceparent.py reads the header
- deadlines.py         one timer for everything that waits until a deadline

docs/architecture.md describes how they work together.
"""
