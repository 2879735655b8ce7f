"""Where pictures come from: one file per source, and the newest-frame slot."""
