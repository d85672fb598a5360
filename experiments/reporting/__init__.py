"""Turns results into tables and figures."""
