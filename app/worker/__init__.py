"""Processes that train the jobs of the catalog: `polyprefix worker`, or beside a server."""
