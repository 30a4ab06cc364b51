"""The numbers of PostgreSQL's advisory locks. Admin work takes one, so that two of the same kind never run at once."""

UPGRADE = 6_733_663
SEARCH_INDEXES = 6_733_664
ARCHIVE = 6_733_665
