"""Mutants of the archive: what it may move, in which order, and what the check accepts after it."""

from tests.mutants.mutant import Mutant

ARCHIVE, ARCHIVED = "server/store/archive.py", "tests/admin/test_archive.py"
STATEMENTS = "server/store/archive_statements.py"
CHECKED = "tests/admin/test_check_archive.py"

MUTANTS = (
    Mutant(
        "the newest ledger entry is archived",
        STATEMENTS,
        "WHERE may_go AND entry_no < (SELECT max(entry_no)",
        "WHERE may_go AND entry_no <= (SELECT max(entry_no)",
        ARCHIVED,
    ),
    Mutant(
        "a damaged ledger is archived",
        STATEMENTS,
        "bool_and(follows AND created_at < :before)",
        "bool_and(created_at < :before)",
        ARCHIVED,
    ),
    Mutant(
        "an order with a live number is archived",
        STATEMENTS,
        "= (a.organization_id, a.released_at)",
        "= (a.organization_id, coalesce(a.released_at, e.created_at))",
        ARCHIVED,
    ),
    Mutant(
        "an order whose number rested later is archived",
        STATEMENTS,
        "AND CAST(e.after ->> 'available_at' AS timestamptz) < :before",
        "AND e.created_at < :before",
        ARCHIVED,
    ),
    Mutant(
        "an order whose response is stored is archived",
        STATEMENTS,
        "least(CAST(:before AS timestamptz), min(created_at))",
        "greatest(CAST(:before AS timestamptz), min(created_at))",
        ARCHIVED,
    ),
    Mutant(
        "the release of a number is not archived",
        STATEMENTS,
        "OR e.kind = 'released' AND e.created_at = a.released_at",
        "OR e.kind = 'released' AND e.created_at < a.released_at",
        ARCHIVED,
    ),
    Mutant(
        "the check needs a release that is archived",
        "server/store/life_invariants.py",
        "rest_until >= (SELECT coalesce(max(archived_before), '-infinity') FROM archive)",
        "rest_until >= '-infinity'",
        ARCHIVED,
    ),
    Mutant(
        "the check needs no release after an archive",
        "server/store/life_invariants.py",
        "rest_until >= (SELECT coalesce(max(archived_before), '-infinity') FROM archive)",
        "NOT EXISTS (SELECT FROM archive)",
        CHECKED,
    ),
    Mutant(
        "a part of a step stays in the file after an error",
        "server/store/archive_file.py",
        "os.ftruncate(self._file, self._length)",
        "pass",
        ARCHIVED,
    ),
    Mutant(
        "a hold that a number names is archived",
        STATEMENTS,
        "(p.held_by, p.hold_id) = (h.organization_id, h.id)",
        "(p.held_by, p.hold_id) = (h.organization_id, h.organization_id)",
        ARCHIVED,
    ),
    Mutant(
        "rows are deleted before they are on disk",
        ARCHIVE,
        "        self._file.write(lines)\n",
        "        self._connection.get_transaction().commit()\n        self._file.write(lines)\n",
        ARCHIVED,
    ),
    Mutant(
        "the indexes for the archive stay",
        ARCHIVE,
        "        indexes.drop(connection, name)\n",
        "        pass\n",
        ARCHIVED,
    ),
    Mutant(
        "the check finds what an archive moves meanwhile",
        "server/store/pairing.py",
        "        if order_id in needed:\n",
        "        if True:\n",
        ARCHIVED,
    ),
    Mutant(
        "the check accepts a gap after an archive",
        "server/store/invariants.py",
        "archive.entry_no >= ledger_entry.entry_no - 1",
        "archive.entry_no > 0",
        CHECKED,
    ),
    Mutant(
        "the check accepts an order without a ledger entry after an archive",
        "server/store/pairing.py",
        "CASE WHEN entries_until IS NULL OR created_at > entries_until THEN id::text END",
        "CASE WHEN entries_until IS NULL THEN id::text END",
        CHECKED,
    ),
)
