"""A playground for mixture-of-experts routing: a toy model trains live while people change how it routes."""
