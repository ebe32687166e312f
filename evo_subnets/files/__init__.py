"""Bytes on disk: whole or absent, checked, never unpickled. Nothing here knows what they mean."""
