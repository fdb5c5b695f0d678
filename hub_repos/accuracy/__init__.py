"""The results page, made of committed records."""
