"""The audit's pure part lives in the domain: adapters and pipeline both need it, and neither may import the other."""

from bss_sync.domain.audit import AuditEntry, ChainedEntry, chain, chain_hash, detail_digest, first_break

__all__ = ["AuditEntry", "ChainedEntry", "chain", "chain_hash", "detail_digest", "first_break"]
