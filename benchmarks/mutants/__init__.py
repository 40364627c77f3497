"""Mistakes planted into the product one by one: each must be caught by a named test."""
