"""bss_sync mirrors resellers' accounts and subscriptions into a distributor's BSS."""

__version__ = "0.1.0"
