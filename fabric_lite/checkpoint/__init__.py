"""What is in a checkpoint, and how it goes back into the objects that it came from."""

__all__: list[str] = []
