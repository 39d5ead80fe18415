"""The writing tools' screen."""
