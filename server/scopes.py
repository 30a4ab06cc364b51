"""The scopes: what an API key may do."""

SCOPES = ("numbers:read", "numbers:write")
"""Each method of the API declares in its proto the one that it needs."""
