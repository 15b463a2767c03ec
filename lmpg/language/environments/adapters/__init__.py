"""Environments of other libraries as text environments; each library is an extra."""
