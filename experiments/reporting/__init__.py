"""Results into tables and figures."""
