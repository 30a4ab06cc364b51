"""OrderNumbers and a highly available PostgreSQL on one machine: `make ha`. See docs/high-availability.md."""
