"""The connections between ranks."""
