"""Deployment: bring an adapter to where it is used."""
