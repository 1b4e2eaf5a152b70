"""What may be asked of the mirror, the inbox and the trail: queries that know nothing of HTTP.

Every function takes a Connection inside the right transaction (role ``api`` or ``engine``), the ``Reach`` of whoever
asks, and plain arguments; it answers plain dictionaries that are ready for JSON.
"""
