"""The map of the package, from its highest layer to its lowest. Imports go from one layer to a lower one.

- cli/                 the `ordernumbers` command, one file per command group
- run/                 processes: up, serve, worker, edge, and their supervisor
- run/embedded/        the PostgreSQL that `up` starts, its guard, and the demo
- rpc/                 what every call goes through: request id, key, scope, field rules, status, log
- api/                 protobuf to domain, one file per resource
- batching.py          many waiting orders become one transaction
- order_connection.py  a database connection for orders, one transaction at a time
- pending.py           orders that wait for their transaction
- store/               connections, the order transaction, reads, admin work, the check
- store/sql/           the statements of the hot path
- store/migrations/    the steps from one schema to the next
- messages.py          domain to response bytes
- rules/               the decisions, without gRPC and without SQL
- config.py            every setting, and the limits of the contract
- errors.py            every error code, in one table
- keys.py scopes.py    API keys as text, and what they may do
- money.py log.py      amounts, JSON log lines

docs/architecture.md describes how they work together.
"""
